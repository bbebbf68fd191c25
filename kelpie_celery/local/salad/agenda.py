"""What is to happen later, in the order of its time."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable

from kelpie_celery.clock import Clock


class Agenda:
    """Timed actions; each runs once its time has come, and sees that time as the present.

    So a clock that is moved by an hour at once, as tests do, gives the same as one that is looked at all the time.
    Limits: an action cannot be taken back; whoever plans one makes it harmless when it has become pointless.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._acting_at: float | None = None

    @property
    def now_s(self) -> float:
        """The present: the time of the action that runs, else the clock's (seconds since boot)."""
        return self._clock.boottime() if self._acting_at is None else self._acting_at

    @property
    def wall_s(self) -> float:
        """The present as seconds since the epoch."""
        return self._clock.now() - (self._clock.boottime() - self.now_s)

    @property
    def wait_s(self) -> float:
        """Seconds until the next action is due; ``inf`` when there is none."""
        return max(0.0, self._heap[0][0] - self._clock.boottime()) if self._heap else math.inf

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Run ``action`` in ``delay_s`` from the present; never, for ``inf``."""
        if delay_s < math.inf:
            heapq.heappush(self._heap, (self.now_s + delay_s, next(self._order), action))

    def run_due(self) -> None:
        """Run what is due, and what becomes due by that."""
        now_s = self._clock.boottime()
        try:
            while self._heap and self._heap[0][0] <= now_s:
                self._acting_at, _, action = heapq.heappop(self._heap)
                action()
        finally:
            self._acting_at = None
