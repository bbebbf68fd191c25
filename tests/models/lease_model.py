"""Random histories of leases: claims, heartbeats, the reaper and the reconciler, second by second.

Messages are lost and doubled, workers freeze or are suspended, Redis is away, its clock jumps. What the rules are is in
``docs/internals.md``; here each can be switched off. Limits: a call takes no time; a worker has one slot.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

HEARTBEAT_S, LEASE_S, MARGIN_S = 5, 20, 2
WORKERS = 3
FAULTS_UNTIL_S = 250
"""Then they stop, and everything has to end."""
PATIENCE_S = 1500


@dataclass(frozen=True)
class Rules:
    """The rules of leases and messages."""

    fenced: bool = True  # the ledger hears only the attempt that owns the job
    amnesty: bool = True  # nothing is reaped for one lease after an outage, or a jump of Redis's clock
    mute: bool = True  # without Redis an attempt past its trust window computes on, and makes nothing visible
    late_renewal: bool = True  # an expired lease is renewed by its own attempt while nobody else has claimed
    boot_clock: bool = True  # the trust window counts the time in which the machine was suspended
    reconcile: bool = True  # lost messages are published again
    watermark: bool = True  # those only that are older than the newest that anybody received


@dataclass(frozen=True)
class Scenario:
    """What goes wrong; chances are for each message, or for each worker and second."""

    jobs: int = 6
    runs_s: tuple[int, int] = (5, 60)
    lose: float = 0.0
    double: float = 0.0
    freeze: float = 0.0
    suspend: bool = False
    outage_s: int = 0
    jump: bool = False


@dataclass
class Job:
    """A job in the ledger."""

    status: str = "pending"
    attempt: int = 0
    expires: float = 0.0
    published: int = 0
    ended: int = 0


@dataclass
class Worker:
    """A worker, and the attempt that it runs."""

    job: int | None = None
    attempt: int = 0
    trusted_from: int = 0
    next_heartbeat: int = 0
    left_s: int = 0
    done_s: int = 0
    frozen_s: int = 0


@dataclass
class Outcome:
    """How a history went."""

    stuck: int = 0
    overlaps: int = 0
    ended_twice: int = 0
    interruptions: int = 0
    published: int = 0
    redone_s: int = 0


@dataclass
class History:
    """One seeded history."""

    seed: int
    rules: Rules
    scenario: Scenario
    out: Outcome = field(default_factory=Outcome)

    def __post_init__(self) -> None:
        rng, s = random.Random(self.seed), self.scenario
        self.rng = rng
        self.jobs = [Job() for _ in range(s.jobs)]
        self.workers = [Worker() for _ in range(WORKERS)]
        self.queue: deque[tuple[int, int]] = deque()
        starts = rng.randint(20, 100)
        self.away = range(starts, starts + s.outage_s)
        self.jumps_at = rng.randint(20, 200) if s.jump else -1
        self.now, self.clock_off_s, self.newest, self.amnesty_until = 0, 0, -1, 0
        self.last_look = (0, 0)

    @property
    def redis_now(self) -> int:
        return self.now + self.clock_off_s

    @property
    def up(self) -> bool:
        return self.now not in self.away

    def chance(self, probability: float) -> bool:
        return self.now < FAULTS_UNTIL_S and self.rng.random() < probability

    def play(self) -> Outcome:
        for n in range(len(self.jobs)):
            self.publish(n)
        while any(job.status != "ended" for job in self.jobs) and self.now < PATIENCE_S:
            self.now += 1
            if self.now == self.jumps_at:
                self.clock_off_s += self.rng.choice([-40, 40, 120])
            for worker in self.workers:
                self.work(worker)
            self.count_overlaps()
            if self.up:
                self.reap()
                if self.now % 3 == 0:
                    self.reconcile()
        self.out.stuck = sum(job.status != "ended" for job in self.jobs)
        self.out.ended_twice = sum(job.ended > 1 for job in self.jobs)
        return self.out

    def publish(self, n: int) -> None:
        self.jobs[n].published = self.now
        self.out.published += 1
        if self.chance(self.scenario.lose):
            return
        self.queue.append((n, self.now))
        if self.chance(self.scenario.double):
            self.queue.append((n, self.now))

    # -- a worker ----------------------------------------------------------------------------------------------------

    def work(self, worker: Worker) -> None:
        if worker.frozen_s == 0 and self.chance(self.scenario.freeze):
            worker.frozen_s = self.rng.choice([7, 23, 50])
        if worker.frozen_s:
            worker.frozen_s -= 1
            if self.scenario.suspend and not self.rules.boot_clock:  # its clock stands still
                worker.trusted_from += 1
                worker.next_heartbeat += 1
        elif worker.job is None:
            self.receive(worker)
        else:
            self.compute(worker, self.jobs[worker.job])

    def trusts(self, worker: Worker) -> bool:
        return self.now - worker.trusted_from < LEASE_S - MARGIN_S

    def receive(self, worker: Worker) -> None:
        if not self.up or not self.queue:
            return
        n, published = self.queue.popleft()
        self.newest = max(self.newest, published)
        job = self.jobs[n]
        if self.chance(self.scenario.lose) or job.status != "pending":  # killed before the claim; or a duplicate
            return
        job.status, job.attempt, job.expires = "running", job.attempt + 1, self.redis_now + LEASE_S
        worker.job, worker.attempt, worker.left_s, worker.done_s = (
            n,
            job.attempt,
            self.rng.randint(*self.scenario.runs_s),
            0,
        )
        worker.trusted_from, worker.next_heartbeat = self.now, self.now + HEARTBEAT_S

    def compute(self, worker: Worker, job: Job) -> None:
        if self.now >= worker.next_heartbeat:
            if not self.up:  # it tries again, some time in the next seconds
                worker.next_heartbeat = self.now + self.rng.randint(1, HEARTBEAT_S)
            elif not self.renew(worker, job):
                return
        if not self.trusts(worker) and not self.rules.mute:
            self.give_up(worker)
            return
        worker.left_s, worker.done_s = worker.left_s - 1, worker.done_s + 1
        if worker.left_s <= 0 and self.up and self.trusts(worker):
            if self.owns(worker, job) or not self.rules.fenced:
                job.status, job.ended = "ended", job.ended + 1
            worker.job = None

    def owns(self, worker: Worker, job: Job) -> bool:
        taken_back = self.rules.late_renewal and job.status == "pending"  # by the reaper; nobody has claimed it
        return job.attempt == worker.attempt and (job.status == "running" or taken_back)

    def renew(self, worker: Worker, job: Job) -> bool:
        if not self.owns(worker, job) or not (job.expires > self.redis_now or self.rules.late_renewal):
            if self.rules.fenced:
                self.give_up(worker)
                return False
        elif job.status == "pending":
            self.out.interruptions -= 1
        if self.owns(worker, job):
            job.status, job.expires = "running", self.redis_now + LEASE_S
        worker.trusted_from, worker.next_heartbeat = self.now, self.now + HEARTBEAT_S
        return True

    def give_up(self, worker: Worker) -> None:
        self.out.redone_s += worker.done_s
        worker.job = None

    def count_overlaps(self) -> None:
        trusting = [w.job for w in self.workers if w.job is not None and not w.frozen_s and self.trusts(w)]
        self.out.overlaps += len(trusting) > len(set(trusting))

    # -- maintenance -------------------------------------------------------------------------------------------------

    def reap(self) -> None:
        redis_s, own_s = self.redis_now - self.last_look[0], self.now - self.last_look[1]
        if self.rules.amnesty and (own_s > 2 or abs(redis_s - own_s) > 2):  # nobody could look; or the clock jumped
            self.amnesty_until = self.now + LEASE_S + MARGIN_S
        self.last_look = (self.redis_now, self.now)
        for n, job in enumerate(self.jobs):
            if job.status == "running" and job.expires <= self.redis_now and self.now >= self.amnesty_until:
                job.status = "pending"
                self.out.interruptions += 1
                self.publish(n)

    def reconcile(self) -> None:
        if not self.rules.reconcile:
            return
        for n, job in enumerate(self.jobs):
            passed = job.published < self.newest - 1 or (not self.queue and self.now - job.published > 2)
            old = self.now - job.published > 10
            if job.status == "pending" and (passed if self.rules.watermark else old):
                self.publish(n)


def history(seed: int, rules: Rules, scenario: Scenario) -> Outcome:
    """One history."""
    return History(seed, rules, scenario).play()
