"""Whether a worker should leave its node, or begin anew on it, and when that harms no job.

- Its machine failed ``MAX_JOB_FAILURES`` jobs in a row that succeeded elsewhere: another node.
- It had no job for ``MAX_TIME_WITH_NO_WORK_S``: another node.
- A job has ended, and ``KELPIE_RECREATE_BETWEEN_JOBS`` is set: a fresh container on the same node.

In each case the worker fetches no more from the moment that it is due, finishes what it has (uploads and Celery's
bookkeeping too), and goes once nothing has come in for ``SETTLE_S``: a message may have been on its way.

Limits: decides only; ``kelpie_worker.standing`` asks the ledger for leave and tells the metadata service.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from kelpie_celery.clock import Clock
from kelpie_celery.gate import at_rest, wake
from kelpie_celery.lifecycle import Phase
from kelpie_celery.running import RunningJob, RunningJobs

UNFIT, UNUSED, STALE = "unfit", "unused", "stale"
"""Why a worker fetches nothing: its machine fails jobs; it had none for long; its container is to begin anew."""

AGAIN_S = 600.0
"""After a move that was not granted, or did not come, the worker works on for so long before it asks again, seconds."""

SETTLE_S = 2.0
"""Twice as long as a fetch that was under way when the gate closed may take, seconds."""

_WHYS = (UNFIT, UNUSED, STALE)


class LeavingSettings(Protocol):
    """The settings that matter here."""

    @property
    def max_job_failures(self) -> int: ...  # noqa: D102
    @property
    def max_time_with_no_work_s(self) -> float: ...  # noqa: D102
    @property
    def recreate_between_jobs(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True)
class Departure:
    """What the platform is to be asked for, for which container group's sake, and why."""

    kind: Literal["move", "recreate"]
    group: str
    why: str
    reason: str


class Leaving:
    """Decides; called with each pulse, and when an attempt begins, uploads and ends. Any thread."""

    def __init__(
        self, settings: LeavingSettings, running: RunningJobs, clock: Clock, rests: Callable[[], bool] = at_rest
    ) -> None:
        self._settings, self._running, self._clock, self._rests = settings, running, clock, rests
        self._worked_at = clock.boottime()
        self._quiet_since: dict[str, float] = {}
        self._moves_again_at = 0.0
        self._used = False

    def note(self, jobs: Sequence[RunningJob]) -> None:
        """What runs now: an attempt has begun or gone on.

        A slot is free while its job still uploads: where each job gets a fresh container, the next one must wait.
        """
        if jobs:
            self._worked_at = self._clock.boottime()
            self._quiet_since.clear()
        if any(job.phase is Phase.UPLOADING for job in jobs):
            self.over()

    def over(self) -> None:
        """An attempt has ended, or does nothing but upload; to be told before its slot is free."""
        self._worked_at = self._clock.boottime()
        if self._settings.recreate_between_jobs:
            self._used = True
            self._running.hold_back(STALE, on=True)

    def due(self, group: str, jobs: Sequence[RunningJob], *, streak: int, idle_ok: bool) -> Departure | None:
        """What is to be asked for now, if anything.

        Args:
            group: The container group.
            jobs: What runs.
            streak: How many jobs in a row failed on this machine and succeeded elsewhere.
            idle_ok: It is meant to have no work: it drains, or there is nobody to ask.
        """
        self.note(jobs)
        wish = self._wish(group, jobs, streak, idle_ok=idle_ok)
        for why in _WHYS:
            self._hold(why, group, on=wish is not None and wish.why == why)
        if wish is None or jobs or not self._rests():
            self._quiet_since.pop(group, None)
            return None
        now = self._clock.boottime()
        return wish if now - self._quiet_since.setdefault(group, now) >= SETTLE_S else None

    def still(self) -> bool:
        """Whether nothing has come in since something was found to be due."""
        return not self._running.all() and self._rests()

    def asked(self, departure: Departure) -> None:
        """It was asked for, and not granted, or did not come: the worker works on."""
        self._quiet_since.clear()
        if departure.kind == "recreate":
            self._used = False
        else:
            self._moves_again_at = self._clock.boottime() + AGAIN_S
        self._hold(departure.why, departure.group, on=False)

    def _wish(self, group: str, jobs: Sequence[RunningJob], streak: int, *, idle_ok: bool) -> Departure | None:
        s, now = self._settings, self._clock.boottime()
        may_move = now >= self._moves_again_at
        if may_move and streak >= s.max_job_failures:
            text = f"{streak} jobs in a row failed on this machine and succeeded on others"
            return Departure("move", group, UNFIT, text)
        if idle_ok:
            return None
        if self._used:
            return Departure("recreate", group, STALE, "KELPIE_RECREATE_BETWEEN_JOBS is set, and a job has ended")
        idle_s, limit_s = now - self._worked_at, s.max_time_with_no_work_s
        if may_move and not jobs and limit_s > 0 and idle_s >= limit_s:
            return Departure("move", group, UNUSED, f"no work for {idle_s:.0f} s (MAX_TIME_WITH_NO_WORK_S)")
        return None

    def _hold(self, why: str, group: str, *, on: bool) -> None:
        # What a container was used for concerns all groups that it serves; a streak is of one group.
        name = why if why == STALE else f"{why} {group}"
        if self._running.hold_back(name, on=on) and not on and not self._running.held_back:
            wake()
