"""When to start a process again that ended by itself: soon at first, then less and less often."""

from __future__ import annotations

from dataclasses import dataclass

from kelpie_celery.clock import Clock

FIRST_S = 0.5
LONGEST_S = 30.0
HEALTHY_S = 60.0  # after this long a process counts as well again


@dataclass
class _State:
    deaths: int
    due: float


class Restarts:
    """The backoff of each process, by name: 0.5 s, 1 s, 2 s ... 30 s, and from the start after a good minute."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._states: dict[str, _State] = {}
        self._started: dict[str, float] = {}

    def started(self, name: str) -> None:
        """A process was started (again)."""
        self._started[name] = self._clock.boottime()
        if name in self._states:
            self._states[name].due = 0.0

    def died(self, name: str) -> float:
        """A process ended.

        Returns:
            Seconds to wait before its next start.
        """
        now = self._clock.boottime()
        lived_s = now - self._started.get(name, now)
        deaths = self._states[name].deaths if name in self._states and lived_s < HEALTHY_S else 0
        delay_s = min(LONGEST_S, FIRST_S * 2.0**deaths)
        self._states[name] = _State(deaths + 1, now + delay_s)
        return delay_s

    def waiting(self, name: str) -> bool:
        """Whether its death is known and its next start not made yet."""
        return name in self._states and self._states[name].due > 0.0

    def due(self, name: str) -> bool:
        """Whether it is time to start it again."""
        return self.waiting(name) and self._clock.boottime() >= self._states[name].due
