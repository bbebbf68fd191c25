"""The server's clock is put back by an hour: nothing waits for an hour."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

from dataclasses import replace

from kelpie_celery.ledger.types import Ended, Granted
from kelpie_celery.lifecycle import Phase, Status
from tests.contract.ledger_cases import World, completed, failure
from tests.contract.ledger_fixtures import any_redis, ledger_valkey, w  # noqa: F401

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
