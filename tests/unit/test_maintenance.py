from __future__ import annotations

import logging
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from kelpie_celery.clock import ManualClock
from kelpie_celery.errors import LedgerUnavailable
from kelpie_celery.ledger.types import Tick
from kelpie_celery.maintenance import JUMP_S, Maintainer


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
