"""The plain keys of checkpoints follow what was committed, and cost the uplink once; in memory and for real."""

from __future__ import annotations

import asyncio
import gzip
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kelpie_celery.errors import LeaseLost, StorageSetupError, StorageUnavailable
from kelpie_worker.sync import SyncSession
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.object_store import Body, StoredObject
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.segments import Spool
from kelpie_worker.sync.stable_read import capture
from tests.contract.desk import parts
from tests.contract.fakes_s3 import HandFence, MemoryStore
from tests.contract.plain_support import MIB, Desk, is_plain
from tests.contract.shelf import Shelf

WINDOW = 8 * MIB


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kelpie_worker.sync.retry.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("kelpie_worker.sync.retry.LONGEST_PAUSE_S", 0.05)


@pytest.fixture
def desk(shelf: Shelf, tmp_path: Path) -> Desk:
    return Desk(shelf, tmp_path)


@pytest.fixture
def of_memory(memory: MemoryStore, fence: HandFence, tmp_path: Path) -> Desk:
    return Desk(Shelf(memory, "bucket", fence), tmp_path)


def said(caplog: pytest.LogCaptureFixture, action: str) -> list[Any]:
    return [record for record in caplog.records if getattr(record, "action", "") == action]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


# -- the uplink is paid once ---------------------------------------------------------------------------------------


async def test_a_file_that_grows_by_whole_windows_is_never_sent_to_its_plain_key(desk: Desk) -> None:
    async with desk.open() as sync:
        await sync.restore()
        desk.write("traj", os.urandom(5 * WINDOW))
        await sync.commit("exit")
        for _ in range(2):
            desk.write("traj", os.urandom(WINDOW), append=True)
            await sync.commit("exit")
        assert await desk.plain() == desk.local()
    assert desk.store.sent_bytes == 0
    assert desk.store.copied["ck/traj"] == (5 + 6 + 7) * WINDOW


async def test_of_a_file_that_grows_oddly_each_window_is_sent_once(desk: Desk) -> None:
    async with desk.open() as sync:
        await sync.restore()
        desk.write("traj", os.urandom(2 * WINDOW + 3 * MIB))
        await sync.commit("exit")
        assert desk.store.sent_bytes == 0
        desk.write("traj", os.urandom(WINDOW), append=True)  # fills the third window, begins the fourth
        await sync.commit("exit")
        assert desk.store.sent_bytes == WINDOW
        desk.write("traj", os.urandom(MIB), append=True)
        await sync.commit("exit")
        assert desk.store.sent_bytes == WINDOW + 4 * MIB  # the fourth; the third comes from the plain key
        assert await desk.plain() == desk.local()


async def test_one_segment_is_copied_in_one_request(desk: Desk) -> None:
    async with desk.open() as sync:
        await sync.restore()
        desk.write("model", os.urandom(3 * MIB))
        await sync.commit("exit")
        assert await desk.plain() == desk.local()
    assert desk.store.asked["copy"] == 1
    assert desk.store.sent_bytes == 0


async def test_small_files_are_sent(desk: Desk) -> None:
    async with desk.open() as sync:
        await sync.restore()
        for name, size in (("empty", 0), ("a/b", 10), ("c", MIB - 1)):
            desk.write(name, os.urandom(size))
        await sync.commit("exit")
        assert await desk.plain() == desk.local()
    assert set(desk.store.asked) == {"put"}


async def test_all_parts_are_equal_but_the_last(desk: Desk) -> None:
    async with desk.open() as sync:
        await sync.restore()
        desk.write("full", os.urandom(4 * WINDOW + 1))
        desk.write("grown", os.urandom(WINDOW))
        await sync.commit("exit")
        desk.write("grown", os.urandom(WINDOW + 5), append=True)
        await sync.commit("exit")
        assert await desk.plain() == desk.local()
    uploads = sorted([length for _, length in sorted(parts.items())] for parts in desk.store.parts.values())
    assert uploads == [[WINDOW, WINDOW, 5], [4 * WINDOW, 1]]


@pytest.mark.parametrize(("plain", "stored"), [("never", "packed"), ("end", "as it is")])
async def test_content_is_packed_only_where_no_plain_key_is_made_of_it(desk: Desk, plain: str, stored: str) -> None:
    async with desk.open(desk.job(plain=plain)) as sync:
        await sync.restore()
        desk.write("zeros", bytes(2 * WINDOW))
        await sync.commit("exit")
        assert await desk.plain() == ({} if plain == "never" else desk.local())
    segments = await desk.shelf.keys("ck.kelpie/data/")
    size = sum([len(await desk.shelf.content(key)) for key in segments])
    assert size == 2 * WINDOW if stored == "as it is" else size < WINDOW
    assert desk.store.sent_bytes == 0


# -- what is there is not placed again -----------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [False, True])
async def test_the_next_attempt_places_nothing_that_is_there(desk: Desk, compression: bool) -> None:
    definition = desk.job(compression=compression)
    async with desk.open(definition) as sync:
        await sync.restore()
        for name, size in (("empty", 0), ("small", 1000), ("one", 3 * MIB), ("several", 4 * WINDOW + 7)):
            desk.write(name, os.urandom(size))
        desk.write("grown", os.urandom(3 * MIB))
        await sync.commit("exit")
        desk.write("grown", os.urandom(WINDOW), append=True)
        await sync.commit("exit")
        expected = await desk.plain()
        await sync.end_watch()
        sync.clean()
    desk.store.asked.clear()
    async with desk.open(definition, attempt=2) as sync:
        await sync.restore()
        desk.write("new", b"new")
        await sync.commit("exit")
        assert (await desk.plain()).keys() == {*expected, "new.gz" if compression else "new"}
    assert desk.store.asked == {"put": 1}


async def test_the_next_attempt_places_what_is_there_with_other_content(desk: Desk) -> None:
    async with desk.open() as sync:
        await sync.restore()
        desk.write("large", os.urandom(2 * MIB))
        desk.write("small", b"mine")
        await sync.commit("exit")
        await sync.end_watch()
        sync.clean()
    await desk.shelf.seed("ck/small", b"hers")
    await desk.shelf.seed("ck/large", bytes(2 * MIB))
    async with desk.open(attempt=2) as sync:
        await sync.restore()
        desk.write("new", b"new")
        await sync.commit("exit")
        assert await desk.plain() == desk.local()
        assert desk.local()["small"] == b"mine"


async def test_the_next_attempt_deletes_what_an_earlier_one_placed_and_it_saw_go(desk: Desk) -> None:
    async with desk.open() as sync:
        await sync.restore()
        desk.write("old", os.urandom(MIB))
        await sync.commit("exit")
        await sync.end_watch()
        sync.clean()
    async with desk.open(attempt=2) as sync:
        await sync.restore()
        watch = asyncio.create_task(sync.watch(list))
        plain = parts(sync)._plain
        await until(lambda: bool(plain._known.items()))  # the first round, which comes at once
        watch.cancel()
        (desk.checkpoint / "old").rename(desk.checkpoint / "new")
        await sync.commit("exit")
        assert await desk.plain() == desk.local()
        assert set(desk.local()) == {"new"}
    assert desk.store.sent_bytes == 0


@pytest.mark.parametrize("content", [b"hers", b"hers, longer"])
async def test_what_somebody_put_where_nothing_was_placed_stays_when_the_file_goes(desk: Desk, content: bytes) -> None:
    async with desk.open() as sync:
        await sync.restore()
        desk.write("model", b"mine")
        desk.write("stays", b"mine")
        await sync.commit("sigterm", plain=False)
        await sync.end_watch()
        sync.clean()
    await desk.shelf.seed("ck/model", content)
    async with desk.open(attempt=2) as sync:
        await sync.restore()
        (desk.checkpoint / "model").unlink()
        assert (await sync.commit("exit")).id
        assert await desk.plain() == {"model": content, "stays": b"mine"}


async def test_the_next_attempt_places_what_an_earlier_one_committed_at_its_end(desk: Desk) -> None:
    async with desk.open() as sync:
        await sync.restore()
        desk.write("large", os.urandom(MIB))
        desk.write("small", b"1")
        await sync.commit("sigterm", plain=False)
        assert await desk.plain() == {}
        await sync.end_watch()
        sync.clean()
    async with desk.open(attempt=2) as sync:
        await sync.restore()
        report = await sync.commit("exit")
        assert report.generation == 0  # nothing new
        assert await desk.plain() == desk.local()
        assert desk.local().keys() == {"large", "small"}
    assert desk.store.sent == {"ck/small": 1}


async def test_the_plain_key_of_a_file_that_was_not_restored_stays(desk: Desk) -> None:
    async with desk.open() as sync:
        await sync.restore()
        desk.write("model", b"1")
        desk.write("notes", b"2")
        await sync.commit("exit")
        await sync.end_watch()
        sync.clean()
    async with desk.open(desk.job(restored="model$"), attempt=2) as sync:
        await sync.restore()
        assert desk.local().keys() == {"model"}
        await sync.commit("exit")
        (desk.checkpoint / "model").rename(desk.checkpoint / "model2")
        await sync.commit("exit")
        assert await desk.plain() == {"model2": b"1", "notes": b"2"}


async def test_outputs_that_are_under_their_plain_keys_are_not_sent_again(desk: Desk) -> None:
    async with desk.open(desk.job(after=True)) as sync:
        await sync.restore()
        for name, size in (("one", 3 * MIB), ("several", 4 * WINDOW + 7)):
            desk.write(name, os.urandom(size))
        await sync.commit("exit")
        files = (await sync.upload_outputs()).files
        assert [file.key for file in files] == ["ck/one", "ck/several"]
        assert all(len(file.sha256) == 64 for file in files)
    assert desk.store.sent_bytes == 0


async def test_a_packed_output_that_is_there_is_not_sent_again(desk: Desk) -> None:
    async with desk.open(desk.job(after=True, compression=True)) as sync:
        await sync.restore()
        desk.write("text", b"text " * MIB)
        await sync.commit("exit")
        (file,) = (await sync.upload_outputs()).files
        assert gzip.decompress(await desk.shelf.content("ck/text.gz")) == b"text " * MIB
        assert file.size_bytes == desk.store.sent_bytes


# -- storages that do not copy -------------------------------------------------------------------------------------


async def test_a_storage_that_refuses_copies_is_asked_once_and_sent_everything(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(what: str, key: str) -> None:
        if what.startswith("copy"):
            raise StorageSetupError("copies are not implemented (501)", bucket=desk.shelf.bucket, key=key)

    desk.store.before = refuse
    async with desk.open() as sync:
        await sync.restore()
        for name, size in (("a", 2 * MIB), ("b", 2 * MIB), ("several", 4 * WINDOW + 7)):
            desk.write(name, os.urandom(size))
        await sync.commit("exit")
        desk.write("a", b"more", append=True)
        await sync.commit("exit")
        assert await desk.plain() == desk.local()
    assert desk.store.asked["copy"] + desk.store.asked["copy_part"] == 1
    assert [record.bucket for record in said(caplog, "copy_refused")] == [desk.shelf.bucket]


async def test_a_copy_that_is_not_whole_is_sent(
    of_memory: Desk, memory: MemoryStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def copy(bucket: str, key: str, source_key: str, _: Fence) -> StoredObject:
        memory.seed(bucket, key, memory.content(bucket, source_key)[:-1])
        found = await memory.head(bucket, key)
        assert found is not None
        return found

    monkeypatch.setattr(memory, "copy", copy)
    desk = of_memory
    async with desk.open() as sync:
        await sync.restore()
        desk.write("a", os.urandom(2 * MIB))
        await sync.commit("exit")
        assert await desk.plain() == desk.local()
    assert len(said(caplog, "copy_refused")) == 1


async def test_a_segment_that_is_gone_is_no_reason_to_send_the_other_files(
    of_memory: Desk, memory: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    desk = of_memory

    async def lose(what: str, key: str) -> None:
        if key == "ck/a" and what == "copy":
            for segment in await desk.shelf.keys("ck.kelpie/data/"):
                if memory.content("bucket", segment) == desk.local()["a"]:
                    del memory.objects["bucket"][segment]

    desk.store.before = lose
    async with desk.open() as sync:
        await sync.restore()
        for name in ("a", "b"):
            desk.write(name, os.urandom(2 * MIB))
        await sync.commit("exit")
        assert await desk.plain() == desk.local()
    assert desk.store.sent == {"ck/a": 2 * MIB}
    assert said(caplog, "copy_refused") == []


async def test_a_storage_that_fails_at_nothing_but_copies_is_sent_everything(
    of_memory: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kelpie_worker.sync.assembling.GIVE_UP_S", 0.05)

    async def fail(what: str, key: str) -> None:
        if what.startswith("copy"):
            raise StorageUnavailable("internal error", bucket="bucket", key=key)

    desk = of_memory
    desk.store.before = fail
    async with desk.open() as sync:
        await sync.restore()
        for name in ("a", "b"):
            desk.write(name, os.urandom(2 * MIB))
        await sync.commit("exit")
        assert await desk.plain() == desk.local()
    assert len(said(caplog, "copy_failed")) == 1


async def test_a_storage_that_is_away_is_waited_for_and_then_copies(
    of_memory: Desk, memory: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kelpie_worker.sync.assembling.GIVE_UP_S", 0.0)
    desk = of_memory

    async def away(what: str, _: str) -> None:
        if what == "copy" and desk.store.asked["copy"] == 1:
            memory.down = True
            asyncio.get_running_loop().call_later(0.3, lambda: setattr(memory, "down", False))

    desk.store.before = away
    async with desk.open() as sync:
        await sync.restore()
        desk.write("a", os.urandom(2 * MIB))
        await sync.commit("exit")
        assert await desk.plain() == desk.local()
    assert desk.store.asked["copy"] == 2
    assert desk.store.sent_bytes == 0


# -- what is visible is what was committed -------------------------------------------------------------------------


async def test_a_file_that_changes_while_its_plain_key_is_put_together_becomes_what_was_committed(desk: Desk) -> None:
    committed = os.urandom(4 * WINDOW + 7)

    async def change(what: str, _: str) -> None:
        if what == "copy_part":
            desk.write("model", b"newer")

    desk.store.before = change
    async with desk.open() as sync:
        await sync.restore()
        desk.write("model", committed)
        await sync.commit("exit")
        assert await desk.plain() == {"model": committed}
        desk.store.before = None
        await sync.commit("exit")
        assert await desk.plain() == {"model": b"newer"}


async def test_a_window_that_is_not_what_was_committed_any_more_leaves_the_plain_key_alone(desk: Desk) -> None:
    async with desk.open() as sync:
        await sync.restore()
        first = os.urandom(WINDOW + MIB)
        desk.write("traj", first)
        await sync.commit("exit")

        async def change(what: str, _: str) -> None:
            if what == "copy_part":
                with (desk.checkpoint / "traj").open("r+b") as file:
                    file.seek(WINDOW)
                    file.write(bytes(MIB))
                desk.store.before = None

        desk.store.before = change
        desk.write("traj", os.urandom(MIB), append=True)
        await sync.commit("exit")
        assert await desk.plain() == {"traj": first}
        assert desk.store.asked["complete"] == 0
        await sync.commit("exit")
        assert await desk.plain() == desk.local()


async def test_a_plain_key_that_somebody_replaced_is_not_copied_from(of_memory: Desk, memory: MemoryStore) -> None:
    desk = of_memory
    async with desk.open() as sync:
        await sync.restore()
        desk.write("traj", os.urandom(WINDOW + MIB))
        await sync.commit("exit")
        desk.write("traj", os.urandom(WINDOW), append=True)
        await sync.commit("exit")
        memory.seed("bucket", "ck/traj", bytes(20 * MIB))
        desk.write("traj", os.urandom(WINDOW), append=True)
        await sync.commit("exit")
        assert await desk.plain() == desk.local()
    assert memory.uploads == {}


@pytest.mark.parametrize(("size", "last"), [(2 * MIB, "copy"), (4 * WINDOW + 7, "complete")])
async def test_nothing_is_put_together_while_muted(desk: Desk, size: int, last: str) -> None:
    fence, reached = desk.shelf.fence, asyncio.Event()

    async def mute(what: str, _: str) -> None:
        if what == last:
            fence.mute()
            reached.set()

    desk.store.before = mute
    async with desk.open() as sync:
        await sync.restore()
        desk.write("model", os.urandom(size))
        committing = asyncio.ensure_future(sync.commit("exit"))
        await asyncio.wait_for(reached.wait(), 20)
        await asyncio.sleep(0.1)
        assert await desk.plain() == {}
        desk.store.before = None
        fence.unmute()
        await asyncio.wait_for(committing, 20)
        assert await desk.plain() == desk.local()


@pytest.mark.parametrize(("size", "last"), [(2 * MIB, "copy"), (4 * WINDOW + 7, "complete")])
async def test_an_attempt_that_lost_its_job_puts_nothing_together(
    of_memory: Desk, memory: MemoryStore, size: int, last: str
) -> None:
    desk = of_memory

    async def lose(what: str, _: str) -> None:
        if what == last:
            desk.shelf.fence.lose()

    desk.store.before = lose
    async with desk.open() as sync:
        await sync.restore()
        desk.write("model", os.urandom(size))
        with pytest.raises(LeaseLost):
            await sync.commit("exit")
    assert await desk.plain() == {}
    assert memory.uploads == {}


# -- beside the command --------------------------------------------------------------------------------------------


@asynccontextmanager
async def watching(sync: SyncSession) -> AsyncIterator[None]:
    task = asyncio.ensure_future(sync.watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_commits_do_not_wait_for_plain_keys(of_memory: Desk, memory: MemoryStore) -> None:
    desk, held, go_on = of_memory, asyncio.Event(), asyncio.Event()

    async def hold(what: str, _: str) -> None:
        if what == "put" and not held.is_set():
            held.set()
            await go_on.wait()

    desk.store.before = hold
    async with desk.open() as sync:
        await sync.restore()
        async with watching(sync):
            desk.write("a", b"1")
            await asyncio.wait_for(held.wait(), 20)
            for number in range(3):
                before = sync.commits
                desk.write("a", b"2" * (number + 2))
                desk.write("b", b"3" * (number + 1))
                await until(lambda before=before: sync.commits > before)  # type: ignore[misc]
            assert [key for key in memory.keys("bucket") if is_plain(key)] == []
            go_on.set()
            assert sync._checkpoints is not None
            await asyncio.wait_for(sync._checkpoints._following or asyncio.sleep(0), 20)
            # The file has changed since that round began: it is the next one's.
            assert [key for key in memory.keys("bucket") if is_plain(key)] == []
            desk.write("c", b"4")
            await until(lambda: {"ck/a", "ck/b", "ck/c"} <= memory.objects["bucket"].keys())
            assert await desk.plain() == desk.local()


async def test_what_was_placed_while_a_newer_commit_came_counts_as_the_older_one(of_memory: Desk) -> None:
    """A store through a mapping may change content without changing the stamp: then only the commit says so."""
    desk, held, go_on = of_memory, asyncio.Event(), asyncio.Event()

    async def hold(what: str, _: str) -> None:
        if what == "copy":
            held.set()
            await go_on.wait()

    desk.store.before = hold
    async with desk.open() as sync:
        await sync.restore()
        async with watching(sync):
            desk.write("a", os.urandom(MIB))
            await asyncio.wait_for(held.wait(), 20)
            assert sync._checkpoints is not None
            plain = sync._checkpoints._plain
            goal = plain._goal
            assert goal is not None
            address = desk.shelf.bucket, "ck/a"
            entry, manifest = goal.entries[address]
            other = entry._replace(extents=(entry.extents[0]._replace(digest="other"),))
            plain._goal = newer = replace(goal, entries={address: (other, manifest)})
            go_on.set()
            await asyncio.wait_for(sync._checkpoints._following or asyncio.sleep(0), 20)
            blocks = plain._blocks(final=False)
            assert not plain._differences(goal, blocks)
            assert [file.key for file in plain._differences(newer, blocks).changed] == ["ck/a"]


async def test_the_content_of_a_commit_goes_before_plain_keys(of_memory: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, sending, go_on = of_memory, asyncio.Event(), asyncio.Event()
    real = desk.shelf.store.put

    async def put(bucket: str, key: str, body: Body, fence: Fence) -> StoredObject:
        if "/data/" in key and body.size_bytes >= MIB:
            sending.set()
            await go_on.wait()
        return await real(bucket, key, body, fence)

    async with desk.open() as sync:
        await sync.restore()
        async with watching(sync):
            monkeypatch.setattr(desk.shelf.store, "put", put)
            desk.write("large", os.urandom(2 * MIB))
            await asyncio.wait_for(sending.wait(), 20)
            follow = asyncio.ensure_future(_follow(sync, desk))
            await asyncio.sleep(0.3)
            assert desk.store.asked["put"] == 0
            go_on.set()
            await asyncio.wait_for(follow, 20)
        assert desk.store.asked["put"] == 1


async def test_plain_keys_do_not_wait_for_content_that_does_not_get_through(
    memory: MemoryStore, fence: HandFence, tmp_path: Path
) -> None:
    spool = Spool(memory, fence, tmp_path, lambda _: None)
    memory.down = True
    segment = await spool.new("bucket", "data/")
    segment.append(b"content")
    spool.send(segment)
    assert spool.left_bytes([segment]) == 7
    waiting = asyncio.ensure_future(spool.idle(60.0))
    await asyncio.wait_for(spool.idle(0.01), 20)
    assert not waiting.done()
    memory.down = False
    await asyncio.wait_for(waiting, 20)
    assert spool.left_bytes([segment]) == 0
    await spool.close()


async def _follow(sync: SyncSession, desk: Desk) -> None:
    """A request to a plain key, as a round beside the command makes them."""
    assert sync._checkpoints is not None
    uploader = sync._checkpoints._plain._uploader
    path = desk.scratch / "other"
    path.write_bytes(b"1")
    captured = await capture(path)
    try:
        await uploader.upload(captured, desk.shelf.bucket, "ck/other", Patience(5.0, "test"))
    finally:
        captured.close()


async def test_few_requests_at_once_go_to_plain_keys_beside_the_command(of_memory: Desk) -> None:
    desk, running, most = of_memory, 0, 0

    async def count(what: str, _: str) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1

    desk.store.before = count
    async with desk.open() as sync:
        await sync.restore()
        async with watching(sync):
            for name in ("first", "second"):
                desk.write(name, os.urandom(4 * WINDOW + 1))
            for number in range(80):
                desk.write(f"{number}", b"x")
            await until(lambda: desk.store.asked["put"] >= 80)
            assert most == 2


async def test_a_file_that_is_half_sent_when_the_command_ends_is_not_sent_again(of_memory: Desk) -> None:
    desk, held, go_on = of_memory, asyncio.Event(), asyncio.Event()

    async def hold(what: str, key: str) -> None:
        if key == "ck/a":
            held.set()
            await go_on.wait()

    desk.store.before = hold
    async with desk.open() as sync:
        await sync.restore()
        async with watching(sync):
            desk.write("a", b"1" * 1000)
            await asyncio.wait_for(held.wait(), 20)
        committing = asyncio.ensure_future(sync.commit("exit"))
        await asyncio.sleep(0.2)
        go_on.set()
        await asyncio.wait_for(committing, 20)
        assert await desk.plain() == desk.local()
    assert desk.store.asked == {"put": 1}


async def test_a_last_commit_without_plain_keys_does_not_wait_for_them(of_memory: Desk) -> None:
    desk, held = of_memory, asyncio.Event()

    async def hold(_: str, __: str) -> None:
        held.set()
        await asyncio.Event().wait()

    desk.store.before = hold
    async with desk.open() as sync:
        await sync.restore()
        async with watching(sync):
            desk.write("a", b"1")
            await asyncio.wait_for(held.wait(), 20)
        desk.write("a", b"22")
        report = await asyncio.wait_for(sync.commit("exit", plain=False), 20)
        assert report.generation == 2
