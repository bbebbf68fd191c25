"""The jobs of a simulation: those that are pending, by priority and age, and counts of the others.

Limits: jobs of a node that vanished count as running until their leases are over, as in the ledger.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush

from kelpie_celery.scaling.facts import QueueFacts
from kelpie_scaler.simulation.nodes import Job

_PRIORITIES = 10


class Backlog:
    """What the ledger would know.

    Attributes:
        waits_s: How long each job that ended had been pending, in all.
        running: Jobs with a lease.
    """

    def __init__(self, window_s: float) -> None:
        self.waits_s: list[float] = []
        self.pending = self.running = 0
        self._window_s = window_s
        self._queue: list[tuple[int, int, Job]] = []
        self._by_age: deque[tuple[float, int, Job]] = deque()
        self._by_priority = [0] * _PRIORITIES
        self._ended: deque[float] = deque()
        self._last_active_s: float | None = None

    @property
    def work(self) -> int:
        """Jobs that have not ended."""
        return self.pending + self.running

    def add(self, job: Job, queued_s: float) -> None:
        """A job is pending, and has waited since ``queued_s``."""
        job.pending, job.queued_s = True, queued_s
        heappush(self._queue, (job.priority, job.number, job))
        self._by_age.append((queued_s, job.tries, job))
        self._by_priority[job.priority] += 1
        self.pending += 1

    def claim(self, now_s: float) -> Job:
        """The next one; there has to be one."""
        job = heappop(self._queue)[2]
        job.pending = False
        job.tries += 1
        job.waited_s += now_s - job.queued_s
        self._by_priority[job.priority] -= 1
        self.pending -= 1
        self.running += 1
        return job

    def returned(self, job: Job, queued_s: float) -> None:
        """The lease of a job's node is over."""
        self.running -= 1
        self.add(job, queued_s)

    def ended(self, job: Job, now_s: float) -> None:
        """A job is completed."""
        self.running -= 1
        self.waits_s.append(job.waited_s)
        self._ended.append(now_s)
        if not self.work:
            self._last_active_s = now_s

    def ended_lately(self, now_s: float) -> int:
        """Jobs that ended within the window."""
        while self._ended and self._ended[0] < now_s - self._window_s:
            self._ended.popleft()
        return len(self._ended)

    def facts(self, now_s: float) -> QueueFacts:
        """As the ledger would tell them."""
        since_s = 0.0 if self.work else self._last_active_s
        idle_s = since_s if self.work or since_s is None else now_s - since_s
        by_priority = {n: count for n, count in enumerate(self._by_priority) if count} if self.pending else {}
        return QueueFacts(self.pending, 0, self.running, self._oldest_s(now_s), None, idle_s, by_priority)

    def _oldest_s(self, now_s: float) -> float:
        while self._by_age and not (self._by_age[0][2].pending and self._by_age[0][2].tries == self._by_age[0][1]):
            self._by_age.popleft()
        return now_s - self._by_age[0][0] if self._by_age else 0.0
