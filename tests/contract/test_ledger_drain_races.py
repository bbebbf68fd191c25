"""Drains against claims: whatever the order, no worker is told off as idle while it holds a job.

Random histories on the test's clock, and real threads against a real server.
"""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import random
import threading
from contextlib import suppress

import fakeredis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from kelpie_celery.errors import LeaseLost
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.types import FencingToken, Granted, Refused, WorkerSign
from kelpie_celery.lifecycle import Phase
from tests.contract.ledger_cases import GROUP, World, completed, interruption
from tests.contract.ledger_fixtures import ledger_valkey, real_redis  # noqa: F401

WORKERS = "abc"
STEP = st.one_of(
    st.tuples(st.sampled_from(["claim", "end", "renew", "give_back", "pulse", "bye"]), st.sampled_from(WORKERS)),
    st.tuples(st.sampled_from(["drain", "condemn", "stop"]), st.sampled_from("0123")),
    st.tuples(st.sampled_from(["submit", "reap", "reopen", "settle"]), st.just("")),
)


class History:
    """Workers that claim, renew, end, fall silent; a scaler that drains and takes back."""

    def __init__(self) -> None:
        self.w = World(fakeredis.FakeRedis(server=fakeredis.FakeServer()))
        self.w.ledger.watching = False
        self.held: dict[str, list[FencingToken]] = {name: [] for name in WORKERS}
        self.jobs = 0

    def step(self, what: str, who: str) -> None:
        getattr(self, what)(who)
        self.w.clock.advance(0.5)
        self.check(what)

    # -- the rule -------------------------------------------------------------------------------------------------

    def flag(self, name: str, field: str) -> bool:
        at = float(self.w.redis.hget(keys.worker(GROUP, name), field) or 0)
        return at > self.w.clock.now if field == "draining" else bool(at)

    def running(self, name: str) -> bool:
        """Whether a running job's record names the worker."""
        ids = self.w.ledger.ids(GROUP, "running", 0, -1)
        names = {self.w.redis.hget(keys.job(GROUP, job_id), "holder") for job_id in ids}
        return name.encode() in names

    def check(self, after: str) -> None:
        facts = self.w.ledger.workers(GROUP).facts
        idle = [
            n for n in WORKERS if self.flag(n, "draining") and not self.flag(n, "condemned") and not self.running(n)
        ]
        assert facts.draining_idle <= len(idle), after
        assert facts.busy == sum(self.running(n) or self._told_jobs(n) for n in self.counted()), after
        for name in WORKERS:
            taken_back = any(t.job_id in self.reaped for t in self.held[name])
            if self.flag(name, "draining") and not taken_back:
                assert not self.running(name), f"{name} drains and holds a job after {after}"

    def _told_jobs(self, name: str) -> bool:
        return int(self.w.redis.hget(keys.worker(GROUP, name), "jobs") or 0) > 0

    def counted(self) -> list[str]:
        alive_s = self.w.ledger.timings.machine_alive_s
        heard = {e.id for e in self.w.ledger.worker_entries(GROUP) if self.w.clock.now - e.heard_at <= alive_s}
        return [n for n in WORKERS if (n in heard or self.running(n)) and not self.flag(n, "condemned")]

    # -- what happens ---------------------------------------------------------------------------------------------

    reaped: frozenset[str] = frozenset()

    def submit(self, _: str) -> None:
        self.jobs += 1
        self.w.submit(f"j{self.jobs}")

    def claim(self, name: str) -> None:
        drains = self.flag(name, "draining")
        for job_id in self.w.ledger.ids(GROUP, "pending", 0, 0):
            nonce = f"{name}{self.w.clock.now}"
            answer = self.w.ledger.claim(job_id, nonce, f"m{name}", "w", None, may_run=True, holder=name)
            assert not (drains and isinstance(answer, Granted)), "a draining worker was granted a job"
            assert drains or self.closed() or not isinstance(answer, Refused), answer
            if isinstance(answer, Granted):
                self.held[name].append(answer.token)

    def closed(self) -> bool:
        return float(self.w.ledger.noted(GROUP, "closed") or 0) > self.w.clock.now

    def end(self, name: str) -> None:
        for token in self.held[name][:1]:
            with suppress(LeaseLost):
                self.w.ledger.end_attempt(token, completed())
            self.held[name].remove(token)

    def give_back(self, name: str) -> None:
        for token in self.held[name][:1]:
            with suppress(LeaseLost):
                self.w.ledger.end_attempt(token, interruption())
            self.held[name].remove(token)

    def renew(self, name: str) -> None:
        for token in list(self.held[name]):
            try:
                self.w.ledger.renew(token, Phase.EXECUTING)
            except LeaseLost:
                self.held[name].remove(token)

    def pulse(self, name: str) -> None:
        ids = [token.job_id for token in self.held[name]]
        settled = self.flag(name, "draining")
        self.w.ledger.pulse(GROUP, f"m{name}", ids, alive=True, sign=WorkerSign(name, "w", "i", 1, settled))

    def bye(self, name: str) -> None:
        self.w.ledger.goodbye(GROUP, f"m{name}", WorkerSign(name, "w", "i", 1))

    def drain(self, wanted: str) -> None:
        self.w.ledger.drain(GROUP, int(wanted))

    def condemn(self, most: str) -> None:
        before = {n for n in WORKERS if self.running(n)}
        self.w.ledger.condemn(GROUP, int(most), "shrink")
        assert not any(self.flag(n, "condemned") for n in before - self.took_back())

    def stop(self, most: str) -> None:
        self.w.ledger.condemn(GROUP, int(most), "stop")

    def took_back(self) -> set[str]:
        return {n for n in WORKERS if any(t.job_id in self.reaped for t in self.held[n])}

    def reopen(self, _: str) -> None:
        self.w.ledger.reopen(GROUP)

    def settle(self, _: str) -> None:
        self.w.ledger.workers(GROUP, settled=True)

    def reap(self, _: str) -> None:
        before = set(self.w.ledger.ids(GROUP, "running", 0, -1))
        self.w.wait(31)
        self.reaped |= before - set(self.w.ledger.ids(GROUP, "running", 0, -1))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEP, max_size=40))
def test_in_any_history_no_worker_drains_and_holds_a_job(steps: list[tuple[str, str]]) -> None:
    history = History()
    for name in WORKERS:
        history.step("pulse", name)
    history.step("submit", "")
    for what, who in steps:
        history.step(what, who)


class Race:
    """Threads that claim and end jobs as fast as they can, while another one drains and takes back."""

    def __init__(self, redis: Redis, seed: int, jobs: int) -> None:
        self.redis, self.ledger, self.world = redis, Ledger(redis), World(redis)
        self.names = [f"w{n}" for n in range(6)]
        for n in range(jobs):
            Ledger.submit(self.ledger, self.world.new(f"j{n}", heartbeat_s=300.0))
        self.dice = random.Random(seed)
        self.broken: list[str] = []
        self.claimed: list[str] = []
        self.refused = 0
        self.over = threading.Event()

    def run(self) -> None:
        threads = [threading.Thread(target=self.work, args=(name,)) for name in self.names]
        scaler = threading.Thread(target=self.scale)
        for thread in (*threads, scaler):
            thread.start()
        for thread in threads:
            thread.join(60)
        self.over.set()
        scaler.join(60)

    def work(self, name: str) -> None:
        settled = False
        while self.ledger.counts(GROUP).pending:
            sign = WorkerSign(name, name, "", 1, settled=settled)
            settled = self.ledger.pulse(GROUP, name, [], alive=True, sign=sign).draining
            popped = self.world.pop()
            if popped is not None:
                self.claim(name, popped[0])

    def claim(self, name: str, job_id: str) -> None:
        nonce = f"{name}{self.dice.random()}"
        answer = self.ledger.claim(job_id, nonce, name, name, None, may_run=True, holder=name)
        if not isinstance(answer, Granted):
            assert answer == Refused("draining"), answer
            self.refused += 1
            return
        for _ in range(3):
            if self.redis.hexists(keys.worker(GROUP, name), "draining"):
                self.broken.append(f"{name} was drained while it held {job_id}")
        self.claimed.append(job_id)
        self.ledger.end_attempt(answer.token, completed())

    def scale(self) -> None:
        while not self.over.is_set():
            self.ledger.drain(GROUP, self.dice.randrange(len(self.names)))


@pytest.mark.parametrize("seed", range(3))
def test_threads_that_claim_and_a_scaler_that_drains_never_meet_on_one_worker(real_redis: Redis, seed: int) -> None:
    race = Race(real_redis, seed, jobs=200)
    race.run()
    assert race.broken == []
    assert sorted(race.claimed) == sorted(f"j{n}" for n in range(200)), "every job ran, and ran once"
    assert race.refused, "no drain met a claim: the test has tried nothing"
