"""The trust window and the heartbeats, on a clock that the test holds."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from kelpie_celery.clock import Instant, ManualClock, SystemClock
from kelpie_celery.errors import LeaseLost, LedgerUnavailable
from kelpie_celery.ledger.types import FencingToken, NewOutput, Renewal
from kelpie_celery.lifecycle import Phase
from kelpie_worker.lease import Lease, LedgerOutOfReach

TOKEN = FencingToken("job", 1, "nonce")


class FakeLedger:
    """Answers renewals as it is told, and tells of each."""

    def __init__(self) -> None:
        self.calls: list[tuple[Phase, str, bool]] = []
        self.transfers: list[str] = []
        self.outputs: list[NewOutput | None] = []
        self.error: Exception | None = None
        self.cancel = False
        self.called = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def renew(
        self, token: FencingToken, phase: Phase, progress: str = "", *, count: bool = True, transfer: str = "",
        output: NewOutput | None = None,
    ) -> Renewal:  # fmt: skip
        self.calls.append((phase, progress, count))
        self.transfers.append(transfer)
        self.outputs.append(output)
        error = self.error  # whoever hears of the call may change it
        self._loop.call_soon_threadsafe(self.called.set)
        if error:
            raise error
        return Renewal(self.cancel, 0.0, 60.0)


def make(ledger: FakeLedger, clock: ManualClock, **more: Any) -> Lease:
    canceled: list[bool] = []
    values: dict[str, Any] = {"lease_s": 60.0, "margin_s": 5.0, "blind_s": 900.0, "heartbeat_s": 30.0, **more}
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


async def test_a_long_transfer_is_told_at_once_and_only_once() -> None:
    ledger = FakeLedger()
    lease = make(ledger, ManualClock(), lease_s=1.0, margin_s=0.1)
    keeper = asyncio.create_task(lease.keep())
    await asyncio.wait_for(ledger.called.wait(), 5)
    for told in ('{"stage":"restore"}', ""):
        ledger.called.clear()
        lease.report_transfer(told) if told else lease.report("{}")
        await asyncio.wait_for(ledger.called.wait(), 5)
        assert ledger.transfers[-1] == told
    keeper.cancel()


async def test_a_transfer_that_was_not_heard_of_is_told_again() -> None:
    ledger = FakeLedger()
    ledger.error = LedgerUnavailable("away")
    lease = make(ledger, ManualClock(), lease_s=0.2, margin_s=0.02)
    lease.report_transfer("{}")
    keeper = asyncio.create_task(lease.keep())
    await asyncio.wait_for(ledger.called.wait(), 5)
    ledger.called.clear()
    ledger.error = None
    await asyncio.wait_for(ledger.called.wait(), 5)
    assert ledger.transfers == ["{}", "{}"]
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


async def test_others_hear_of_each_phase_at_once_and_of_each_heartbeat_that_counts() -> None:
    clock, ledger, heard = ManualClock(), FakeLedger(), list[tuple[Phase, int]]()
    lease = make(ledger, clock, on_news=lambda phase, beats: heard.append((phase, beats)))
    lease.enter(Phase.EXECUTING)
    assert heard == [(Phase.EXECUTING, 0)]
    clock.advance(31)
    assert await lease._renew()
    assert await lease._renew(), "an extra one, since there was news"
    clock.advance(30)
    assert await lease._renew()
    lease.enter(Phase.UPLOADING)
    assert heard[1:] == [(Phase.EXECUTING, 1), (Phase.EXECUTING, 2), (Phase.UPLOADING, 2)]


async def test_the_ledger_hears_of_a_launch_before_the_command_starts() -> None:
    ledger = FakeLedger()
    lease = make(ledger, ManualClock())
    await lease.launch()
    assert [call[0] for call in ledger.calls] == [Phase.EXECUTING]


async def test_a_heartbeat_that_is_under_way_at_the_launch_does_not_undo_it() -> None:
    """Given an answer to a heartbeat of the restore that takes its time: what the ledger hears last is the launch."""

    class Slow(FakeLedger):
        def renew(self, token: FencingToken, phase: Phase, *words: Any, **more: Any) -> Renewal:
            if phase is Phase.RESTORING:
                under_way.set()
                assert go_on.wait(10)
            return super().renew(token, phase, *words, **more)

    under_way, go_on = threading.Event(), threading.Event()
    ledger = Slow()
    lease = make(ledger, ManualClock())
    keeper = asyncio.create_task(lease.keep())
    assert await asyncio.to_thread(under_way.wait, 10)
    launch = asyncio.create_task(lease.launch())
    await asyncio.sleep(0.1)  # without turns it would be told by now
    go_on.set()
    await launch
    keeper.cancel()
    assert [call[0] for call in ledger.calls][:2] == [Phase.RESTORING, Phase.EXECUTING]


async def test_a_ledger_that_is_away_does_not_keep_a_command_from_starting() -> None:
    ledger = FakeLedger()
    ledger.error = LedgerUnavailable("connection refused")
    lease = make(ledger, ManualClock())
    async with asyncio.timeout(10):
        await lease.launch()
    assert lease.phase is Phase.EXECUTING


async def test_a_job_that_was_lost_before_its_launch_is_not_launched() -> None:
    ledger = FakeLedger()
    ledger.error = LeaseLost("another has it")
    with pytest.raises(LeaseLost):
        await make(ledger, ManualClock()).launch()


async def test_ten_minutes_without_redis_are_sat_out_muted_and_the_attempt_goes_on() -> None:
    clock, ledger = ManualClock(), FakeLedger()
    lease = make(ledger, clock)
    ledger.error = LedgerUnavailable("away")
    for _ in range(20):
        clock.advance(30)
        assert not await lease._renew()
        assert lease.remaining_s() <= 55 - 30
    assert lease.remaining_s() < 0, "nothing is made visible"
    ledger.error = None
    assert await lease._renew(), "and the ledger takes the late renewal"
    assert lease.remaining_s() == pytest.approx(55)


async def test_a_job_that_must_not_run_blind_ends_with_its_lease() -> None:
    clock, ledger = ManualClock(), FakeLedger()
    lease = make(ledger, clock, blind_s=0.0)
    ledger.error = LedgerUnavailable("away")
    clock.advance(59)
    assert not await lease._renew()
    clock.advance(2)
    with pytest.raises(LedgerOutOfReach):
        await lease._renew()


class Suspended(ManualClock):
    """A machine that slept: only the clock that counts suspended time has moved on."""

    def boottime(self) -> float:
        return super().boottime() + 3600.0 * self.slept

    slept = 0


async def test_time_that_the_machine_slept_counts() -> None:
    clock = Suspended()
    lease = make(FakeLedger(), clock)
    clock.slept = 1
    assert lease.remaining_s() < 0


def test_the_clock_of_leases_is_the_one_that_counts_suspended_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {time.CLOCK_BOOTTIME: 7200.0, time.CLOCK_MONOTONIC: 3600.0}
    monkeypatch.setattr(time, "clock_gettime", times.__getitem__)
    assert SystemClock().boottime() == 7200.0


class Told:
    """Something to tell, until it was told."""

    def __init__(self) -> None:
        self.left: NewOutput | None = NewOutput(("a line",), 1, 1)

    def news(self) -> NewOutput | None:
        return self.left

    def told(self, news: NewOutput) -> None:
        assert news == self.left
        self.left = None


async def test_output_rides_along_until_the_ledger_has_heard_of_it() -> None:
    clock, ledger, output = ManualClock(), FakeLedger(), Told()
    lease = make(ledger, clock, lease_s=0.5, margin_s=0.05, output=output)
    ledger.error = LedgerUnavailable("away")
    keeper = asyncio.create_task(lease.keep())
    await asyncio.wait_for(ledger.called.wait(), 5)
    assert output.left is not None
    ledger.error = None
    ledger.called.clear()
    await asyncio.wait_for(ledger.called.wait(), 5)
    ledger.called.clear()
    lease.report_output()
    await asyncio.wait_for(ledger.called.wait(), 5)
    keeper.cancel()
    assert output.left is None
    assert ledger.outputs[0] == ledger.outputs[1] == NewOutput(("a line",), 1, 1)
    assert ledger.outputs[-1] is None
