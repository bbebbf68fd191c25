"""Patience, progress, threads and bounded work."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading

import pytest

from kelpie_celery.errors import StorageSetupError, StorageUnavailable
from kelpie_worker.sync import retry
from kelpie_worker.sync.batches import in_batches
from kelpie_worker.sync.progress import Meter, Progress
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.threads import idle_threads, in_thread, run_bounded


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(retry, "LONGEST_PAUSE_S", 0.0)


def away() -> StorageUnavailable:
    return StorageUnavailable("away", bucket="b")


async def test_patience_waits_for_a_storage_that_is_away() -> None:
    tries = 0

    async def operation() -> str:
        nonlocal tries
        tries += 1
        if tries < 5:
            raise away()
        return "done"

    assert await Patience(60.0, "test").persist(operation) == "done"
    assert tries == 5


async def test_patience_ends_when_nothing_gets_through() -> None:
    async def operation() -> None:
        raise away()

    with pytest.raises(StorageUnavailable):
        await Patience(0.0, "test").persist(operation)


async def test_a_sign_of_life_renews_patience() -> None:
    patience = Patience(0.4, "test")  # less than eight tries take, and far more than one
    tries = 0

    async def operation() -> None:
        nonlocal tries
        tries += 1
        await asyncio.sleep(0.06)
        if tries < 8:
            patience.sign_of_life()
        raise away()

    with pytest.raises(StorageUnavailable):
        await patience.persist(operation)
    assert tries >= 8


async def test_a_mistake_in_the_set_up_is_not_waited_for() -> None:
    tries = 0

    async def operation() -> None:
        nonlocal tries
        tries += 1
        raise StorageSetupError("denied", bucket="b")

    with pytest.raises(StorageSetupError):
        await Patience(60.0, "test").persist(operation)
    assert tries == 1


async def test_progress_is_reported_with_its_rate(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kelpie_worker.sync.progress")
    total, reports, told = Meter("attempt"), list[Progress](), asyncio.Event()
    meter = Meter("restore", total_bytes=100, parent=total)

    def note(progress: Progress) -> None:
        reports.append(progress)
        told.set()

    async with meter.reporting(note, every_s=0.01):
        meter.add(50)
        await asyncio.wait_for(told.wait(), 5)
    assert (reports[0].stage, reports[0].done_bytes, reports[0].total_bytes) == ("restore", 50, 100)
    assert reports[0].rate_bytes_s == 5000
    assert total.done_bytes == 50
    assert caplog.records[0].action == "sync_progress"  # type: ignore[attr-defined]  # given by extra


async def test_cancelling_waits_for_the_thread_to_let_go() -> None:
    started, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        go_on.wait(5)
        ended.set()

    task = asyncio.ensure_future(in_thread(work))
    await asyncio.to_thread(started.wait, 5)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priorities of their own")
async def test_work_that_can_wait_leaves_the_cpu_to_others() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    assert await in_thread(niceness, idle_threads()) > await in_thread(niceness) == niceness()


async def test_bounded_work_keeps_its_bound_and_its_order() -> None:
    running, most, begun = 0, 0, list[int]()

    async def work(item: int) -> None:
        nonlocal running, most
        begun.append(item)
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    await run_bounded(range(20), work, 3)
    assert most == 3
    assert begun == list(range(20))


async def test_bounded_work_raises_the_first_error_plainly_and_stops_the_rest() -> None:
    done: list[int] = []

    async def work(item: int) -> None:
        if item == 1:
            raise away()
        await asyncio.sleep(3600 if item > 1 else 0)
        done.append(item)

    with pytest.raises(StorageUnavailable):
        await run_bounded(range(10), work, 3)
    assert done == [0]


async def fail_once(item: int) -> None:
    await asyncio.sleep(0)
    if item == 1:
        raise away()
    await asyncio.sleep(3600)


async def fail_alone(_: int) -> None:
    raise away()


@pytest.mark.parametrize("how", ["bounded", "paced"])
async def test_whoever_goes_on_after_failed_work_does_not_count_as_cancelled(how: str) -> None:
    bounded = how == "bounded"
    run = run_bounded(range(10), fail_once, 3) if bounded else in_batches([[1]], None, fail_alone, 3)
    with pytest.raises(StorageUnavailable):
        await run
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0  # else, in Python 3.11.2, the next time-out of this task ends it
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await asyncio.sleep(3600)


@pytest.mark.parametrize("how", ["bounded", "paced"])
async def test_cancelled_work_has_ended_when_whoever_waits_for_it_is_told(how: str) -> None:
    begun, ended = asyncio.Event(), 0

    async def work(_: int) -> None:
        nonlocal ended
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.01)
            ended += 1

    run = run_bounded(range(3), work, 3) if how == "bounded" else in_batches([[n] for n in range(3)], None, work, 3)
    task = asyncio.ensure_future(run)
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended >= 1
    assert len(asyncio.all_tasks()) == 1


async def test_what_is_reported_counts_from_where_the_transfer_began() -> None:
    reports, told = list[Progress](), asyncio.Event()
    meter = Meter("commit")
    meter.add(1000)  # an earlier one

    def note(progress: Progress) -> None:
        reports.append(progress)
        told.set()

    async with meter.reporting(note, every_s=0.01):
        meter.add(40)
        meter.expect(60)
        await asyncio.wait_for(told.wait(), 5)
        meter.add(60)
    assert (reports[0].done_bytes, reports[0].total_bytes) == (40, 100)
    assert reports[0].left_s == pytest.approx(60 / 4000)
    last = reports[-1]
    assert (last.done_bytes, last.total_bytes, last.over) == (100, 100, True)


@pytest.mark.parametrize(("left", "total"), [(None, 0), (10, 50)])
async def test_a_total_that_nobody_knows_or_that_was_exceeded_is_not_told(left: int | None, total: int) -> None:
    reports, told = list[Progress](), asyncio.Event()
    meter = Meter("commit", total_bytes=7)

    def note(progress: Progress) -> None:
        reports.append(progress)
        told.set()

    async with meter.reporting(note, every_s=0.01):
        meter.expect(left)
        meter.add(50)  # some of it a second time
        await asyncio.wait_for(told.wait(), 5)
    assert reports[0].total_bytes == total


async def test_a_short_transfer_is_not_reported() -> None:
    reports = list[Progress]()
    async with Meter("commit").reporting(reports.append, every_s=60.0):
        pass
    assert reports == []
