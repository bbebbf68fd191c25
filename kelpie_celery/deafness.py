"""When a worker that is alive counts as deaf. Pure.

Three things must go on: the event loop turns, Redis answers the consumer while it may fetch, the pulse beats. Each has
a counter that somebody else moves; silence is how long a counter has stood still, summed up over looks at it. A look
adds twice the interval at most, so that a process that was frozen or starved begins anew. While Redis is away, all
three may stand still: that is an outage, and no deafness.

Limits: a look every few seconds, so a verdict comes up to two looks late.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Organ(StrEnum):
    """What can fall silent."""

    LOOP = "loop"
    CONSUMER = "consumer"
    PULSE = "pulse"


@dataclass(frozen=True)
class Seen:
    """One look at a worker.

    Attributes:
        at: Seconds since boot.
        beats: The loop's counter.
        answers: The consumer's.
        pulses: The pulse's.
        may_fetch: The gate is open, and there is a queue to listen to.
        reachable: Redis answers.
    """

    at: float
    beats: int
    answers: int
    pulses: int
    may_fetch: bool
    reachable: bool


@dataclass
class Deafness:
    """Sums up silences."""

    interval_s: float
    silent_s: dict[Organ, float] = field(default_factory=lambda: dict.fromkeys(Organ, 0.0))
    _before: Seen | None = None

    def look(self, seen: Seen) -> dict[Organ, float]:
        """How long each has been silent by now, in seconds."""
        before, self._before = self._before, seen
        if before is None or not seen.reachable:
            self.forget()
            return self.silent_s
        step_s = max(0.0, min(seen.at - before.at, 2 * self.interval_s))
        moved = {
            Organ.LOOP: seen.beats != before.beats,
            Organ.CONSUMER: seen.answers != before.answers or not seen.may_fetch,
            Organ.PULSE: seen.pulses != before.pulses,
        }
        for organ, has_moved in moved.items():
            self.silent_s[organ] = 0.0 if has_moved else self.silent_s[organ] + step_s
        return self.silent_s

    def forget(self) -> None:
        """Begin anew."""
        self.silent_s = dict.fromkeys(Organ, 0.0)
