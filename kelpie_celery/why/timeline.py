"""What a job's attempts were good for: time that a checkpoint or the end kept, time that was lost, time that is open.

The time of an attempt up to its last checkpoint is kept, as the next attempt goes on from there; what came after it is
lost when the attempt was interrupted or failed. Bringing down inputs and a checkpoint is part of an attempt's time.

Limits: a checkpoint counts from when it was stored, which is a little after its files were read; work that a rollback
took back counts as it did before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kelpie_celery.ledger.records import AttemptRecord, JobRecord
from kelpie_celery.lifecycle import Outcome, Status


@dataclass(frozen=True)
class Spent:
    """The time of one attempt, or of several, in seconds.

    Attributes:
        kept: A checkpoint, or the end of the job, holds what was done.
        lost: Nothing holds it.
        open: Of a running attempt: not held yet.
        unknown: Of an attempt that ended before the ledger recorded when its checkpoints were stored.
    """

    kept: float = 0.0
    lost: float = 0.0
    open: float = 0.0
    unknown: float = 0.0

    @property
    def all(self) -> float:
        """Together."""
        return self.kept + self.lost + self.open + self.unknown

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.kept + other.kept, self.lost + other.lost, self.open + other.open, self.unknown + other.unknown
        )


@dataclass(frozen=True)
class Stretch:
    """One attempt on the time line; ``begin_s`` counts from the first attempt's start."""

    attempt: AttemptRecord
    begin_s: float
    spent: Spent


def stretches(record: JobRecord, now: float) -> list[Stretch]:
    """The attempts in their order; empty for a job that never started."""
    if not record.attempts:
        return []
    first = record.attempts[0].started
    return [Stretch(one, max(0.0, one.started - first), spent(one, record, now)) for one in record.attempts]


def total(line: Sequence[Stretch]) -> Spent:
    """All attempts together."""
    return sum((one.spent for one in line), Spent())


def spent(attempt: AttemptRecord, record: JobRecord, now: float) -> Spent:
    """What the time of one attempt was good for."""
    end = attempt.ended if attempt.ended is not None else max(now, attempt.started)
    whole = max(0.0, end - attempt.started)
    if attempt.outcome == Outcome.COMPLETED:
        return Spent(kept=whole)
    if attempt.ended is not None and attempt.commits is None:
        return Spent(unknown=whole)
    stored = min(whole, max(0.0, (_stored(attempt, record) or attempt.started) - attempt.started))
    if attempt.ended is None:
        return Spent(kept=stored, open=whole - stored)
    return Spent(kept=stored, lost=whole - stored)


def _stored(attempt: AttemptRecord, record: JobRecord) -> float | None:
    """When the attempt's last checkpoint was stored; None for none."""
    runs = attempt.ended is None and record.status is Status.RUNNING
    if runs and attempt.n == record.attempt and record.committed_in == attempt.n:
        return record.committed
    return attempt.committed
