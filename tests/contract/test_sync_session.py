"""What an attempt's storage side must keep to when things happen at once, on a storage in memory; P1, P4, P10."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kelpie_celery.errors import StorageUnavailable
from kelpie_worker.sync.errors import LocalFileError
from kelpie_worker.sync.snapshot import Snapshot, take
from kelpie_worker.sync.stable_read import open_for_reading
from kelpie_worker.sync.verify import missing
from tests.contract.desk import JOB, Desk, cancelled, job, said, until
from tests.contract.fakes_s3 import HandFence, MemoryStore
from tests.contract.shelf import Shelf

MARKER = f"out.kelpie/jobs/{JOB}/completed.json"
LISTING = f"out.kelpie/jobs/{JOB}/outputs-1.json"


class MemoryDesk(Desk):
    """A machine on a storage in memory, at which a test may look directly."""

    def __init__(self, home: Path, memory: MemoryStore) -> None:
        super().__init__(home, Shelf(memory, "bucket", HandFence()))
        self.store = memory


@pytest.fixture
async def desk(tmp_path: Path, memory: MemoryStore) -> MemoryDesk:
    return MemoryDesk(tmp_path / "desk", memory)


def block(prefix: str, path: str, direction: str = "upload") -> dict[str, str]:
    return {"bucket": "bucket", "prefix": prefix, "local_path": path, "direction": direction}


CHECKPOINT = job(sync={"before": [block("ck", "ckpt", "download")], "during": [block("ck", "ckpt")]})
OUTPUT = job(sync={"after": [block("out", "output")]})


# -- nothing that kelpie empties is taken for the job's doing ------------------------------------------------------


class Waits(HandFence):
    """Notes that somebody waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waited = asyncio.Event()

    async def trusted(self, at_least_s: float = 2.0) -> float:
        if self.muted:
            self.waited.set()
        return await super().trusted(at_least_s)


@pytest.mark.parametrize("ended_first", [True, False])
async def test_a_look_that_waited_for_the_lease_deletes_nothing_once_cleaning_began(
    desk: MemoryDesk, ended_first: bool
) -> None:
    desk.fence = fence = Waits()
    desk.store.seed("bucket", "ck/a.pt", b"a")
    desk.store.seed("bucket", "ck/b.pt", b"b")
    async with desk.open(CHECKPOINT) as sync:
        await sync.restore()
        fence.mute()
        watch = asyncio.ensure_future(sync.watch())
        await asyncio.wait_for(fence.waited.wait(), 20)
        sync.request_commit()
        await cancelled(watch)
        if ended_first:
            await sync.end_watch()
        await asyncio.to_thread(sync.clean)
        fence.unmute()
        if not ended_first:
            assert sync._watching is not None
            await asyncio.wait_for(asyncio.wait([sync._watching]), 20)
    assert desk.store.keys("bucket") == ["ck/a.pt", "ck/b.pt"]
    assert desk.store.deleted == []
    assert desk.kept() == []
    assert list((desk.work / "ckpt").iterdir()) == []


async def test_a_walk_that_cleaning_overtook_says_nothing(desk: MemoryDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk began before, and saw the directory half empty."""
    desk.store.seed("bucket", "ck/a.pt", b"a")
    walking, go_on = threading.Event(), threading.Event()
    real = take

    def held(directory: Path) -> Snapshot:
        if walked_before:
            walking.set()
            assert go_on.wait(20)
        return real(directory)

    walked_before = False
    monkeypatch.setattr("kelpie_worker.sync.checkpoints.take", held)
    async with desk.open(CHECKPOINT) as sync:
        await sync.restore()
        walked_before = True
        sync.request_commit()
        watch = asyncio.ensure_future(sync.watch())
        await asyncio.to_thread(walking.wait, 20)
        await cancelled(watch)
        await asyncio.to_thread(sync.clean)
        go_on.set()
        assert sync._watching is not None
        await asyncio.wait_for(asyncio.wait([sync._watching]), 20)
    assert desk.store.keys("bucket") == ["ck/a.pt"]


async def test_ending_the_watch_waits_for_it_and_may_be_repeated(desk: MemoryDesk) -> None:
    async with desk.open(CHECKPOINT) as sync:
        await sync.end_watch()  # nothing runs
    async with desk.open(CHECKPOINT) as sync:
        await sync.restore()
        await cancelled(watch := asyncio.ensure_future(sync.watch()))
        watch = asyncio.ensure_future(sync.watch())
        await asyncio.sleep(0)
        await cancelled(watch)
        await sync.end_watch()
        assert sync._watching is not None
        assert sync._watching.done()
        await sync.end_watch()


async def test_the_end_of_a_session_ends_its_watch(desk: MemoryDesk) -> None:
    async with desk.open(CHECKPOINT) as sync:
        await sync.restore()
        watch = asyncio.ensure_future(sync.watch())
        await asyncio.sleep(0)
        await cancelled(watch)
        assert sync._watching is not None
        assert not sync._watching.done()
    assert sync._watching.done()


async def test_no_checkpoint_is_stored_from_directories_that_were_given_back(desk: MemoryDesk) -> None:
    desk.store.seed("bucket", "ck/a.pt", b"a")
    async with desk.open(CHECKPOINT) as sync:
        await sync.restore()
        assert sync.move_outputs_aside()
        with pytest.raises(LocalFileError, match="given back"):
            await sync.commit("exit")
    assert desk.store.keys("bucket") == ["ck/a.pt"]


# -- a checkpoint that rotates -------------------------------------------------------------------------------------


async def test_the_old_checkpoint_stays_until_the_new_one_is_stored(
    desk: MemoryDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that keeps its last checkpoint only removes each file while the next look is at it."""
    directory, tried = desk.ck, asyncio.Event()
    loop = asyncio.get_running_loop()

    def rotating(path: Path) -> int:
        if path.name.startswith("step") and path.name != "step999" and path.exists():
            number = int(path.name.removeprefix("step"))
            path.unlink()
            (directory / f"step{number + 100}").write_bytes(b"new")
            if number >= 300:
                loop.call_soon_threadsafe(tried.set)
        return open_for_reading(path)

    async with desk.attempt(CHECKPOINT, plain_interval_s=0) as sync, desk.watching(sync):
        desk.write("step100", b"100")
        await until(lambda: "ck/step100" in desk.store.objects["bucket"])
        monkeypatch.setattr("kelpie_worker.sync.capturing.open_for_reading", rotating)
        desk.write("step200", b"200")
        (directory / "step100").unlink()
        await asyncio.wait_for(tried.wait(), 20)
        assert await desk.committed() == await desk.plain() == {"step100": b"100"}
        for path in directory.iterdir():
            path.unlink()
        desk.write("step999", b"999")
        await until(lambda: "ck/step999" in desk.store.objects["bucket"] and bool(desk.store.deleted))
    assert await desk.committed() == await desk.plain() == {"step999": b"999"}


# -- directories that the command replaced -------------------------------------------------------------------------


async def test_a_link_in_a_directorys_place_is_not_followed_and_not_left_to_the_next_job(
    desk: MemoryDesk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = tmp_path / "dataset"
    (theirs / "sub").mkdir(parents=True)
    (theirs / "sub" / "precious").write_text("1")
    definition = job(sync={"during": [block("cache", "cache")], "after": [block("out", "output")]})
    async with desk.open(definition) as sync:
        await sync.restore()
        for name in ("cache", "output"):
            (desk.work / name).rmdir()
            (desk.work / name).symlink_to(theirs)
        await sync.commit("exit")
        assert sync.move_outputs_aside()
        assert (await sync.upload_outputs()).files == ()
        await sync.end_watch()
        sync.clean()
    assert (theirs / "sub" / "precious").read_text() == "1"
    assert [key for key in desk.store.keys("bucket") if ".kelpie/" not in key] == []
    assert list(desk.work.iterdir()) == []
    assert [record.path for record in said(caplog, "link_not_followed")] == [str(desk.work / "cache")]
    assert [record.path for record in said(caplog, "output_missing")] == [str(desk.work / "output")]
    async with desk.open(definition) as sync:
        assert sync.local_paths == [desk.work / "cache", desk.work / "output"]


async def test_a_link_is_removed_and_its_target_kept_when_the_attempt_fails(desk: MemoryDesk, tmp_path: Path) -> None:
    theirs = tmp_path / "dataset"
    theirs.mkdir()
    (theirs / "precious").write_text("1")
    async with desk.open(OUTPUT) as sync:
        await sync.restore()
        (desk.work / "output").rmdir()
        (desk.work / "output").symlink_to(theirs)
        sync.clean()
    assert (theirs / "precious").exists()
    assert not (desk.work / "output").is_symlink()


async def test_what_the_next_job_makes_in_a_removed_directorys_place_is_not_this_jobs(desk: MemoryDesk) -> None:
    output = desk.work / "output"
    async with desk.open(OUTPUT) as sync:
        await sync.restore()
        output.rmdir()
        assert sync.move_outputs_aside()
        output.mkdir()
        (output / "secret").write_text("the next job's")
        assert (await sync.upload_outputs()).files == ()
        sync.clean()
    assert (output / "secret").exists()
    assert [path.name for path in desk.work.iterdir()] == ["output"]


# -- outputs -------------------------------------------------------------------------------------------------------


async def test_hard_linked_outputs_are_packed_side_by_side(desk: MemoryDesk) -> None:
    definition = job(compression=True, sync={"after": [block("out", "output")]})
    async with desk.open(definition) as sync:
        await sync.restore()
        output = desk.work / "output"
        (output / "file0").write_bytes(os.urandom(2_000_000))
        for number in range(1, 6):
            os.link(output / "file0", output / f"file{number}")
        assert sync.move_outputs_aside()
        files = (await sync.upload_outputs()).files
    assert [file.key for file in files] == [f"out/file{number}.gz" for number in range(6)]
    assert len({file.sha256 for file in files}) == 1


async def test_a_folder_with_a_reserved_name_is_warned_of_once(
    desk: MemoryDesk, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {f"{kind}_prefix": kind for kind in ("input", "checkpoint", "output")}
    definition = job(**fields, **{name.replace("prefix", "bucket"): "bucket" for name in fields})
    desk.store.seed("bucket", "input/data", b"1")
    async with desk.open(definition) as sync:
        await sync.restore()
        (desk.dirs.output / "deep" / "mine.kelpie").mkdir(parents=True)
        (desk.dirs.output / "deep" / "mine.kelpie" / "file").write_text("1")
        await sync.commit("exit")
        await sync.commit("exit")
        assert (await sync.upload_outputs()).files == ()
    warnings = said(caplog, "ignored_kelpie_folder")
    assert [record.path for record in warnings] == [str(desk.dirs.output / "deep" / "mine.kelpie")]


# -- a marker is adopted only with its outputs ---------------------------------------------------------------------


async def completed(desk: MemoryDesk, *, files: int = 2) -> None:
    async with desk.open(OUTPUT, attempt=1) as sync:
        await sync.restore()
        for number in range(files):
            (desk.work / "output" / f"file{number:03}").write_text(f"{number:03}")
        await sync.upload_outputs()
        await sync.write_marker({"exit_code": 0})
        sync.clean()


async def find(desk: MemoryDesk) -> dict[str, Any] | None:
    async with desk.open(OUTPUT, attempt=2) as sync:
        return await sync.find_marker()


@pytest.mark.parametrize("files", [0, 2, 40])
async def test_a_marker_whose_outputs_are_there_is_adopted(desk: MemoryDesk, files: int) -> None:
    await completed(desk, files=files)
    marker = await find(desk)
    assert marker is not None
    assert marker["result"] == {"exit_code": 0}


def lose_one(store: MemoryStore) -> None:
    del store.objects["bucket"]["out/file001"]


def shorten_one(store: MemoryStore) -> None:
    store.seed("bucket", "out/file001", b"")


def replace_one(store: MemoryStore) -> None:
    store.seed("bucket", "out/file001", b"xyz")


def lose_the_listing(store: MemoryStore) -> None:
    del store.objects["bucket"][LISTING]


def change_the_listing(store: MemoryStore) -> None:
    listing = json.loads(store.content("bucket", LISTING))
    listing["files"] = []
    store.seed("bucket", LISTING, json.dumps(listing).encode())


def point_elsewhere(store: MemoryStore) -> None:
    marker = json.loads(store.content("bucket", MARKER))
    marker["outputs"]["listing"] = "s3://bucket/out/file000"
    store.seed("bucket", MARKER, json.dumps(marker).encode())


def name_no_listing(store: MemoryStore) -> None:
    marker = json.loads(store.content("bucket", MARKER))
    del marker["outputs"]["listing"]
    store.seed("bucket", MARKER, json.dumps(marker).encode())


@pytest.mark.parametrize("files", [2, 40])
@pytest.mark.parametrize(
    "damage",
    [lose_one, shorten_one, replace_one, lose_the_listing, change_the_listing, point_elsewhere, name_no_listing],
)
async def test_a_marker_whose_outputs_are_not_there_is_refused(
    desk: MemoryDesk, damage: Callable[[MemoryStore], None], files: int, caplog: pytest.LogCaptureFixture
) -> None:
    await completed(desk, files=files)
    damage(desk.store)
    assert await find(desk) is None
    assert len(said(caplog, "marker_refused")) == 1


async def test_a_marker_is_not_refused_because_the_storage_is_away(
    desk: MemoryDesk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await completed(desk)
    monkeypatch.setattr("kelpie_worker.sync.session.GIVE_UP_S", 0.0)
    real = desk.store.head

    async def away(bucket: str, key: str) -> Any:
        desk.store.down = key.startswith("out/")
        return await real(bucket, key)

    monkeypatch.setattr(desk.store, "head", away)
    with pytest.raises(StorageUnavailable):
        await find(desk)
    assert said(caplog, "marker_refused") == []


async def test_a_job_without_outputs_has_a_marker_of_use(desk: MemoryDesk) -> None:
    async with desk.open(CHECKPOINT) as sync:
        await sync.restore()
        await sync.upload_outputs()
        await sync.write_marker({"exit_code": 0})
    async with desk.open(CHECKPOINT, attempt=2) as sync:
        assert await sync.find_marker() is not None


@pytest.mark.parametrize("count", [3, 50])
async def test_what_is_missing_is_told_among_much_else(memory: MemoryStore, count: int) -> None:
    for number in range(200):
        memory.seed("bucket", f"p/{number:03}", b"x")
    expected = [
        ("bucket", "p/", found) for number in range(count) if (found := await memory.head("bucket", f"p/{number:03}"))
    ]
    assert await missing(memory, expected) == []
    memory.seed("bucket", "p/000", b"y")
    del memory.objects["bucket"]["p/001"]
    assert await missing(memory, expected) == [("bucket", "p/000"), ("bucket", "p/001")]
    whole = [entry for entry in expected if entry[2].key == "p/002"]
    assert await missing(memory, whole) == []
