"""A worker's standing on its platform: what it costs to delete it, and whether it should leave its node.

A thread of its own talks to the metadata service, so that no job ever waits for it: whoever has news leaves it here,
and only the newest counts. Deletion cost: 0 draining, 1 idle, 2 and rising with heartbeats while a job runs, 100000
while one uploads. When a node should be left, or a container begin anew, is decided in ``kelpie_worker.leaving``; moves
keep to the group's budget, which they share with the scaler's.

Limits: one metadata service, so one standing a process.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from kelpie_celery.clock import Clock, SystemClock
from kelpie_celery.errors import ImdsAbsent, ImdsError, LedgerUnavailable
from kelpie_celery.ledger.fleet import Leave
from kelpie_celery.lifecycle import Phase
from kelpie_celery.running import RunningJob
from kelpie_worker.imds import MAX_COST, Imds
from kelpie_worker.leaving import Departure, Leaving

if TYPE_CHECKING:
    from kelpie_celery.app import KelpieApp

log = logging.getLogger(__name__)

KILLED_WITHIN_S = 30.0
"""After a move or a fresh container was accepted, the worker waits so long for its end, seconds."""

_IDLE, _RUNNING = 1, 2
_PAUSE_S = 1.0
_AGAIN_S, _FAILING_S = 0.2, 5.0


def deletion_cost(jobs: Sequence[RunningJob], *, draining: bool) -> int:
    """What it costs to delete this instance."""
    if any(job.phase is Phase.UPLOADING for job in jobs):
        return MAX_COST
    if jobs:
        return min(MAX_COST - 1, _RUNNING + max(job.beats for job in jobs))
    return 0 if draining else _IDLE


class Moves(Protocol):
    """The part of the ledger that grants moves."""

    def ask_to_move(self, group: str, machine: str, instance: str, reason: str, *, by: str, size: int = 0) -> Leave:
        """Ask for leave."""


class Standing:
    """Keeps the platform informed; ``tend`` never waits."""

    def __init__(self, app: KelpieApp, imds: Imds | None = None, clock: Clock | None = None) -> None:
        self._settings, self._running, self._app = app.settings, app.running, app
        self._clock = clock or SystemClock()
        self._imds = imds or Imds(self._settings.metadata_uri, self._clock)
        self._news = threading.Condition()
        self._wanted: int | None = None
        self._told: int | None = None
        self._tries = 0
        self._draining = False
        self._leaving = Leaving(self._settings, self._running, self._clock)
        self._departure: Departure | None = None
        self._thread: threading.Thread | None = None
        self._said_absent, self._said_error = False, ""

    def tend(self, group: str, *, draining: bool, streak: int) -> bool:
        """See ``kelpie_celery.runner.AttemptRunner.tend``."""
        self._draining = draining
        jobs = self._running.all()
        self._judge(group, jobs, streak)
        return self._consider(jobs)

    @property
    def untold(self) -> bool:
        """Whether the platform, by what it was told last, would delete another one in this one's place, or vice versa.

        It is sure of neither before it was told anything. Where there never was a service, no cost counts.
        """
        with self._news:
            if self._told is None:
                return self._wanted is not None and not self._imds.absent
            return (self._told == 0) != (self._wanted == 0)

    def refresh(self) -> None:
        """A job has begun or gone on: a scale-in at this moment must not take its worker for an idle one."""
        jobs = self._running.all()
        self._leaving.note(jobs)
        self._consider(jobs)

    def job_over(self) -> None:
        """A job's attempt is over, its slot not free yet."""
        self._leaving.over()

    def _consider(self, jobs: Sequence[RunningJob]) -> bool:
        with self._news:
            cost = deletion_cost(jobs, draining=self._draining)
            if cost != self._wanted:
                self._wanted, self._tries = cost, 0
            if self._has_work():
                self._start()
                self._news.notify()
            # What cannot be told must not hold up the scaler for ever.
            tried = self._tries >= self._settings.max_retries
            return self._told == self._wanted or self._imds.absent or tried

    def _judge(self, group: str, jobs: Sequence[RunningJob], streak: int) -> None:
        nobody_to_ask = self._imds.absent
        due = self._leaving.due(
            group, jobs, streak=0 if nobody_to_ask else streak, idle_ok=self._draining or nobody_to_ask
        )
        with self._news:
            if self._departure is None:
                self._departure = due

    def _has_work(self) -> bool:
        cost = self._wanted != self._told and not self._imds.absent
        return cost or self._departure is not None

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="kelpie-standing", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(self._has_work)
            try:
                self.work()
            except Exception:
                log.exception("the platform was not told", extra={"action": "standing_failed"})
            # The pulse notifies again within a second; a service that answers with errors must not be stormed.
            self._clock.sleep(_AGAIN_S if self._tries < self._settings.max_retries else _FAILING_S)

    def work(self) -> None:
        """Tell the platform what it does not know yet; the thread does this."""
        with self._news:
            cost, departure = self._wanted, self._departure
        if cost is not None and cost != self._told:
            self._tell_cost(cost)
        if departure is not None:
            self._leave(departure)

    def _tell_cost(self, cost: int) -> None:
        told = self._asked(lambda: self._imds.set_deletion_cost(cost), "deletion_cost_untold")
        with self._news:
            if told:
                self._told = cost
            elif cost == self._wanted:
                self._tries += 1

    def _leave(self, departure: Departure) -> None:
        if self._leaving.still():
            if self._is_under_way(departure):
                # It is killed at some moment now. Should it not be, it works on.
                self._clock.sleep(KILLED_WITHIN_S)
            self._leaving.asked(departure)
        with self._news:
            self._departure = None

    def _is_under_way(self, departure: Departure) -> bool:
        if departure.kind == "recreate":
            came = self._tried(self._imds.recreate, "recreate_failed")
        else:
            came = self._granted(departure) and self._tried(
                lambda: self._imds.reallocate(departure.reason), "move_failed"
            )
        if came:
            log.warning(
                "this worker leaves its node" if departure.kind == "move" else "this worker's container begins anew",
                extra={"action": "reallocate" if departure.kind == "move" else "recreate",
                       "container_group": departure.group, "machine_id": self._settings.machine_id,
                       "why": departure.reason},
            )  # fmt: skip
        return came

    def _tried(self, call: Callable[[], None], action: str) -> bool:
        """Ask up to ``MAX_RETRIES`` times."""
        for number in range(self._settings.max_retries):
            if number:
                self._clock.sleep(_PAUSE_S)
            if self._asked(call, action):
                return True
            if self._imds.absent:
                break
        return False

    def _granted(self, move: Departure) -> bool:
        s, moves = self._settings, self._app.ledger
        try:
            leave = moves.ask_to_move(move.group, s.machine_id, s.instance_id or "", move.reason, by="worker")
        except LedgerUnavailable:
            return False
        if not leave.granted:
            log.warning(
                "this worker should leave its node, and the group's moves of this hour are used up",
                extra={"action": "move_refused", "container_group": move.group, "machine_id": s.machine_id,
                       "moves": leave.used, "allowed": leave.allowed, "why": move.reason},
            )  # fmt: skip
        return leave.granted

    def _asked(self, call: Callable[[], None], action: str) -> bool:
        try:
            call()
        except ImdsAbsent as e:
            if not self._said_absent:
                self._said_absent = True
                log.info("no metadata service here: nothing is told of this worker",
                         extra={"action": "imds_absent", "why": str(e)})  # fmt: skip
            return False
        except ImdsError as e:
            if str(e) != self._said_error:
                self._said_error = str(e)
                log.warning("the metadata service did not take it", extra={"action": action, "error": str(e)})
            return False
        self._said_error = ""
        return True
