"""The server's clock jumps by an hour, or the server is away for ten minutes: nothing waits, nobody counts as dead."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from redis import Redis

from kelpie_celery.clock import ManualClock
from kelpie_celery.errors import LedgerUnavailable
from kelpie_celery.ledger.types import Ended, FencingToken, Granted
from kelpie_celery.lifecycle import Phase, Status
from kelpie_celery.maintenance import Maintainer
from tests.contract.ledger_cases import GROUP, LONG_UP, World, completed, failure
from tests.contract.ledger_fixtures import any_redis, ledger_valkey, real_redis, w  # noqa: F401

HOUR_S = 3600.0


def granted(w: World) -> Granted:
    claim = w.ask(machine=f"m{w.clock.now}")
    assert isinstance(claim, Granted)
    return claim


def put_back(w: World) -> None:
    w.wait(2)  # a tick under the old clock
    w.clock.set(w.clock.now - HOUR_S)
    w.wait(2)


def test_a_dead_attempt_is_reaped_a_lease_later(w: World) -> None:
    w.submit()
    w.start()
    put_back(w)
    assert sum(w.wait(10).reaped for _ in range(8)) == 1
    assert w.ledger.get("j1").status is Status.PENDING


def test_a_live_attempt_goes_on(w: World) -> None:
    w.submit()
    token = w.start()
    put_back(w)
    for _ in range(10):
        w.ledger.renew(token, Phase.EXECUTING)
        assert w.wait(10).reaped == 0
    assert w.ledger.get("j1").num_interruptions == 0


def test_a_delayed_retry_is_due_when_it_was_to_be(w: World) -> None:
    w.submit()
    w.ledger.end_attempt(w.start(), replace(failure(), delay_s=30.0))
    put_back(w)
    assert sum(w.wait(10).promoted for _ in range(4)) == 1


def test_a_lost_message_is_published_again(w: World) -> None:
    w.submit()
    w.pop()
    put_back(w)
    assert sum(w.wait(3).republished for _ in range(4)) >= 1


def test_an_open_outbox_is_replayed(w: World) -> None:
    w.submit()
    w.ledger.end_attempt(w.start(), completed())
    put_back(w)
    assert any("j1" in w.wait(5).outbox for _ in range(4))
    claim = w.ledger.claim("j1", "replay", "m", "w", None, may_run=False)
    assert isinstance(claim, Ended)


def test_the_running_time_of_all_attempts_is_added_up_and_waiting_is_not(w: World) -> None:
    w.submit()
    token = w.start()
    w.ledger.renew(token, Phase.EXECUTING)
    w.wait(20)
    w.ledger.renew(token, Phase.EXECUTING)
    w.wait(300)  # a silent death; it counts up to the last sign of life
    w.wait(HOUR_S)
    again = granted(w)
    assert again.ran_s == 20
    w.ledger.renew(again.token, Phase.EXECUTING)
    w.wait(5)
    w.ledger.end_attempt(again.token, replace(failure(), delay_s=0.0))
    assert granted(w).ran_s == 25


# -- what the maintainers of a group make of it -------------------------------------------------------------------


class Group:
    """Maintenance by two processes, and the heartbeats of those who live; the server's clock and ours."""

    def __init__(self, w: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.w, self.clock, self.away = w, ManualClock(), False
        self.alive: list[FencingToken] = []
        monkeypatch.setattr(w.ledger, "uptime_s", self._uptime)
        app: Any = SimpleNamespace(ledger=w.ledger)
        self._maintainers = [Maintainer(app, name, self.clock) for name in ("worker", "control")]

    def _uptime(self) -> float:
        if self.away:
            raise LedgerUnavailable("away")
        return LONG_UP

    def live(self, seconds: float) -> int:
        """Both clocks go on together; how many were reaped."""
        reaped = 0
        for _ in range(round(seconds)):
            self.clock.advance(1)
            self.w.clock.advance(1)
            for maintainer in self._maintainers:
                try:
                    tick = maintainer.tick(GROUP)
                except LedgerUnavailable:
                    continue
                reaped += tick.reaped if tick else 0
            if not self.away and self.w.clock.now % 10 < 1:
                for token in self.alive:
                    self.w.ledger.renew(token, Phase.EXECUTING)
        return reaped

    def start(self, *job_ids: str) -> list[FencingToken]:
        for job_id in job_ids:
            self.w.submit(job_id)
        return [self.w.start(job_id) for job_id in job_ids]


@pytest.fixture
def group(real_redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Group:
    w = World(real_redis)
    w.ledger.watching = False
    return Group(w, monkeypatch)


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
def test_a_jump_of_the_servers_clock_by_an_hour_interrupts_nobody_who_lives(group: Group, jump_s: float) -> None:
    w = group.w
    group.alive = group.start("a", "b", "c")
    [dead] = group.start("dead")
    w.submit("waits")
    w.submit("delayed")
    w.ledger.end_attempt(w.start("delayed"), replace(failure(), delay_s=100.0))
    group.live(15)
    w.clock.set(w.clock.now + jump_s)
    reaped = group.live(90)
    assert reaped == 1, "who was dead before is found all the same, a lease later"
    for job_id in "abc":
        record = w.ledger.get(job_id)
        assert (record.status, record.attempt, record.num_interruptions, record.num_failures) == ("running", 1, 0, 0)
    while group.alive:
        w.ledger.end_attempt(group.alive.pop(), completed())
    record = w.ledger.get("dead")
    assert (record.status, record.num_interruptions, record.num_failures) == ("pending", 1, 0)
    assert isinstance(w.ask("waits"), Granted)
    group.live(110)
    assert isinstance(w.ask("delayed", "m2"), Granted)
    assert w.ledger.counts(GROUP).completed == 3
    assert dead.attempt == 1


def test_a_server_that_is_away_for_ten_minutes_interrupts_only_who_died_meanwhile(group: Group) -> None:
    w = group.w
    group.alive = group.start(*(f"j{n:02}" for n in range(20)))
    group.start("dead")
    group.live(15)
    group.away = True
    assert group.live(600) == 0
    group.away = False
    assert group.live(28) == 0, "a lease for all to say that they live"
    assert group.live(30) == 1
    records = [w.ledger.get(token.job_id) for token in group.alive]
    assert {(r.status, r.attempt, r.num_interruptions, r.num_failures) for r in records} == {("running", 1, 0, 0)}
    for token in group.alive:
        w.ledger.end_attempt(token, completed())
    assert w.ledger.counts(GROUP).completed == 20
    record = w.ledger.get("dead")
    assert (record.status, record.num_interruptions, record.num_failures) == ("pending", 1, 0)
