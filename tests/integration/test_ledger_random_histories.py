"""Random histories of the real ledger on a real Valkey: what must hold whatever is lost, doubled, late or dead.

Each seed is one history of some minutes on a clock that the test holds: workers claim, renew, commit, end, freeze, die
silently and come back as ghosts; users cancel and roll back; messages are lost, doubled and deleted; Redis is away, is
restarted, loses its last moments. After every single call all indexes are compared with the records, every change of a
status with the table, and every line of commits with what it was.
Then the faults stop, and everything has to end within a bounded time.
"""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import copy
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from redis import Redis

from kelpie_celery.errors import LeaseLost, LineMoved, PrefixHeld
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.types import Ended, Ending, FencingToken, Granted
from kelpie_celery.lifecycle import Phase, Status
from tests.contract.ledger_cases import (
    GROUP,
    LONG_UP,
    World,
    again,
    canceled,
    completed,
    failure,
    interruption,
)
from tests.contract.ledger_fixtures import ledger_valkey, real_redis  # noqa: F401
from tests.integration.ledger_commits import Restored, Storage

PRIORITIES = (0, 4)
MACHINES = 4
STEPS = 220


@dataclass
class Worker:
    """One worker process with one slot, or the ghost of one that is thought to be dead."""

    machine: str
    token: FencingToken | None = None
    trust_until: float = 0.0
    frozen_until: float = 0.0
    restored: Restored | None = None


@dataclass
class Belief:
    """What the ledger has told the outside world so far."""

    granted: dict[str, list[FencingToken]] = field(default_factory=lambda: defaultdict(list))
    released: set[FencingToken] = field(default_factory=set)
    fenced: set[FencingToken] = field(default_factory=set)
    over: dict[str, str] = field(default_factory=dict)
    cancels: set[str] = field(default_factory=set)
    jobs: list[str] = field(default_factory=list)


class History:
    """One seeded history."""

    def __init__(self, redis: Redis, seed: int, *, power_loss: bool = False) -> None:
        self.rng = random.Random(seed)
        self.redis, self.w = redis, World(redis)
        self.workers = [Worker(f"m{n}") for n in range(MACHINES)]
        self.ghosts: list[Worker] = []
        self.belief = Belief()
        self.storage = Storage(self.w, self.rng)
        self.power_loss = power_loss
        self.saved: tuple[dict[str, bytes], Belief] | None = None
        self.away_until = 0.0
        self.saw_outage = False
        self.up_since = -LONG_UP
        self.faults = True

    @property
    def now(self) -> float:
        return self.w.clock.now

    def chance(self, probability: float) -> bool:
        return self.faults and self.rng.random() < probability

    # -- what happens ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        actions: list[tuple[int, Callable[[], None]]] = [
            (6, self.submit), (40, self.work), (12, self.tick), (12, self.haunt), (3, self.cancel), (3, self.freeze),
            (5, self.die), (4, self.lose_message), (3, self.double_message), (1, self.delete_queue), (1, self.go_away),
            (2, self.power_cut), (4, self.save), (4, self.roll_back),
        ]  # fmt: skip
        weights, calls = zip(*actions, strict=True)
        for _ in range(STEPS):
            self.w.clock.advance(self.rng.choice([0.0, 0.2, 1.0, 2.0, 6.0]))
            action = self.rng.choices(calls, weights)[0]
            if self.now >= self.away_until:
                action()
            self.at_most_one_is_trusted()
        self.recover()

    def recover(self) -> None:
        """The faults stop; everything ends."""
        self.faults, self.away_until = False, 0.0
        for _ in range(700):
            self.w.clock.advance(1.5)
            # A server hands a message to the client that has waited longest: no worker is always first.
            for worker in self.rng.sample(self.workers, MACHINES):
                worker.frozen_until = 0.0
                self.step_of(worker)
            self.tick()
            self.at_most_one_is_trusted()
            if all(self.settled(job_id) for job_id in self.belief.jobs):
                self.judge_the_end()
                return
        left = {j: self.w.ledger.get(j) for j in self.belief.jobs if not self.settled(j)}
        pytest.fail(f"not settled: {left}")

    def judge_the_end(self) -> None:
        for job_id in self.belief.jobs:
            record = self.w.ledger.get(job_id)
            if job_id in self.belief.cancels:
                assert record.status is Status.CANCELED, f"{job_id} was to be canceled, and is {record.status}"
            elif record.status is not Status.CANCELED and record.attempt <= 50:
                outcomes = [a.outcome for a in record.attempts]
                assert record.num_interruptions == outcomes.count("interruption")
                assert record.num_failures == outcomes.count("failure")

    def settled(self, job_id: str) -> bool:
        status = self.w.ledger.status_of(job_id)
        assert status is not None, f"{job_id} is lost"
        return status.ended and self.w.field(job_id, "celery_done") == "1"

    def submit(self) -> None:
        job_id = f"job{len(self.belief.jobs)}"
        self.w.submit(
            job_id, priority=self.rng.choice(PRIORITIES), max_failures=self.rng.choice([1, 3]),
            heartbeat_s=self.rng.choice([5.0, 20.0]), delay_s=self.rng.choice([0.0, 0.0, 4.0]),
        )  # fmt: skip
        self.belief.jobs.append(job_id)

    def cancel(self) -> None:
        if self.belief.jobs and self.rng.random() < 0.5:
            job_id = self.rng.choice(self.belief.jobs)
            answer = self.w.ledger.cancel(job_id)
            if answer == "canceling":
                self.belief.cancels.add(job_id)
            elif job_id in self.belief.over:
                assert answer == self.belief.over[job_id], "an ended job stays what it is"

    def roll_back(self) -> None:
        """A user goes back to an older commit: whoever ran the job, or might have taken it back, is fenced."""
        busy = [worker.token.job_id for worker in self.workers if worker.token]
        if not self.belief.jobs:
            return
        job_id = self.rng.choice(busy if busy and self.rng.random() < 0.7 else self.belief.jobs)
        before = self.w.ledger.status_of(job_id)
        canceling = before is Status.RUNNING and job_id in self.belief.cancels
        if self.storage.rollback(job_id) and before is not None and not before.ended and not canceling:
            self.belief.fenced.update(self.belief.granted[job_id])

    def tick(self) -> None:
        done = self.w.tick(uptime_s=self.now - self.up_since, saw_outage=self.saw_outage, fresh=self.chance(0.1))
        self.saw_outage = False
        for job_id in done.outbox:
            self.tell_celery(job_id)

    def tell_celery(self, job_id: str) -> None:
        if self.chance(0.2):
            return
        answer = self.w.ask(job_id, may_run=False)
        if isinstance(answer, Ended):
            known = self.belief.over.setdefault(job_id, str(answer.status))
            assert answer.status == known, f"{job_id} was {known}, and is replayed as {answer.status}"
            self.w.ledger.celery_done(job_id)

    # -- workers -----------------------------------------------------------------------------------------------------

    def work(self) -> None:
        worker = self.rng.choice(self.workers)
        if self.now >= worker.frozen_until:
            self.step_of(worker)

    def step_of(self, worker: Worker) -> None:
        if self.rng.random() < 0.3:
            self.w.alive(worker.machine)
        if worker.token is None:
            self.receive(worker)
        elif self.now >= worker.trust_until or self.rng.random() < 0.5:
            self.renew(worker)
        else:
            self.act(worker)

    def receive(self, worker: Worker) -> None:
        for priority in PRIORITIES:
            got = self.w.pop(priority)
            if got is None:
                continue
            job_id, published = got
            if not self.chance(0.1):  # the worker is killed between taking the message and claiming
                self.claim(worker, job_id, published)
            return

    def claim(self, worker: Worker, job_id: str, published: float) -> None:
        nonce = f"{worker.machine}-{self.rng.getrandbits(64):x}"
        asked_at = self.now
        answer = self.w.ask(job_id, worker.machine, nonce, published)
        if self.chance(0.25):  # its answer is lost, and asked for again
            self.note(answer, job_id)
            self.w.clock.advance(self.rng.choice([0.5, 12.0, 27.0]))
            asked_at = self.now
            answer = self.w.ask(job_id, worker.machine, nonce, published)
        self.note(answer, job_id)
        if isinstance(answer, Granted):
            worker.token, worker.trust_until = answer.token, asked_at + answer.lease_s
            worker.restored = self.storage.restore(answer.token)

    def note(self, answer: Any, job_id: str) -> None:
        if isinstance(answer, Granted):
            assert job_id not in self.belief.over, f"{job_id} was granted after its end"
            if answer.token not in self.belief.granted[job_id][-1:]:
                self.belief.granted[job_id].append(answer.token)
        if isinstance(answer, Ended):
            self.tell_celery(job_id)

    def renew(self, worker: Worker) -> None:
        token, asked_at = worker.token, self.now
        assert token is not None
        try:
            renewal = self.w.ledger.renew(token, self.rng.choice([Phase.EXECUTING, Phase.UPLOADING]))
        except LeaseLost:
            worker.token = None
            self.refused(token)
            return
        self.accepted(token)
        worker.trust_until = asked_at + renewal.lease_s
        assert renewal.cancel == (token.job_id in self.belief.cancels)

    def act(self, worker: Worker) -> None:
        token = worker.token
        assert token is not None
        kind = self.rng.choices(["commit", "end", "nothing"], [4, 2, 2 if self.faults else 0])[0]
        try:
            if kind == "commit":
                self.commit(worker, token)
            elif kind == "end":
                self.end(token)
                worker.token = None
        except LeaseLost:
            worker.token = None
            self.refused(token)

    def commit(self, worker: Worker, token: FencingToken) -> None:
        if worker.restored is None:
            self.w.ledger.commit(token, [], {"n": self.rng.randrange(1000)})
            self.accepted(token)
            return
        late = self.chance(0.3)
        try:
            self.storage.commit(token, worker.restored, late=late)
        except (PrefixHeld, LineMoved) as e:
            if not late:
                self.storage.believe_refused(token, e, worker.restored)
                worker.token = None
                self.settle(token, failure(delay_s=2))
        else:
            self.accepted(token)

    def end(self, token: FencingToken) -> None:
        endings = (
            [completed(1), failure(delay_s=2), interruption(), again(), canceled()] if self.faults else [completed(1)]
        )
        ending: Ending = self.rng.choice(endings)
        if token.job_id not in self.belief.cancels and ending.outcome == "canceled":
            ending = failure()
        self.settle(token, ending)

    def settle(self, token: FencingToken, ending: Ending) -> None:
        status = self.w.ledger.end_attempt(token, ending)
        self.accepted(token)
        if status == "cancel":
            status = self.w.ledger.end_attempt(token, canceled())
        self.belief.released.add(token)
        if self.chance(0.2):  # the answer was lost
            assert self.w.ledger.end_attempt(token, ending if status != "canceled" else canceled()) == status
        if token.job_id in self.belief.cancels:
            assert status == "canceled"
        if Status(status).ended:
            self.belief.over[token.job_id] = status
            if not self.chance(0.3):  # killed between the ledger's end and Celery's bookkeeping
                self.w.ledger.celery_done(token.job_id)
        elif not self.chance(0.3):  # killed between giving back and publishing
            self.w.ledger.publish(token)

    def accepted(self, token: FencingToken) -> None:
        """The ledger let this attempt pass its fence: it has to be the one that it last granted the job to."""
        assert self.belief.granted[token.job_id][-1:] == [token], f"{token} passed, {self.belief.granted[token.job_id]}"
        assert token not in self.belief.released, f"{token} acted after it gave its job back"
        assert token not in self.belief.fenced, f"{token} acted after a rollback"
        assert token.job_id not in self.belief.over, f"{token} acted after the end of its job"

    def refused(self, token: FencingToken) -> None:
        """An attempt was refused, however late it came: somebody else holds the job, or it has ended."""
        if token in self.belief.fenced:
            return
        if self.belief.granted[token.job_id][-1:] == [token] and token not in self.belief.released:
            status = self.w.ledger.status_of(token.job_id)
            assert status is None or status.ended, f"{token} lost its {status} job to nobody"

    def haunt(self) -> None:
        """Somebody thought dead comes back: a frozen node, a process behind a network that failed."""
        haunting = [ghost for ghost in self.ghosts if ghost.token is not None]
        if self.belief.released and self.rng.random() < 0.3:
            token = self.rng.choice(sorted(self.belief.released, key=str))
            self.renew(Worker("m-released", token))
        elif haunting:
            ghost = self.rng.choice(haunting)
            # One that does not even look at its clock is harmless all the same.
            (self.renew if self.rng.random() < 0.4 else self.act)(ghost)

    # -- faults ------------------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        self.rng.choice(self.workers).frozen_until = self.now + self.rng.choice([5, 30, 90])

    def die(self) -> None:
        n = self.rng.randrange(MACHINES)
        self.ghosts.append(self.workers[n])
        self.workers[n] = Worker(self.workers[n].machine)

    def lose_message(self) -> None:
        self.redis.rpop(keys.queue_list(GROUP, self.rng.choice(PRIORITIES)))

    def double_message(self) -> None:
        name = keys.queue_list(GROUP, self.rng.choice(PRIORITIES))
        message = self.redis.lindex(name, -1)
        if message:
            self.redis.lpush(name, message)

    def delete_queue(self) -> None:
        self.redis.delete(keys.queue_list(GROUP, self.rng.choice(PRIORITIES)))

    def go_away(self) -> None:
        """Nobody reaches Redis for a while; sometimes it was restarted."""
        self.away_until = self.now + self.rng.choice([4, 20, 60, 200])
        self.saw_outage = True
        if self.rng.random() < 0.5:
            self.up_since = self.away_until

    def save(self) -> None:
        if self.power_loss:
            found = [str(key) for key in self.redis.scan_iter("kelpie*", count=1000)]
            raw = Redis.from_url(_url(self.redis))
            self.saved = ({key: raw.dump(key) or b"" for key in found}, copy.deepcopy(self.belief))
            raw.close()

    def power_cut(self) -> None:
        """Redis comes back without its last moments: it hands out numbers a second time, and forgets what it said."""
        if self.saved is None:
            return
        dumps, belief = self.saved
        raw = Redis.from_url(_url(self.redis))
        for key in self.redis.scan_iter("kelpie*", count=1000):
            raw.delete(key)
        for key, value in dumps.items():
            raw.restore(key, 0, value)
        raw.close()
        jobs = self.belief.jobs
        self.belief = copy.deepcopy(belief)
        for job_id in jobs[len(self.belief.jobs) :]:  # their clients are told nothing, and submit again
            self.belief.jobs.append(job_id)
        self.w.ledger.forget_what_was_seen()
        for job_id in self.belief.jobs[len(belief.jobs) :]:
            self.w.submit(job_id)
        self.up_since = self.now
        if self.rng.random() < 0.7:  # those who held jobs come back later than others claim them
            for n, worker in enumerate(self.workers):
                self.ghosts.append(worker)
                self.workers[n] = Worker(worker.machine)

    # -- judgement ---------------------------------------------------------------------------------------------------

    def at_most_one_is_trusted(self) -> None:
        """P1: of all who ever held a job, one at most may believe that its lease still runs.

        A power cut that takes a second of Redis's memory may break this for one lease; the fence holds all the same.
        """
        if self.power_loss:
            return
        believers: dict[str, list[Worker]] = defaultdict(list)
        for worker in (*self.workers, *self.ghosts):
            if worker.token is not None and self.now < worker.trust_until:
                believers[worker.token.job_id].append(worker)
        for job_id, trusted in believers.items():
            assert len(trusted) == 1, f"{job_id}: {trusted}"


def _url(redis: Redis) -> str:
    at = redis.connection_pool.connection_kwargs
    return f"redis://{at['host']}:{at['port']}/{at.get('db', 0)}"


@pytest.mark.parametrize("seed", range(24))
def test_whatever_is_lost_doubled_late_or_dead_every_job_ends_once(real_redis: Redis, seed: int) -> None:
    History(real_redis, seed).run()


@pytest.mark.parametrize("seed", range(1000, 1008))
def test_a_redis_that_loses_its_last_moments_repeats_work_and_tears_nothing(real_redis: Redis, seed: int) -> None:
    History(real_redis, seed, power_loss=True).run()
