"""The trust window and the heartbeats, on a clock that the test holds."""

from __future__ import annotations

import asyncio

import pytest

from kelpie_celery.clock import Instant, ManualClock
from kelpie_celery.errors import LeaseLost, LedgerUnavailable
from kelpie_celery.ledger.types import FencingToken, Renewal
from kelpie_celery.lifecycle import Phase
from kelpie_worker.lease import Lease, LedgerOutOfReach

TOKEN = FencingToken("job", 1, "nonce")


class FakeLedger:
    """Answers renewals as it is told, and tells of each."""

    def __init__(self) -> None:
        self.calls: list[tuple[Phase, str, bool]] = []
        self.error: Exception | None = None
        self.cancel = False
        self.called = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def renew(self, token: FencingToken, phase: Phase, progress: str = "", *, count: bool = True) -> Renewal:
        self.calls.append((phase, progress, count))
        self._loop.call_soon_threadsafe(self.called.set)
        if self.error:
            raise self.error
        return Renewal(self.cancel, 0.0, 60.0)


def make(ledger: FakeLedger, clock: ManualClock, **more: float) -> Lease:
    canceled: list[bool] = []
    values = {"lease_s": 60.0, "margin_s": 5.0, "blind_s": 900.0, "heartbeat_s": 30.0, **more}
    lease = Lease(
        TOKEN, ledger, granted=Instant.now(clock), clock=clock, on_cancel=lambda: canceled.append(True), **values
    )
    lease.canceled = canceled  # type: ignore[attr-defined]  # for the test to look at
    return lease


async def test_trust_ends_a_margin_before_the_lease() -> None:
    clock = ManualClock()
    lease = make(FakeLedger(), clock)
    clock.advance(54.9)
    assert lease.remaining_s() == pytest.approx(0.1)
    clock.advance(0.2)
    assert lease.remaining_s() < 0


async def test_a_wall_clock_that_jumps_ahead_ends_the_trust() -> None:
    clock = ManualClock()
    lease = make(FakeLedger(), clock)
    clock.jump(3600)
    assert lease.remaining_s() < 0


async def test_a_wall_clock_that_is_set_back_does_not_lengthen_the_trust() -> None:
    clock = ManualClock()
    lease = make(FakeLedger(), clock)
    clock.advance(54)
    clock.jump(-3600)
    assert lease.remaining_s() == pytest.approx(1)


async def test_a_renewal_counts_from_its_start() -> None:
    clock = ManualClock()
    ledger = FakeLedger()
    lease = make(ledger, clock)
    clock.advance(20)
    keeper = asyncio.create_task(lease.keep())
    await asyncio.wait_for(ledger.called.wait(), 5)
    async with asyncio.timeout(5):
        while lease.remaining_s() < 54:
            await asyncio.sleep(0)
    assert lease.remaining_s() == pytest.approx(55)
    keeper.cancel()


async def test_whoever_waits_for_trust_is_told_of_a_lost_lease() -> None:
    clock = ManualClock()
    ledger = FakeLedger()
    ledger.error = LeaseLost("gone")
    lease = make(ledger, clock)
    clock.advance(100)
    waiting = asyncio.create_task(lease.trusted())
    with pytest.raises(LeaseLost):
        await asyncio.wait_for(lease.keep(), 5)
    with pytest.raises(LeaseLost):
        await asyncio.wait_for(waiting, 5)
    assert lease.remaining_s() == 0


async def test_an_outage_mutes_and_ends_the_attempt_only_after_blind_s() -> None:
    clock = ManualClock()
    ledger = FakeLedger()
    ledger.error = LedgerUnavailable("away")
    lease = make(ledger, clock, lease_s=1.0, margin_s=0.2, blind_s=100.0)
    keeper = asyncio.create_task(lease.keep())
    await asyncio.wait_for(ledger.called.wait(), 5)
    clock.advance(50)
    assert lease.remaining_s() < 0
    assert not keeper.done()
    clock.advance(52)
    with pytest.raises(LedgerOutOfReach):
        await asyncio.wait_for(keeper, 5)


async def test_a_cancel_comes_with_the_renewal() -> None:
    ledger = FakeLedger()
    ledger.cancel = True
    lease = make(ledger, ManualClock())
    keeper = asyncio.create_task(lease.keep())
    await asyncio.wait_for(ledger.called.wait(), 5)
    await asyncio.wait_for(lease.trusted(), 5)
    while not lease.canceled:  # type: ignore[attr-defined]
        await asyncio.sleep(0)
    keeper.cancel()


async def test_a_new_phase_and_progress_are_told_at_once() -> None:
    ledger = FakeLedger()
    lease = make(ledger, ManualClock(), lease_s=1.0, margin_s=0.1)
    keeper = asyncio.create_task(lease.keep())
    await asyncio.wait_for(ledger.called.wait(), 5)
    ledger.called.clear()
    lease.enter(Phase.EXECUTING)
    lease.report('{"progress":0.5}')
    await asyncio.wait_for(ledger.called.wait(), 5)
    assert ledger.calls[-1][:2] == (Phase.EXECUTING, '{"progress":0.5}')
    keeper.cancel()


async def test_only_heartbeats_that_are_due_are_counted() -> None:
    ledger = FakeLedger()
    clock = ManualClock()
    lease = make(ledger, clock)
    keeper = asyncio.create_task(lease.keep())
    await asyncio.wait_for(ledger.called.wait(), 5)
    assert [count for _, _, count in ledger.calls] == [False]
    ledger.called.clear()
    clock.advance(31)
    lease.enter(Phase.EXECUTING)
    await asyncio.wait_for(ledger.called.wait(), 5)
    assert ledger.calls[-1][2] is True
    keeper.cancel()


async def test_many_that_wait_for_trust_cause_no_storm_of_renewals() -> None:
    clock, ledger = ManualClock(), FakeLedger()
    ledger.error = LedgerUnavailable("away")
    lease = make(ledger, clock, lease_s=10.0, margin_s=1.0)
    clock.advance(100)
    keeper = asyncio.create_task(lease.keep())
    waiting = [asyncio.create_task(lease.trusted()) for _ in range(16)]
    await asyncio.wait_for(ledger.called.wait(), 5)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(keeper), 2.5)
    assert len(ledger.calls) <= 4
    for task in (keeper, *waiting):
        task.cancel()
    await asyncio.gather(keeper, *waiting, return_exceptions=True)
