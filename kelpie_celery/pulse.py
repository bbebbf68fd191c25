"""A worker's pulse: once a second it asks which of its jobs are to be canceled, and does its share of maintenance.

Limits: one thread a worker process; what it learns a heartbeat would learn too, only later.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kelpie_celery.errors import LedgerUnavailable
from kelpie_celery.maintenance import Maintainer

if TYPE_CHECKING:
    from kelpie_celery.app import KelpieApp

log = logging.getLogger(__name__)

SIGN_OF_LIFE_EVERY = 5
"""Only every fifth pulse writes: with ``appendfsync always`` each write costs the server a flush to disk."""


class Pulse(threading.Thread):
    """Beats until ``stop`` is called."""

    def __init__(self, app: KelpieApp, groups: Sequence[str], hostname: str) -> None:
        super().__init__(name="kelpie-pulse", daemon=True)
        self._app, self._groups = app, list(groups)
        self._maintainer = Maintainer(app, hostname)
        self._stopped = threading.Event()
        self._count = 0

    def stop(self) -> None:
        """End the thread; a beat under way is finished."""
        self._stopped.set()

    def run(self) -> None:
        """Beat."""
        while not self._stopped.is_set():
            for group in self._groups:
                self._safely(group)
            self._count += 1
            self._stopped.wait(self._app.settings.pulse_s)

    def _safely(self, group: str) -> None:
        try:
            self.beat(group)
        except LedgerUnavailable as e:
            self._maintainer.note_outage(group)
            log.debug("no pulse", extra={"action": "pulse_missed", "error": str(e)})
        except Exception:
            log.exception("the pulse failed", extra={"action": "pulse_failed", "container_group": group})

    def beat(self, group: str) -> None:
        """One beat for one group."""
        app = self._app
        ids = [job.token.job_id for job in app.running.all()]
        alive = self._count % SIGN_OF_LIFE_EVERY == 0
        for job_id in app.ledger.pulse(group, app.settings.machine_id, ids, alive=alive):
            app.running.cancel(job_id)
        self._maintainer.tick(group)
