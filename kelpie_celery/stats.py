"""Goodput: where the time of a group's jobs went, for people.

Limits: whole hours, of the last 90 days; ``kelpie_celery.ledger.sums`` says what is counted when.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kelpie_celery._calls import Calls
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.sums import DAY_S, HOUR_S, KEPT_DAYS, Sums
from kelpie_celery.ledger.types import encodable
from kelpie_celery.lifecycle import Outcome


@dataclass(frozen=True)
class GroupStats:
    """Where the time of a container group went. Seconds, of slots; ``waiting_s`` is of jobs.

    Attributes:
        group: The container group.
        since: The beginning of the first hour that is counted, seconds since the epoch.
        until: Now, by Redis's clock.
        useful_s: Executed, and kept by a checkpoint or by the job's completion.
        lost_s: Executed after the last checkpoint of an attempt that did not complete: done again, or given up.
        waiting_s: Pending, from when a job was due.
        restoring_s: From the claim to the command's start.
        syncing_s: From the command's end to the attempt's: the last checkpoint, outputs, the report.
        silent_s: Of silent deaths: from the last sign of life until the lease was over.
        ends: Attempts that ended, by ``<outcome>:<reason>``.
    """

    group: str
    since: float
    until: float
    useful_s: float = 0.0
    lost_s: float = 0.0
    waiting_s: float = 0.0
    restoring_s: float = 0.0
    syncing_s: float = 0.0
    silent_s: float = 0.0
    ends: Mapping[str, int] = field(default_factory=dict)

    @property
    def slot_s(self) -> float:
        """How long attempts held slots, as far as they were known to be alive."""
        return self.useful_s + self.lost_s + self.restoring_s + self.syncing_s

    @property
    def gpu_hours(self) -> float:
        """The same in hours: GPU hours, where a slot has one GPU."""
        return self.slot_s / HOUR_S

    @property
    def useful_fraction(self) -> float | None:
        """What part of the slots' time was useful; None without any."""
        return self.useful_s / self.slot_s if self.slot_s > 0 else None

    def attempts(self, *outcomes: Outcome) -> int:
        """Attempts that ended in one of these ways."""
        return sum(count for end, count in self.ends.items() if end.partition(":")[0] in outcomes)

    @property
    def completed(self) -> int:
        """Attempts that completed their job."""
        return self.attempts(Outcome.COMPLETED)

    @property
    def failures(self) -> int:
        """Attempts that failed, also where a retry rule does not count that."""
        return self.attempts(Outcome.FAILURE, Outcome.FREE)

    @property
    def interruptions(self) -> int:
        """Attempts that were interrupted, silent deaths included."""
        return self.attempts(Outcome.INTERRUPTION)

    @property
    def others(self) -> int:
        """Attempts that were canceled, or are to be run again."""
        return self.attempts(Outcome.CANCELED, Outcome.CONTINUE)

    @property
    def between_interruptions_s(self) -> float | None:
        """Mean time of a slot between two interruptions; None without one."""
        return self.slot_s / self.interruptions if self.interruptions else None


class StatsClient:
    """The part of a client that sums up; see `kelpie_celery.client.Kelpie`."""

    _calls: Calls
    _ledger: Ledger

    def stats(self, group: str, since_s: float = DAY_S) -> GroupStats:
        """Where the time of a container group went.

        Args:
            group: The container group.
            since_s: How far back, in seconds, at most 90 days; the hour in which it begins counts whole.

        Raises:
            ValueError: ``since_s`` is not above 0, or more than 90 days.
        """
        if not 0 < since_s <= KEPT_DAYS * DAY_S:
            raise ValueError(f"since_s is {since_s:g}: it must be above 0, and at most {KEPT_DAYS} days")
        known = encodable(group)

        def read() -> GroupStats:
            now = self._ledger.server_time()
            return _stats(known, now - since_s, now, self._ledger.sums(known, now - since_s, now))

        return self._calls.make(f"sum up {known}", read)


def _stats(group: str, since: float, until: float, sums: Sums) -> GroupStats:
    def seconds(what: str) -> float:
        # What was taken off in another hour than it was counted in may leave less than nothing.
        return max(0.0, round(sums.get(what, 0.0), 6))

    ends = {what.removeprefix("end:"): round(count) for what, count in sums.items() if what.startswith("end:")}
    return GroupStats(
        group, since // HOUR_S * HOUR_S, until, useful_s=seconds("useful_s"), lost_s=seconds("lost_s"),
        waiting_s=seconds("waiting_s"), restoring_s=seconds("restoring_s"), syncing_s=seconds("syncing_s"),
        silent_s=seconds("silent_s"), ends={end: count for end, count in sorted(ends.items()) if count > 0},
    )  # fmt: skip
