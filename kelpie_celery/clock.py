"""The one place that reads a clock, so that tests can hold it in their hands.

Limits: ``boottime`` is Linux's CLOCK_BOOTTIME, which goes on while the machine is suspended; elsewhere it
falls back to the monotonic clock.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """What the code may ask of time. All values are seconds, as floats."""

    def now(self) -> float:
        """Wall clock: seconds since the epoch; may jump."""

    def boottime(self) -> float:
        """Seconds since boot; never goes back and counts suspended time."""

    def sleep(self, seconds: float) -> None:
        """Block this thread."""


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> float:
        """Wall clock: seconds since the epoch."""
        return time.time()

    def boottime(self) -> float:
        """Seconds since boot, suspended time included."""
        clock_id = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
        return time.clock_gettime(clock_id)

    def sleep(self, seconds: float) -> None:
        """Block this thread for ``seconds``."""
        time.sleep(seconds)


class ManualClock:
    """A clock that only moves when it is told to, for tests and simulations."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now, self._boot = now, 1000.0

    def now(self) -> float:
        """Wall clock: seconds since the epoch."""
        return self._now

    def boottime(self) -> float:
        """Seconds since boot."""
        return self._boot

    def sleep(self, seconds: float) -> None:
        """Advance at once."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        self._now += seconds
        self._boot += seconds

    def jump(self, seconds: float) -> None:
        """Move the wall clock alone, as an administrator or NTP would."""
        self._now += seconds


@dataclass(frozen=True)
class Instant:
    """One moment on both clocks, in seconds."""

    boot: float
    wall: float

    @classmethod
    def now(cls, clock: Clock) -> Instant:
        """This moment."""
        return cls(clock.boottime(), clock.now())

    def elapsed_s(self, clock: Clock) -> float:
        """Seconds since this moment, by the clock that moved further."""
        return max(clock.boottime() - self.boot, clock.now() - self.wall)
