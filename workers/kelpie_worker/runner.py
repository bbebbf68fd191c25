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
from kelpie_worker.attempt import Attempt, Runtime
from kelpie_worker.places import Places
from kelpie_worker.scratch import Scratch


class Runner:
    """The runtime of a GPU worker; see ``kelpie_celery.runner.AttemptRunner``."""

    def __init__(self, app: KelpieApp) -> None:
        self._app = app
        self._environ = dict(os.environ)
        self.slots = slot_count(app.settings.slots, self._environ)
        self._places = Places(gpus_by_slot(visible_gpus(self._environ), self.slots))
        self._scratch = Scratch()
        atexit.register(self._scratch.close)
        threading.Thread(target=_warm_up, name="kelpie-warm-up", daemon=True).start()

    def run(self, granted: Granted, job: RunningJob) -> Ending:
        """Run one attempt to its end."""
        return asyncio.run(self._run(granted, job))

    async def _run(self, granted: Granted, job: RunningJob) -> Ending:
        runtime = Runtime(self._app, self._places, self._scratch, SystemClock(), self._environ)
        return await Attempt(runtime, granted, job).run()


def _warm_up() -> None:
    """Import what the first job with storage needs: a job that is handed over must not wait half a second for it."""
    importlib.import_module("aiobotocore.session")
    importlib.import_module("kelpie_worker.sync.wire")
