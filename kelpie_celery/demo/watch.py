"""What is seen of the jobs while they run, and how much work was done more than once.

The programs say with each report how far they are and where they resumed. What an attempt had done, less where the
next one resumed, was lost with its machine and done again.

Limits: a report may be half a second old when its machine dies, so the work that was redone is a little more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from kelpie_celery.ledger.records import JobRecord
from kelpie_celery.lifecycle import Status

_MESSAGE = re.compile(r"(\d+)/(\d+) \w+, from (\d+)")


@dataclass
class Seen:
    """What one attempt reported: the step it resumed at and the last one it reached."""

    resumed_at: int
    reached: int


@dataclass
class Steps:
    """The reports of one job by attempt."""

    total: int = 0
    attempts: dict[int, Seen] = field(default_factory=dict)

    def take(self, attempt: int, message: str) -> None:
        """Note a report; one that is not of our programs' form is left out."""
        match = _MESSAGE.fullmatch(message)
        if match:
            step, self.total, resumed_at = (int(number) for number in match.groups())
            seen = self.attempts.setdefault(attempt, Seen(resumed_at, step))
            seen.reached = max(seen.reached, step)

    @property
    def redone(self) -> int:
        """Steps that were done again."""
        in_order = [seen for _, seen in sorted(self.attempts.items())]
        return sum(max(0, before.reached - after.resumed_at) for before, after in pairwise(in_order))

    @property
    def redone_share(self) -> float:
        """The same, in parts of the whole job."""
        return self.redone / self.total if self.total else 0.0


class Watch:
    """Collects the reports of all jobs."""

    def __init__(self) -> None:
        self.steps: dict[str, Steps] = {}

    def look(self, records: Mapping[str, JobRecord]) -> None:
        """Take what the records say now."""
        for name, record in records.items():
            steps = self.steps.setdefault(name, Steps())
            if record.status is Status.RUNNING and record.progress and record.progress.message:
                steps.take(record.attempt, record.progress.message)

    def redone_s(self, reference_s: Mapping[str, float]) -> float:
        """Seconds of work that were done again, at the pace of the uninterrupted runs."""
        return sum(steps.redone_share * reference_s.get(name, 0.0) for name, steps in self.steps.items())


def interruptions(records: Iterable[JobRecord]) -> dict[str, int]:
    """How many attempts were interrupted, by the ledger's reason."""
    counted: dict[str, int] = {}
    for attempt in (attempt for record in records for attempt in record.attempts):
        if attempt.outcome == "interruption" and attempt.reason:
            counted[attempt.reason] = counted.get(attempt.reason, 0) + 1
    return counted
