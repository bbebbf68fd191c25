"""What every commit must do, on a storage in memory and on a real one; P1, P3 (one file), P4."""

# ruff: noqa: ASYNC240 -- small files, made and looked at by the test itself

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kelpie_celery.clock import SystemClock
from kelpie_celery.errors import LeaseLost, StorageSetupError, StorageUnavailable
from kelpie_worker.sync.commit import CommitReport, PlainCommit
from kelpie_worker.sync.errors import LocalFileError
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.object_store import Body, StoredObject
from kelpie_worker.sync.plan import Placed
from kelpie_worker.sync.restore import PlainRestore, RestoreReport
from tests.contract.conftest import Shelf
from tests.contract.fakes_s3 import HandFence, MemoryStore

MIB = 1024 * 1024


class Bench:
    """A commit with its directory, fast, and what it reported."""

    def __init__(self, shelf: Shelf, tmp_path: Path, *blocks: Placed, **options: Any) -> None:
        self.shelf = shelf
        self.directory = tmp_path / "ckpt"
        self.directory.mkdir(exist_ok=True)
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        self.blocks = blocks or (shelf.block(self.directory),)
        self.reports: list[CommitReport] = []
        self.news = asyncio.Event()
        options = {"quiet_s": 0.1, "min_interval_s": 0.0, "poll_s": 0.02, "give_up_s": 10.0} | options
        self.commit = PlainCommit(
            shelf.store, self.blocks, shelf.fence, scratch, SystemClock(), on_commit=self._note, **options
        )
        self.scratch = scratch

    async def _note(self, report: CommitReport) -> None:
        self.reports.append(report)
        self.news.set()

    def write(self, name: str, data: bytes, mtime: float | None = None) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if mtime is not None:
            os.utime(path, (mtime, mtime))
        return path

    async def next_report(self) -> CommitReport:
        await asyncio.wait_for(self.news.wait(), 20)
        self.news.clear()
        return self.reports[-1]

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.commit.watch())
        try:
            yield task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, StorageSetupError, LeaseLost):
                await task


@pytest.fixture
async def bench(shelf: Shelf, tmp_path: Path) -> Bench:
    return Bench(shelf, tmp_path)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


# -- the last commit ---------------------------------------------------------------------------------------------------


async def test_the_last_commit_stores_every_file(bench: Bench) -> None:
    files = {"a": b"1", "deep/b": b"22", "empty": b"", "odd näme\n": b"3"}
    for name, data in files.items():
        bench.write(name, data)
    report = await bench.commit.commit("exit")
    assert {key: await bench.shelf.content(key) for key in await bench.shelf.keys()} == {
        f"p/{name}": data for name, data in files.items()
    }
    assert (report.why, report.files, report.bytes, report.deleted) == ("exit", 4, 4, 0)
    assert bench.commit.commits == 1
    assert bench.reports == [report]


async def test_a_commit_without_changes_sends_and_reports_nothing(bench: Bench) -> None:
    bench.write("a", b"1")
    await bench.commit.commit("exit")
    report = await bench.commit.commit("again")
    assert (report.files, report.deleted) == (0, 0)
    assert bench.commit.commits == 1
    assert len(bench.reports) == 1


async def test_only_what_changed_is_sent_again(bench: Bench) -> None:
    bench.write("a", b"1")
    bench.write("b", b"1")
    await bench.commit.commit("one")
    bench.write("b", b"2")
    report = await bench.commit.commit("two")
    assert report.files == 1
    assert await bench.shelf.content("p/b") == b"2"


async def test_a_large_file_goes_in_parts_and_is_the_same(bench: Bench) -> None:
    data = os.urandom(17 * MIB + 1)
    bench.write("big", data)
    await bench.commit.commit("exit")
    assert await bench.shelf.content("p/big") == data


async def test_a_file_that_went_away_goes_away_on_the_storage(bench: Bench) -> None:
    bench.write("a", b"1")
    bench.write("b", b"1")
    await bench.commit.commit("one")
    (bench.directory / "a").unlink()
    report = await bench.commit.commit("two")
    assert report.deleted == 1
    assert await bench.shelf.keys() == ["p/b"]


async def test_what_this_job_did_not_place_is_never_deleted(bench: Bench) -> None:
    await bench.shelf.seed("p/somebody-else", b"x")
    bench.write("a", b"1")
    await bench.commit.prime(RestoreReport())
    await bench.commit.commit("exit")
    assert await bench.shelf.keys() == ["p/a", "p/somebody-else"]


async def test_a_directory_that_is_gone_deletes_nothing(bench: Bench) -> None:
    bench.write("a", b"1")
    await bench.commit.commit("one")
    shutil.rmtree(bench.directory)
    report = await bench.commit.commit("two")
    assert report.deleted == 0
    assert await bench.shelf.keys() == ["p/a"]


async def test_restored_files_are_not_sent_again_and_deleted_when_the_job_deletes_them(
    shelf: Shelf, tmp_path: Path
) -> None:
    await shelf.seed("p/kept", b"1")
    await shelf.seed("p/dropped", b"1")
    bench = Bench(shelf, tmp_path)
    block = shelf.block(bench.directory, stage="before")
    await bench.commit.prime(await PlainRestore(shelf.store).restore([block]))
    assert (await bench.commit.commit("nothing")).files == 0
    (bench.directory / "dropped").unlink()
    report = await bench.commit.commit("exit")
    assert (report.files, report.deleted) == (0, 1)
    assert await shelf.keys() == ["p/kept"]


async def test_the_pattern_is_searched_in_the_relative_path_and_hides_files_from_deletion(
    shelf: Shelf, tmp_path: Path
) -> None:
    await shelf.seed("p/notes.txt", b"restored, but not of the during block")
    directory = tmp_path / "ckpt"
    bench = Bench(shelf, tmp_path, shelf.block(directory, pattern=r"^keep/.*\.pt$"))
    await bench.commit.prime(await PlainRestore(shelf.store).restore([shelf.block(directory, stage="before")]))
    (directory / "notes.txt").unlink()
    for name in ("keep/a.pt", "keep/a.txt", "other/b.pt"):
        bench.write(name, b"1")
    await bench.commit.commit("exit")
    assert await shelf.keys() == ["p/keep/a.pt", "p/notes.txt"]


async def test_files_are_gzipped_always_to_the_same_bytes_when_the_job_compresses(shelf: Shelf, tmp_path: Path) -> None:
    bench = Bench(shelf, tmp_path, compression=True)
    bench.write("a", b"text" * 1000)
    await bench.commit.commit("exit")
    packed = await shelf.content("p/a.gz")
    assert gzip.decompress(packed) == b"text" * 1000
    assert packed[4:8] == b"\0\0\0\0"  # gzip's own time stamp
    assert await shelf.keys() == ["p/a.gz"]
    assert list(bench.scratch.iterdir()) == []


async def test_a_file_restored_from_a_plain_key_is_stored_packed_and_the_plain_key_goes(
    shelf: Shelf, tmp_path: Path
) -> None:
    await shelf.seed("p/a", b"by hand")
    bench = Bench(shelf, tmp_path, compression=True)
    block = shelf.block(bench.directory, stage="before")
    await bench.commit.prime(await PlainRestore(shelf.store, compression=True).restore([block]))
    await bench.commit.commit("exit")
    assert await shelf.keys() == ["p/a.gz"]


async def test_links_pipes_and_our_own_files_are_not_stored(bench: Bench) -> None:
    outside = bench.directory.parent / "outside"
    outside.write_text("secret")
    (bench.directory / "link").symlink_to(outside)
    (bench.directory / "folder-link").symlink_to(bench.directory.parent)
    os.mkfifo(bench.directory / "pipe")
    bench.write(".kelpie-tmp-1", b"x")
    bench.write("x.kelpie/jobs/1/completed.json", b"x")
    bench.write("a", b"1")
    await bench.commit.commit("exit")
    assert await bench.shelf.keys() == ["p/a"]


async def test_what_vanished_from_the_storage_is_sent_again_by_the_last_commit(bench: Bench) -> None:
    bench.write("a", b"1")
    bench.write("b", b"1")
    await bench.commit.commit("one")
    await bench.shelf.store.delete(bench.shelf.bucket, "p/a", HandFence())
    await bench.shelf.seed("p/b", b"somebody else's")
    await bench.commit.commit("exit")
    assert await bench.shelf.content("p/a") == b"1"
    assert await bench.shelf.content("p/b") == b"1"


async def test_a_change_that_left_no_trace_is_found_by_the_last_commit(bench: Bench) -> None:
    """A program that writes through a mapping need not move the time of the file: here it is put back."""
    path = bench.write("a", b"1")
    await bench.commit.commit("one")
    known = bench.commit.known.get((bench.shelf.bucket, "p/a"))
    path.write_bytes(b"2")
    bench.commit.known._by_address[bench.shelf.bucket, "p/a"] = _with_stamp_of(known, path)
    await bench.commit.commit("exit")
    assert await bench.shelf.content("p/a") == b"2"


def _with_stamp_of(known: Any, path: Path) -> Any:
    from dataclasses import replace

    from kelpie_worker.sync.snapshot import Stamp

    return replace(known, stamp=Stamp.of(path.stat()))


async def test_an_unreadable_folder_is_an_error_and_not_a_deletion(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write("sub/a", b"1")
    await bench.commit.commit("one")
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("kelpie_worker.sync.snapshot.os.scandir", refuse)
    with pytest.raises(LocalFileError, match="sub"):
        await bench.commit.commit("two")
    assert await bench.shelf.keys() == ["p/sub/a"]


async def test_a_missing_bucket_is_a_mistake_in_the_set_up(shelf: Shelf, tmp_path: Path) -> None:
    bench = Bench(shelf, tmp_path, Placed("during", "checkpoint", "no-such-bucket", "p/", tmp_path / "ckpt"))
    bench.write("a", b"1")
    with pytest.raises(StorageSetupError, match="no-such-bucket"):
        await bench.commit.commit("exit")


async def test_an_attempt_that_lost_its_job_commits_nothing(bench: Bench) -> None:
    bench.write("a", b"1")
    bench.shelf.fence.lose()
    with pytest.raises(LeaseLost):
        await bench.commit.commit("exit")
    assert await bench.shelf.keys() == []


# -- beside the command ------------------------------------------------------------------------------------------------


async def test_a_checkpoint_is_stored_when_it_has_settled(bench: Bench) -> None:
    await bench.commit.prime(RestoreReport())
    async with bench.watching():
        bench.write("a", b"1")
        report = await bench.next_report()
        assert (report.why, report.files, report.bytes) == ("quiet", 1, 1)
        bench.write("a", b"22")
        assert (await bench.next_report()).bytes == 2
        (bench.directory / "a").unlink()
        assert (await bench.next_report()).deleted == 1
    assert await bench.shelf.keys() == []


async def test_a_file_written_before_the_watch_began_is_stored(bench: Bench) -> None:
    await bench.commit.prime(RestoreReport())
    bench.write("a", b"1")
    async with bench.watching():
        assert (await bench.next_report()).files == 1


async def test_nothing_is_stored_inside_a_burst_of_writes(shelf: Shelf, tmp_path: Path) -> None:
    bench = Bench(shelf, tmp_path, quiet_s=0.5)
    async with bench.watching():
        for step in range(20):
            bench.write(f"part-{step}", b"x")
            await asyncio.sleep(0.05)
            assert bench.reports == []
        assert (await bench.next_report()).files == 20


async def test_two_checkpoints_are_apart_and_the_last_is_never_dropped(shelf: Shelf, tmp_path: Path) -> None:
    bench = Bench(shelf, tmp_path, quiet_s=0.02, min_interval_s=1.0)
    async with bench.watching():
        bench.write("a", b"1")
        first = await bench.next_report()
        bench.write("a", b"2")
        second = await bench.next_report()
    assert (second.time - second.seconds) - (first.time - first.seconds) >= 0.95
    assert await shelf.content("p/a") == b"2"


async def test_a_requested_commit_does_not_wait_and_ends_those_by_quiet(shelf: Shelf, tmp_path: Path) -> None:
    bench = Bench(shelf, tmp_path, quiet_s=0.1, min_interval_s=3600.0)
    async with bench.watching():
        bench.write("a", b"1")
        bench.commit.request_commit()
        assert (await bench.next_report()).why == "report"
        bench.write("a", b"2")
        await asyncio.sleep(0.4)
        assert await shelf.content("p/a") == b"1"
        bench.commit.request_commit()
        await bench.next_report()
        assert await shelf.content("p/a") == b"2"


async def test_new_output_files_go_up_as_they_settle_and_none_is_deleted(shelf: Shelf, tmp_path: Path) -> None:
    directory = tmp_path / "ckpt"
    bench = Bench(shelf, tmp_path, shelf.block(directory, "o/", role="output"))
    async with bench.watching():
        bench.write("a", b"1")
        await until(lambda: bench.commit.known.get((shelf.bucket, "o/a")) is not None)
        (directory / "a").unlink()
        bench.write("b", b"1")
        await until(lambda: bench.commit.known.get((shelf.bucket, "o/b")) is not None)
    assert await shelf.keys() == ["o/a", "o/b"]
    assert bench.commit.commits == 0
    assert bench.reports == []


async def test_a_muted_attempt_waits_and_goes_on_when_it_is_trusted_again(bench: Bench) -> None:
    bench.shelf.fence.mute()
    async with bench.watching():
        bench.write("a", b"1")
        await asyncio.sleep(0.4)
        assert await bench.shelf.keys() == []
        bench.shelf.fence.unmute()
        await bench.next_report()
    assert await bench.shelf.keys() == ["p/a"]


async def test_a_lost_job_ends_the_watch(bench: Bench) -> None:
    async with bench.watching() as task:
        bench.shelf.fence.lose()
        with pytest.raises(LeaseLost):
            await asyncio.wait_for(asyncio.shield(task), 10)


async def test_a_checkpoint_restores_as_it_was_committed(bench: Bench, tmp_path: Path) -> None:
    files = {"model.bin": os.urandom(9 * MIB), "sub/latest": b"model.bin"}
    for name, data in files.items():
        bench.write(name, data)
    await bench.commit.commit("exit")
    back = bench.shelf.block(tmp_path / "back", stage="before")
    await PlainRestore(bench.shelf.store).restore([back])
    assert {p.relative_to(back.path).as_posix(): p.read_bytes() for p in back.path.rglob("*") if p.is_file()} == files


# -- what only a storage in memory can be brought to do ----------------------------------------------------------------


@pytest.fixture
def of_memory(memory: MemoryStore, fence: HandFence, tmp_path: Path) -> Bench:
    return Bench(Shelf(memory, "bucket", fence), tmp_path)


async def test_files_go_up_in_the_order_in_which_they_were_written(memory: MemoryStore, of_memory: Bench) -> None:
    names = [f"f{number}" for number in (5, 3, 9, 1, 7)]
    for age, name in enumerate(names):
        of_memory.write(name, b"x" * (10 * MIB if age == 0 else 10), mtime=1000.0 + age)
    await of_memory.commit.commit("exit")
    assert memory.written == [f"p/{name}" for name in names]


async def test_of_many_files_the_newest_go_last_and_in_order(memory: MemoryStore, of_memory: Bench) -> None:
    for age in range(100):
        of_memory.write(f"f{age:03}", b"x", mtime=1000.0 + age)
    await of_memory.commit.commit("exit")
    assert memory.written[-64:] == [f"p/f{age:03}" for age in range(36, 100)]
    assert sorted(memory.written) == [f"p/f{age:03}" for age in range(100)]


async def test_a_file_that_is_written_for_long_is_not_visible_before_it_is_whole(
    memory: MemoryStore, fence: HandFence, tmp_path: Path
) -> None:
    bench = Bench(Shelf(memory, "bucket", fence), tmp_path, quiet_s=0.3)
    async with bench.watching():
        with (bench.directory / "a").open("wb") as file:
            for _ in range(20):
                file.write(b"x" * 1000)
                file.flush()
                await asyncio.sleep(0.05)
                assert memory.keys("bucket") == []
        await bench.next_report()
    assert memory.content("bucket", "p/a") == b"x" * 20_000
    assert memory.written == ["p/a"]


async def test_a_directory_that_never_holds_still_is_warned_of(
    memory: MemoryStore, fence: HandFence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr("kelpie_worker.sync.commit.LATE_S", 0.2)
    bench = Bench(Shelf(memory, "bucket", fence), tmp_path, quiet_s=60.0)
    async with bench.watching():
        bench.write("a", b"1")
        await until(lambda: any(getattr(record, "action", "") == "commit_late" for record in caplog.records))


names = st.sampled_from(["a", "b", "deep/c", "deep/er/d"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), names, st.binary(max_size=20)),
        st.tuples(st.just("delete"), names, st.none()),
        st.tuples(st.just("rename"), names, names),
        st.tuples(st.just("commit"), st.none(), st.none()),
        st.tuples(st.just("restart"), st.none(), st.none()),
    ),
    max_size=15,
)


@settings(max_examples=60, deadline=None)
@given(steps, st.booleans())
def test_whatever_a_job_does_the_next_attempt_finds_what_the_last_commit_saw(
    steps: list[tuple[str, Any, Any]], compression: bool
) -> None:
    with tempfile.TemporaryDirectory() as home:
        asyncio.run(_history(Path(home), steps, compression))


async def _history(home: Path, steps: list[tuple[str, Any, Any]], compression: bool) -> None:
    memory = MemoryStore("bucket")
    shelf = Shelf(memory, "bucket", HandFence())
    bench = Bench(shelf, home, compression=compression)
    committed: dict[str, bytes] = {}
    for what, one, two in steps:
        path = bench.directory / one if one else bench.directory
        if what == "write":
            bench.write(one, two)
        elif what == "delete":
            path.unlink(missing_ok=True)
        elif what == "rename" and path.exists():
            (bench.directory / two).parent.mkdir(parents=True, exist_ok=True)
            path.rename(bench.directory / two)
        elif what == "commit":
            await bench.commit.commit("test")
            committed = tree(bench.directory)
        elif what == "restart":
            bench = Bench(shelf, home, compression=compression)
            block = shelf.block(bench.directory, stage="before")
            await bench.commit.prime(await PlainRestore(memory, compression=compression).restore([block]))
            assert tree(bench.directory) == committed
    await bench.commit.commit("exit")
    assert len(memory.keys("bucket")) == len(tree(bench.directory))


def tree(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


async def test_uploads_come_before_deletions(memory: MemoryStore, of_memory: Bench) -> None:
    of_memory.write("old", b"x")
    await of_memory.commit.commit("one")
    (of_memory.directory / "old").unlink()
    of_memory.write("new", b"x")
    memory.calls.clear()
    await of_memory.commit.commit("two")
    assert memory.written[-1] == "p/new"
    assert memory.deleted == ["p/old"]
    assert list(memory.calls)[:2] == ["put", "delete"]


async def test_a_storage_that_is_away_is_waited_for_beside_the_command(
    memory: MemoryStore, of_memory: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kelpie_worker.sync.commit.WATCH_GIVE_UP_S", 0.0)
    memory.down = True
    async with of_memory.watching() as task:
        of_memory.write("a", b"1")
        await until(lambda: memory.calls["put"] >= 3)
        assert not task.done()
        memory.down = False
        await of_memory.next_report()
    assert memory.keys("bucket") == ["p/a"]
    assert sum("could not be stored" in record.message for record in caplog.records) == 1


async def test_a_storage_that_refuses_ends_the_watch(memory: MemoryStore, of_memory: Bench) -> None:
    memory.denied.add("bucket")
    async with of_memory.watching() as task:
        of_memory.write("a", b"1")
        with pytest.raises(StorageSetupError, match="denied"):
            await asyncio.wait_for(asyncio.shield(task), 10)


async def test_the_last_commit_gives_up_only_after_a_while(
    memory: MemoryStore, fence: HandFence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kelpie_worker.sync.retry.FIRST_PAUSE_S", 0.02)
    bench = Bench(Shelf(memory, "bucket", fence), tmp_path, give_up_s=0.3)
    bench.write("a", b"1")
    memory.down = True
    with pytest.raises(StorageUnavailable):
        await bench.commit.commit("exit")
    assert memory.calls["put"] >= 2


class SlowMemory(MemoryStore):
    """Waits in the middle of each upload until it is let go."""

    def __init__(self, *buckets: str) -> None:
        super().__init__(*buckets)
        self.under_way, self.go_on = asyncio.Event(), asyncio.Event()

    async def put(self, bucket: str, key: str, body: Body, fence: Fence) -> StoredObject:
        self.under_way.set()
        await self.go_on.wait()
        return await super().put(bucket, key, body, fence)


async def test_a_file_that_changes_while_it_is_sent_ends_with_its_latest_version(
    fence: HandFence, tmp_path: Path
) -> None:
    slow = SlowMemory("bucket")
    bench = Bench(Shelf(slow, "bucket", fence), tmp_path)
    async with bench.watching():
        bench.write("a", b"old" * 1000)
        await asyncio.wait_for(slow.under_way.wait(), 10)
        bench.write("a", b"new" * 1000)
        slow.go_on.set()
        await until(lambda: "p/a" in slow.objects["bucket"] and slow.content("bucket", "p/a") == b"new" * 1000)
    assert slow.written.count("p/a") == 2
    assert list(bench.scratch.iterdir()) == []


@pytest.mark.parametrize("room", [True, False])
async def test_what_is_stored_is_what_was_captured_whatever_is_written_meanwhile(
    fence: HandFence, tmp_path: Path, room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not room:
        monkeypatch.setattr("kelpie_worker.sync.sending.space_for_copies", lambda _: 0)
    slow = SlowMemory("bucket")
    bench = Bench(Shelf(slow, "bucket", fence), tmp_path, min_interval_s=3600.0)
    async with bench.watching():
        bench.write("a", b"1" * 1000, mtime=1.0)
        bench.write("b", b"1" * 1000, mtime=2.0)
        await asyncio.wait_for(slow.under_way.wait(), 10)
        (bench.directory / "a").open("r+b").write(b"2" * 500)
        (bench.directory / "b").write_bytes(b"2" * 1000)
        slow.go_on.set()
        await asyncio.sleep(0.3)
    stored = {key: slow.content("bucket", key) for key in slow.keys("bucket")}
    assert stored == ({"p/a": b"1" * 1000, "p/b": b"1" * 1000} if room else {})


async def test_a_cancelled_commit_leaves_no_parts_and_no_copies(
    fence: HandFence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowMemory("bucket")
    stuck = asyncio.Event()

    async def put_part(*_: object) -> str:
        stuck.set()
        await asyncio.Event().wait()
        return ""

    monkeypatch.setattr(slow, "put_part", put_part)
    bench = Bench(Shelf(slow, "bucket", fence), tmp_path)
    bench.write("big", b"x" * (9 * MIB))
    async with bench.watching():
        await asyncio.wait_for(stuck.wait(), 10)
    assert slow.uploads == {}
    assert slow.calls["abort"] == 1
    assert list(bench.scratch.iterdir()) == []


async def test_a_file_that_cannot_be_named_as_a_key_is_named(of_memory: Bench) -> None:
    Path(os.fsdecode(os.fsencode(of_memory.directory) + b"/\xff")).write_bytes(b"x")
    with pytest.raises(LocalFileError, match="not UTF-8"):
        await of_memory.commit.commit("exit")
