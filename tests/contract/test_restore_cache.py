"""The machine's cache of inputs, as restores use it, on a storage in memory and on a real one; P10."""

# ruff: noqa: ASYNC240 -- small files, made and looked at by the test itself

from __future__ import annotations

import asyncio
import gzip
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from kelpie_celery.errors import UnsafeKey
from kelpie_worker.sync.cache import InputCache
from kelpie_worker.sync.cached_inputs import CachedInputs
from kelpie_worker.sync.cloning import CopyCancelled
from kelpie_worker.sync.plan import Placed
from kelpie_worker.sync.restore import PlainRestore, Restore, RestoredFile
from tests.contract.fakes_s3 import MemoryStore
from tests.contract.shelf import Shelf


def tree(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "data"


def inputs(shelf: Shelf, target: Path, prefix: str = "in/", pattern: str | None = None) -> Placed:
    return shelf.block(target, prefix, role="input", stage="before", pattern=pattern)


def memory_block(target: Path, prefix: str = "p/", role: str = "input") -> Placed:
    return Placed("before", role, "bucket", prefix, target)  # type: ignore[arg-type]  # a literal


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CachedInputs:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(total=100 << 30, free=90 << 30))
    (tmp_path / "cache").mkdir()
    return CachedInputs(InputCache(tmp_path / "cache", 1 << 30), "http://s3")


def cached(shelf: Shelf, cache: CachedInputs, *, compression: bool = False) -> Restore:
    return PlainRestore(shelf.store, compression=compression, give_up_s=5, cache=cache)


def no_fetches(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fetch(bucket: str, key: str, *args: object, **more: object) -> None:
        raise AssertionError(f"{key} is fetched")

    monkeypatch.setattr(shelf.store, "fetch", fetch)


@pytest.mark.parametrize("read_only", [False, True])
async def test_inputs_come_out_of_the_cache_the_second_time(
    shelf: Shelf, target: Path, cache: CachedInputs, monkeypatch: pytest.MonkeyPatch, read_only: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    files = {"a.txt": b"a", "deep/er/b.bin": os.urandom(300_000), "empty": b""}
    for name, data in files.items():
        await shelf.seed(f"in/{name}", data)
    block = replace(inputs(shelf, target), read_only=read_only)
    first = await cached(shelf, cache).restore([block])
    assert (cache.hits, cache.hit_bytes) == (0, 0)
    no_fetches(shelf, monkeypatch)
    with caplog.at_level("INFO"):
        second = await cached(shelf, cache).restore([block])
    assert tree(target) == files
    assert (second.bytes, len(second.files)) == (first.bytes, 3)
    assert {file.relative for file in second.files} == set(files)
    assert (cache.hits, cache.hit_bytes) == (3, sum(map(len, files.values())))
    (line,) = [record for record in caplog.records if getattr(record, "action", "") == "cache_hit"]
    assert (vars(line)["files"], vars(line)["bytes"]) == (3, cache.hit_bytes)
    writable = {bool(path.stat().st_mode & 0o200) for path in target.rglob("*") if path.is_file()}
    assert writable == {not read_only}


async def test_files_of_a_read_only_block_say_so_also_without_a_cache(shelf: Shelf, target: Path) -> None:
    await shelf.seed("in/a", b"a")
    await PlainRestore(shelf.store).restore([replace(inputs(shelf, target), read_only=True)])
    assert (target / "a").stat().st_mode & 0o777 == 0o444


async def test_a_job_that_writes_to_its_inputs_does_not_change_those_of_the_next(
    shelf: Shelf, target: Path, cache: CachedInputs
) -> None:
    await shelf.seed("in/a", b"input")
    for _ in range(3):
        await cached(shelf, cache).restore([inputs(shelf, target)])
        assert tree(target) == {"a": b"input"}
        with (target / "a").open("r+b") as opened:
            opened.write(b"POISON")
    assert cache.hits == 2


async def test_an_object_that_was_replaced_is_fetched_anew(shelf: Shelf, target: Path, cache: CachedInputs) -> None:
    for data in (b"old content", b"new content"):
        await shelf.seed("in/a", data)
        await cached(shelf, cache).restore([inputs(shelf, target)])
        assert tree(target) == {"a": data}
    assert cache.hits == 0


async def test_checkpoints_are_never_cached(shelf: Shelf, target: Path, cache: CachedInputs) -> None:
    await shelf.seed("p/a", b"a")
    for _ in range(2):
        await cached(shelf, cache).restore([shelf.block(target, stage="before")])
    assert cache.hits == 0
    assert tree(target) == {"a": b"a"}


async def test_what_was_unpacked_is_another_thing_than_what_was_not(
    shelf: Shelf, target: Path, cache: CachedInputs
) -> None:
    packed = gzip.compress(b"unpacked")
    await shelf.seed("in/a.gz", packed)
    for compression, expected in ((True, {"a": b"unpacked"}), (False, {"a.gz": packed})) * 2:
        await cached(shelf, cache, compression=compression).restore([inputs(shelf, target)])
        assert tree(target) == expected
    assert cache.hits == 2


async def test_only_what_the_cache_lacks_needs_room_and_is_fetched(
    shelf: Shelf, target: Path, cache: CachedInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shelf.seed("in/a", b"x" * 5000)
    block = replace(inputs(shelf, target), read_only=True)
    await cached(shelf, cache).restore([block])
    await shelf.seed("in/b", b"y" * 100)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    await cached(shelf, cache).restore([block])
    assert tree(target) == {"a": b"x" * 5000, "b": b"y" * 100}


async def test_the_cache_gives_way_to_a_checkpoint_that_needs_the_disk(
    shelf: Shelf, target: Path, cache: CachedInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shelf.seed("in/a", b"x" * 5000)
    await cached(shelf, cache).restore([inputs(shelf, target)])
    await shelf.seed("p/b", b"y" * 2000)
    usage = shutil.disk_usage("/")

    def with_or_without_the_entry(_: object) -> object:
        held = any(path.is_file() for path in (tmp_path / "cache" / "objects").rglob("*"))
        return usage._replace(total=1, free=1000 if held else 2 << 30)

    monkeypatch.setattr(shutil, "disk_usage", with_or_without_the_entry)
    await cached(shelf, cache).restore([shelf.block(target, stage="before")])
    assert tree(target) == {"b": b"y" * 2000}


async def test_no_key_leads_out_of_the_directory_through_the_cache_either(
    shelf: Shelf, target: Path, cache: CachedInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shelf.seed("in/link/a", b"x")
    await cached(shelf, cache).restore([inputs(shelf, target)])
    outside = tmp_path / "outside"
    outside.mkdir()
    real = PlainRestore._take_cached

    async def with_a_link(
        self: PlainRestore, wanted: dict[Path, RestoredFile], beside: Mapping[Path, tuple[Path, int]]
    ) -> list[RestoredFile]:
        shutil.rmtree(target / "link")
        (target / "link").symlink_to(outside)
        return await real(self, wanted, beside)

    monkeypatch.setattr(PlainRestore, "_take_cached", with_a_link)
    with pytest.raises(UnsafeKey):
        await cached(shelf, cache).restore([inputs(shelf, target)])
    assert tree(outside) == {}


async def test_a_cancelled_restore_tells_the_copy_out_of_the_cache_to_stop(
    memory: MemoryStore, target: Path, cache: CachedInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.seed("bucket", "p/a", b"x" * 100)
    await PlainRestore(memory, cache=cache).restore([memory_block(target)])
    copying, loop = asyncio.Event(), asyncio.get_running_loop()

    def copy(fd: int, path: Path, cancelled: Callable[[], bool]) -> None:
        path.write_bytes(b"half")
        loop.call_soon_threadsafe(copying.set)
        while not cancelled():
            time.sleep(0.005)
        raise CopyCancelled

    monkeypatch.setattr("kelpie_worker.sync.cache.copy", copy)
    monkeypatch.setattr("kelpie_worker.sync.cache.clone", lambda *_: False)
    task = asyncio.ensure_future(PlainRestore(memory, cache=cache).restore([memory_block(target)]))
    await asyncio.wait_for(copying.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(target.iterdir()) == []
