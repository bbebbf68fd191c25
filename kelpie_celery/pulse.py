"""A worker's pulse: once a second it asks what is wanted of it, and does its share of maintenance.

Which of its jobs are to be canceled; whether it drains: then it fetches no more, and says so once SaladCloud knows too.
It also passes on how its jobs are getting on to whoever listens to Celery's events.

Limits: one thread a worker process; what it learns a heartbeat would learn too, only later.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kelpie_celery.errors import LedgerUnavailable
from kelpie_celery.gate import wake
from kelpie_celery.ledger.types import Pulsed, WorkerSign
from kelpie_celery.maintenance import Maintainer
from kelpie_celery.running import DRAINING

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
        self._hostname = hostname
        self._draining: dict[str, bool] = {}
        self._settled: dict[str, bool] = {}
        self._untold: dict[str, bool] = {}
        self._by_hand: dict[str, bool] = {}
        self._news: set[str] = set()

    @property
    def beats(self) -> int:
        """How many rounds it has made, successful or not."""
        return self._count

    def goodbye(self) -> None:
        """Say goodbye in each group, as far as Redis listens. Any thread."""
        for group in self._groups:
            self._say_goodbye(group)

    def stop(self) -> None:
        """End the thread; a beat under way is finished."""
        self._stopped.set()

    def run(self) -> None:
        """Beat."""
        while not self._stopped.is_set():
            came = [self._safely(group) for group in self._groups]
            if all(came):
                self._announce()
            self._count += 1
            self._stopped.wait(self._app.settings.pulse_s)
        self.goodbye()

    def _safely(self, group: str) -> bool:
        try:
            self.beat(group)
        except LedgerUnavailable as e:
            self._maintainer.note_outage(group)
            log.debug("no pulse", extra={"action": "pulse_missed", "error": str(e)})
        except Exception:
            log.exception("the pulse failed", extra={"action": "pulse_failed", "container_group": group})
        else:
            return True
        return False

    def _announce(self) -> None:
        """Only after a beat: what is said while Redis is away would pile up, and be heard when it is no longer so."""
        for job in self._app.running.all():
            try:
                # Another attempt may have the job of one that lost its lease, and even have finished it.
                if job.announcer and job.trusted():
                    job.announcer.tell()
            except Exception as e:
                # Only people look at these; Celery's dispatcher keeps what it could not send.
                log.debug(
                    "progress was not announced",
                    extra={"action": "announce_failed", "job_id": job.token.job_id, "error": type(e).__name__},
                )

    def beat(self, group: str) -> None:
        """One beat for one group."""
        app = self._app
        ids = [job.token.job_id for job in app.running.all()]
        if app.running.drained_by_hand != self._by_hand.get(group, False):
            self._by_hand[group] = app.running.drained_by_hand
            self._news.add(group)
        alive = self._count % SIGN_OF_LIFE_EVERY == 0 or group in self._news
        pulsed = app.ledger.pulse(group, app.settings.machine_id, ids, alive=alive, sign=self._sign(group))
        self._news.discard(group)
        for job_id in pulsed.cancel:
            app.running.cancel(job_id)
        self._heed(group, pulsed)
        self._maintainer.tick(group)

    def _sign(self, group: str) -> WorkerSign:
        app = self._app
        settled = self._draining.get(group, False) and self._settled.get(group, False)
        instance = app.settings.instance_id or ""
        untold = self._untold.get(group, False)
        by_hand = app.running.drained_by_hand
        return WorkerSign(app.worker_id, self._hostname, instance, app.runner.slots, settled, untold, by_hand)

    def _heed(self, group: str, pulsed: Pulsed) -> None:
        app = self._app
        self._draining[group] = pulsed.draining
        # A claim that was refused may have held the worker back before this pulse came.
        if app.running.hold_back(DRAINING, on=any(self._draining.values())) and not app.running.held_back:
            wake()
        # By hand it is as idle on purpose, and as cheap to delete; only the scaler's drain ends with a pulse.
        draining = pulsed.draining or app.running.drained_by_hand
        settled = app.runner.tend(group, draining=draining, streak=pulsed.streak)
        untold = app.runner.untold
        if (pulsed.draining and settled and not self._settled.get(group)) or untold != self._untold.get(group, False):
            # The scaler goes by this: not only with the next sign of life.
            self._news.add(group)
        self._settled[group], self._untold[group] = pulsed.draining and settled, untold

    def _say_goodbye(self, group: str) -> None:
        try:
            self._app.ledger.goodbye(group, self._app.settings.machine_id, self._sign(group))
        except LedgerUnavailable as e:
            log.debug("no goodbye", extra={"action": "goodbye_missed", "error": str(e)})
