"""Commits on a storage that is slow, away or refuses, on a ledger that is away, and in the middle of a cancellation."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from kelpie_celery.errors import StorageSetupError, StorageUnavailable
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.object_store import Body, StoredObject
from kelpie_worker.sync.segments import Spool
from tests.contract.desk import Desk, parts, said, until
from tests.contract.fakes_s3 import HandFence, MemoryStore
from tests.contract.shelf import Shelf


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kelpie_worker.sync.retry.FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr("kelpie_worker.sync.segments._PAUSE_S", 0.02)
    monkeypatch.setattr("kelpie_worker.sync.segments._LOOK_EVERY_S", 0.05)


class SlowMemory(MemoryStore):
    """Waits at the start of each upload until it is let go.

    Attributes:
        under_way: Set once an upload waits.
        go_on: Lets all uploads go.
    """

    def __init__(self, *buckets: str) -> None:
        super().__init__(*buckets)
        self.under_way, self.go_on = asyncio.Event(), asyncio.Event()

    async def put(self, bucket: str, key: str, body: Body, fence: Fence) -> StoredObject:
        self.under_way.set()
        await self.go_on.wait()
        return await super().put(bucket, key, body, fence)


@pytest.fixture
async def slow() -> SlowMemory:
    return SlowMemory("bucket")


@pytest.fixture
async def at_slow(slow: SlowMemory, tmp_path: Path) -> Desk:
    """A machine whose storage is ``slow``."""
    return Desk(tmp_path / "desk", Shelf(slow, "bucket", HandFence()))


# -- a storage that is away or refuses -------------------------------------------------------------------------------


async def test_a_storage_that_is_away_is_waited_for_beside_the_command(
    memory: MemoryStore, of_memory: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kelpie_worker.sync.checkpoints.WATCH_GIVE_UP_S", 0.05)
    async with of_memory.attempt(of_memory.checkpoint(plain="never")) as sync:
        memory.down = True
        async with of_memory.watching(sync) as watch:
            of_memory.write("a", b"1")
            await until(lambda: bool(said(caplog, "commit_delayed")) and memory.calls["put"] >= 3)
            assert not watch.done()
            memory.down = False
            await of_memory.next_report()
    assert await of_memory.committed() == {"a": b"1"}
    assert len(said(caplog, "commit_delayed")) == 1


async def test_content_that_was_sent_before_an_outage_is_not_sent_again_after_it(
    memory: MemoryStore, of_memory: Desk
) -> None:
    async with of_memory.attempt(of_memory.checkpoint(plain="never")) as sync:
        of_memory.write("large", b"1" * 2_000_000)
        of_memory.write("small", b"1")
        real = memory.put
        segments: list[str] = []

        async def no_manifests(bucket: str, key: str, body: Body, fence: Fence) -> StoredObject:
            if "/commits/" in key and len(segments) < 5:
                raise StorageUnavailable("away", bucket=bucket, key=key)
            segments.append(key)
            return await real(bucket, key, body, fence)

        memory.put = no_manifests  # type: ignore[method-assign]  # for a while
        tried = parts(sync)._committer.try_once
        for _ in range(2):
            with pytest.raises(StorageUnavailable):
                await tried("quiet", 0.0)
        assert len(segments) == 2
        memory.put = real  # type: ignore[method-assign]
        assert (await tried("quiet", 5.0)).report is not None
    assert len(await of_memory.committed()) == 2


async def test_a_storage_that_refuses_ends_the_watch(memory: MemoryStore, of_memory: Desk) -> None:
    async with of_memory.attempt() as sync:
        memory.denied.add("bucket")
        async with of_memory.watching(sync) as watch:
            of_memory.write("a", b"1")
            with pytest.raises(StorageSetupError, match="denied"):
                await asyncio.wait_for(asyncio.shield(watch), 20)


async def test_the_last_commit_gives_up_only_after_a_while(memory: MemoryStore, of_memory: Desk) -> None:
    async with of_memory.attempt(storage_retry_s=0.3) as sync:
        of_memory.write("a", b"1")
        memory.down = True
        with pytest.raises(StorageUnavailable):
            await sync.commit("exit")
        assert memory.calls["put"] >= 2
        memory.down = False
    assert of_memory.kept() == []


async def test_a_storage_that_gives_signs_of_life_is_not_given_up(memory: MemoryStore, of_memory: Desk) -> None:
    """A slow line may take hours: patience is with silence, not with time."""
    async with of_memory.attempt(of_memory.checkpoint(plain="never"), storage_retry_s=0.3) as sync:
        for number in range(8):
            of_memory.write(f"{number}", b"%d" % number * 1_100_000)
        real, began_s = memory.put, asyncio.get_running_loop().time()
        one_at_a_time = asyncio.Lock()

        async def slowly(bucket: str, key: str, body: Body, fence: Fence) -> StoredObject:
            async with one_at_a_time:
                await asyncio.sleep(0.1)
                return await real(bucket, key, body, fence)

        memory.put = slowly  # type: ignore[method-assign]  # for this test
        assert (await sync.commit("exit")).files == 8
        assert asyncio.get_running_loop().time() - began_s > 0.8


async def test_a_worker_that_stood_still_itself_does_not_blame_the_storage(
    memory: MemoryStore, of_memory: Desk
) -> None:
    async with of_memory.attempt(of_memory.checkpoint(plain="never"), storage_retry_s=0.3) as sync:
        for number in range(4):
            of_memory.write(f"{number}", b"%d" % number * 1_100_000)
        real, one_at_a_time = memory.put, asyncio.Lock()

        async def then_stand_still(bucket: str, key: str, body: Body, fence: Fence) -> StoredObject:
            async with one_at_a_time:
                await asyncio.sleep(0.1)
                done = await real(bucket, key, body, fence)
            asyncio.get_running_loop().call_soon(time.sleep, 0.5)
            return done

        memory.put = then_stand_still  # type: ignore[method-assign]  # for this test
        assert (await sync.commit("exit")).files == 4


async def test_a_storage_that_is_away_is_given_up_however_late_the_loop_is_and_however_many_wait(
    memory: MemoryStore, tmp_path: Path
) -> None:
    memory.down = True
    spool = Spool(memory, HandFence(), tmp_path, lambda _: None)
    spool.patience_s = 0.3
    segment = await spool.new("bucket", "folder/")
    segment.append(b"1")
    spool.send(segment)

    async def hold_up() -> None:
        while True:
            await asyncio.sleep(0.05)
            asyncio.get_running_loop().call_soon(time.sleep, 0.2)

    others = [asyncio.create_task(wait) for wait in (hold_up(), spool.idle(), spool.idle(), spool.idle())]
    with pytest.raises(StorageUnavailable):
        await asyncio.wait_for(spool.stored([segment]), 20)
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await spool.close()


# -- a ledger that is away -------------------------------------------------------------------------------------------


async def test_a_ledger_that_is_away_delays_commits_and_loses_none(
    of_memory: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    desk = of_memory
    async with desk.attempt() as sync:
        desk.ledger.away = True
        async with desk.watching(sync) as watch:
            desk.write("a", b"1")
            await until(lambda: bool(said(caplog, "commit_delayed")))
            assert not watch.done()
            assert desk.kept() == []
            desk.ledger.away = False
            await desk.next_report()
    assert await desk.committed() == {"a": b"1"}


# -- writers while it is sent ----------------------------------------------------------------------------------------


async def test_a_file_that_changes_while_it_is_sent_ends_with_its_latest_version(
    slow: SlowMemory, at_slow: Desk
) -> None:
    desk = at_slow
    async with desk.attempt() as sync, desk.watching(sync):
        desk.write("a", b"old" * 1000)
        await asyncio.wait_for(slow.under_way.wait(), 20)
        desk.write("a", b"new" * 1000)
        slow.go_on.set()
        await desk.next_report()
        if await desk.committed() != {"a": b"new" * 1000}:
            assert await desk.committed() == {"a": b"old" * 1000}
            await desk.next_report()
        assert await desk.committed() == {"a": b"new" * 1000}


@pytest.mark.parametrize("room", [True, False])
async def test_what_is_committed_is_what_was_captured_whatever_is_written_meanwhile(
    slow: SlowMemory, at_slow: Desk, room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = at_slow
    if not room:
        monkeypatch.setattr("kelpie_worker.sync.segments.space_for_copies", lambda _: 0)
    files = {"large": b"1" * 3_000_000, "small": b"1" * 1000}
    async with desk.attempt(commit_interval_s=3600) as sync, desk.watching(sync):
        for name, data in files.items():
            desk.write(name, data)
        committer, composed = parts(sync)._committer, asyncio.Event()
        store_all = committer._store_all

        async def noted(*args: Any) -> Any:
            composed.set()
            return await store_all(*args)

        monkeypatch.setattr(committer, "_store_all", noted)
        await asyncio.wait_for(composed.wait(), 20)
        with (desk.ck / "large").open("r+b") as file:
            file.write(b"2" * 500)
        desk.write("small", b"2" * 1000)
        slow.go_on.set()
        await desk.next_report()
        assert await desk.committed() == files


async def test_a_file_that_grows_while_it_is_read_is_not_torn(of_memory: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It moved, so what was read is of no instant: the state before stays, and the next one is whole."""
    desk = of_memory
    async with desk.attempt() as sync:
        path = desk.write("a", b"1" * 2_000_000)
        committer = parts(sync)._committer
        real, grown = committer._look, False

        def look() -> Any:
            nonlocal grown
            if not grown:
                grown = True
                return real()
            with path.open("ab") as file:
                file.write(b"2")
            return real()

        monkeypatch.setattr(committer, "_look", look)
        tried = await committer.try_once("quiet", 5.0)
        assert (tried.outcome.value, tried.left) == ("disturbed", (str(path),))
        assert desk.kept() == []


# -- cancelled -------------------------------------------------------------------------------------------------------


async def test_a_cancelled_commit_leaves_no_copies_and_nothing_to_see(slow: SlowMemory, at_slow: Desk) -> None:
    desk = at_slow
    async with desk.attempt() as sync:
        desk.write("large", b"x" * 3_000_000)
        desk.write("small", b"x")
        task = asyncio.ensure_future(sync.commit("exit"))
        await asyncio.wait_for(slow.under_way.wait(), 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await sync.end_watch()
        assert list(desk.scratch.glob("*/*")) == []
    slow.go_on.set()
    assert slow.keys("bucket") == []
    assert desk.kept() == []


async def test_a_watch_that_is_ended_in_the_middle_of_a_commit_leaves_no_copies(
    slow: SlowMemory, at_slow: Desk
) -> None:
    desk = at_slow
    async with desk.attempt() as sync:
        async with desk.watching(sync):
            desk.write("large", b"x" * 3_000_000)
            await asyncio.wait_for(slow.under_way.wait(), 20)
        await sync.end_watch()
        assert list(desk.scratch.glob("*/*")) == []
    assert desk.kept() == []
