"""Runs attempts for the Celery task: one asyncio loop in each pool thread.

Limits: created once in a worker process, when it first serves a container group.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib
import os
import threading

from kelpie_celery.app import KelpieApp
from kelpie_celery.clock import SystemClock
from kelpie_celery.ledger.types import Ending, Granted
from kelpie_celery.running import RunningJob
from kelpie_celery.slots import gpus_by_slot, slot_count, visible_gpus
from kelpie_worker.attempt import Attempt
from kelpie_worker.attempt_context import Runtime
from kelpie_worker.memory import own_group, remove_abandoned_groups
from kelpie_worker.places import Places
from kelpie_worker.scratch import Scratch
from kelpie_worker.standing import Standing
from kelpie_worker.state_file import StateFile


class Runner:
    """The runtime of a GPU worker; see ``kelpie_celery.runner.AttemptRunner``."""

    def __init__(self, app: KelpieApp) -> None:
        self._app = app
        self._environ = dict(os.environ)
        self.slots = slot_count(app.settings.slots, self._environ)
        remove_abandoned_groups(own_group())
        self._scratch = Scratch()
        self._standing = Standing(app)
        self._places = Places(gpus_by_slot(visible_gpus(self._environ), self.slots), self._scratch.claims)
        self._state = StateFile(app.settings.workdir / app.settings.state_file, SystemClock())
        atexit.register(self._scratch.close)
        threading.Thread(target=_warm_up, name="kelpie-warm-up", daemon=True).start()

    def run(self, granted: Granted, job: RunningJob) -> Ending:
        """Run one attempt to its end."""
        self._standing.refresh()
        try:
            return asyncio.run(self._run(granted, job))
        finally:
            # Before the slot is free, as the next job may have to wait for a fresh container.
            self._standing.job_over()

    @property
    def untold(self) -> bool:
        """Whether the platform has another cost of this worker, by which it may choose wrongly."""
        return self._standing.untold

    def tend(self, group: str, *, draining: bool, streak: int) -> bool:
        """Keep the platform informed of what this worker does."""
        return self._standing.tend(group, draining=draining, streak=streak)

    async def _run(self, granted: Granted, job: RunningJob) -> Ending:
        runtime = Runtime(
            self._app,
            self._places,
            self._scratch,
            SystemClock(),
            self._environ,
            self._state,
            on_news=self._standing.refresh,
        )
        return await Attempt(runtime, granted, job).run()


def _warm_up() -> None:
    """Import what the first job with storage needs: a job that is handed over must not wait half a second for it."""
    importlib.import_module("aiobotocore.session")
    importlib.import_module("kelpie_worker.sync.wire")
