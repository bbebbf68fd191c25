from __future__ import annotations

import logging
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from kelpie_celery.clock import ManualClock
from kelpie_celery.errors import LedgerUnavailable
from kelpie_celery.ledger.types import Tick
from kelpie_celery.maintenance import ANNOUNCE_S, JUMP_S, REPLAY_S, Maintainer


@dataclass
class TickedLedger:
    """Notes what each tick was told."""

    clock: ManualClock
    away: bool = False
    answer: Tick | None = field(default_factory=lambda: Tick(0.0))
    told: list[dict[str, Any]] = field(default_factory=list)

    def uptime_s(self) -> float:
        if self.away:
            raise LedgerUnavailable("away")
        return 100.0

    def server_time(self) -> float:
        return self.clock.now()

    def tick(self, group: str, **told: Any) -> Tick | None:
        self.told.append({"group": group, **told})
        return self.answer


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def ledger(clock: ManualClock) -> TickedLedger:
    return TickedLedger(clock)


@pytest.fixture
def maintainer(ledger: TickedLedger, clock: ManualClock) -> Maintainer:
    app: Any = SimpleNamespace(ledger=ledger)
    return Maintainer(app, "worker@host", clock)


def test_the_first_tick_of_each_group_is_told_to_be_the_first(maintainer: Maintainer, ledger: TickedLedger) -> None:
    for group in ("a", "a", "b"):
        maintainer.tick(group)
    assert [(told["group"], told["fresh"], told["saw_outage"]) for told in ledger.told] == [
        ("a", True, False), ("a", False, False), ("b", True, False)
    ]  # fmt: skip


def test_a_worker_does_ten_entries_at_a_time(maintainer: Maintainer, ledger: TickedLedger) -> None:
    maintainer.tick("a")
    maintainer.tick("a", limit=100)
    assert [told["limit"] for told in ledger.told] == [10, 100]


def test_an_outage_is_told_with_the_next_tick_and_with_that_one_only(
    maintainer: Maintainer, ledger: TickedLedger
) -> None:
    maintainer.tick("a")
    ledger.away = True
    with pytest.raises(LedgerUnavailable):
        maintainer.tick("a")
    ledger.away = False
    maintainer.tick("a")
    maintainer.tick("a")
    assert [told["saw_outage"] for told in ledger.told] == [False, True, False]


@pytest.mark.parametrize("jump_s", [-3600.0, -(JUMP_S + 1), JUMP_S + 1, 3600.0])
def test_a_jump_of_the_servers_clock_is_an_outage(
    maintainer: Maintainer, ledger: TickedLedger, clock: ManualClock, jump_s: float
) -> None:
    maintainer.tick("a")
    clock.jump(jump_s)
    maintainer.tick("a")
    assert ledger.told[-1]["saw_outage"]


def test_a_long_pause_between_ticks_is_none(maintainer: Maintainer, ledger: TickedLedger, clock: ManualClock) -> None:
    maintainer.tick("a")
    clock.advance(3600)
    maintainer.tick("a")
    assert not ledger.told[-1]["saw_outage"]


def test_a_replay_that_fails_does_not_hold_up_the_others(
    maintainer: Maintainer, ledger: TickedLedger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replayed: list[str] = []

    def replay(app: Any, job_id: str, hostname: str) -> None:
        if job_id == "bad":
            raise RuntimeError("broken")
        replayed.append(f"{job_id} by {hostname}")

    monkeypatch.setattr("kelpie_celery.maintenance.replay", replay)
    ledger.answer = Tick(0.0, outbox=("one", "bad", "two"))
    maintainer.tick("a")
    assert replayed == ["one by worker@host", "two by worker@host"]
    assert [vars(record)["action"] for record in caplog.records] == ["replay_failed"]


def test_what_somebody_else_did_a_moment_ago_is_not_done_again(maintainer: Maintainer, ledger: TickedLedger) -> None:
    ledger.answer = None
    assert maintainer.tick("a") is None


@pytest.mark.parametrize(("tick", "lines"), [(Tick(0.0), 0), (Tick(0.0, reaped=1), 1), (Tick(0.0, republished=2), 1)])
def test_only_what_was_brought_back_is_logged(
    maintainer: Maintainer, ledger: TickedLedger, caplog: pytest.LogCaptureFixture, tick: Tick, lines: int
) -> None:
    ledger.answer = tick
    with caplog.at_level(logging.INFO):
        maintainer.tick("a")
    assert [vars(record)["action"] for record in caplog.records] == ["maintained"] * lines


def test_a_slow_replay_is_the_last_of_its_tick_and_the_others_are_left_in_the_outbox(
    maintainer: Maintainer, ledger: TickedLedger, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    replayed: list[str] = []

    def slow_replay(_app: Any, job_id: str, _hostname: str) -> None:
        replayed.append(job_id)
        clock.advance(REPLAY_S - 1)

    monkeypatch.setattr("kelpie_celery.maintenance.replay", slow_replay)
    ledger.answer = Tick(0.0, outbox=("one", "two", "three", "four"))
    maintainer.tick("a")
    assert replayed == ["one", "two"]


def test_listeners_that_cannot_be_told_of_lost_attempts_hold_up_nothing(
    maintainer: Maintainer, ledger: TickedLedger, caplog: pytest.LogCaptureFixture
) -> None:
    # This ledger can be asked for no record.
    ledger.answer = Tick(0.0, reaped=1, lost=("one",))
    with caplog.at_level(logging.INFO):
        assert maintainer.tick("a") is ledger.answer
    assert "announce_failed" in [getattr(record, "action", "") for record in caplog.records]


def test_one_job_that_cannot_be_told_of_keeps_no_other_back_and_a_slow_broker_does_not_keep_the_pulse(
    maintainer: Maintainer, ledger: TickedLedger, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def announce(_app: Any, job_id: str) -> None:
        told.append(job_id)
        clock.advance(ANNOUNCE_S / 2)
        if job_id == "one":
            raise ValueError("its message is spoilt")

    monkeypatch.setattr("kelpie_celery.maintenance.announce_lost", announce)
    ledger.answer = Tick(0.0, reaped=5, lost=("one", "two", "three", "four", "five"))
    assert maintainer.tick("a") is ledger.answer
    assert told == ["one", "two", "three"]
