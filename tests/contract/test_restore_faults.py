"""What a restore makes of a storage that lies, breaks off or is away, and of a full disk; P5 and P10."""

# ruff: noqa: ASYNC240 -- small files, made and looked at by the test itself

from __future__ import annotations

import asyncio
import errno
import gzip
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kelpie_celery.errors import StorageSetupError, StorageUnavailable, UnsafeKey
from kelpie_celery.patterns import compile_pattern
from kelpie_worker.sync.errors import DiskFull
from kelpie_worker.sync.object_store import Sink
from kelpie_worker.sync.plan import Placed
from kelpie_worker.sync.restore import PlainRestore
from tests.contract.fakes_s3 import MemoryStore


def tree(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "data"


def of_memory(memory: MemoryStore, **options: float) -> PlainRestore:
    return PlainRestore(memory, **{"give_up_s": 0.0, **options})  # type: ignore[arg-type]  # floats all


def memory_block(target: Path, prefix: str = "p/", role: str = "input") -> Placed:
    return Placed("before", role, "bucket", prefix, target)  # type: ignore[arg-type]  # a literal


@pytest.mark.parametrize(
    "key", ["p/../escaped", "p/a/../../escaped", "p//etc/passwd", "p/./a", "p/a\0b", "p/..", "p/..\\..\\escaped"]
)
async def test_keys_that_lead_out_of_the_directory_are_refused_by_name(
    memory: MemoryStore, target: Path, key: str
) -> None:
    memory.seed("bucket", key, b"x")
    with pytest.raises(UnsafeKey) as caught:
        await of_memory(memory).restore([memory_block(target)])
    assert (caught.value.bucket, caught.value.key) == ("bucket", key)
    assert not (target.parent / "escaped").exists()


async def test_a_pattern_may_leave_an_impossible_key_out(memory: MemoryStore, target: Path) -> None:
    memory.seed("bucket", "p/../escaped", b"x")
    memory.seed("bucket", "p/good", b"x")
    block = Placed("before", "input", "bucket", "p/", target, compile_pattern("good"))
    await of_memory(memory).restore([block])
    assert tree(target) == {"good": b"x"}


async def test_a_file_and_a_folder_of_one_name_are_both_named(memory: MemoryStore, target: Path) -> None:
    memory.seed("bucket", "p/a", b"x")
    memory.seed("bucket", "p/a/b", b"x")
    with pytest.raises(StorageSetupError, match=r"'p/a'.*'p/a/b'"):
        await of_memory(memory).restore([memory_block(target)])


async def test_the_whole_bucket_may_be_a_prefix(memory: MemoryStore, target: Path) -> None:
    memory.seed("bucket", "a", b"x")
    memory.seed("bucket", ".kelpie/jobs/1/completed.json", b"x")
    await of_memory(memory).restore([memory_block(target, "")])
    assert tree(target) == {"a": b"x"}


async def test_access_denied_stops_the_start(memory: MemoryStore, target: Path) -> None:
    memory.denied.add("bucket")
    with pytest.raises(StorageSetupError, match="denied"):
        await of_memory(memory).restore([memory_block(target, role="checkpoint")])


async def test_an_object_that_vanishes_after_it_was_listed_stops_the_start(
    memory: MemoryStore, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.seed("bucket", "p/gone", b"x")

    async def fetch(bucket: str, key: str, sink: Sink, *, etag: str, start_byte: int, length_bytes: int) -> None:
        memory.objects["bucket"].pop("p/gone", None)
        await MemoryStore.fetch(memory, bucket, key, sink, etag=etag, start_byte=start_byte, length_bytes=length_bytes)

    monkeypatch.setattr(memory, "fetch", fetch)
    with pytest.raises(StorageSetupError, match=r"'p/gone'"):
        await of_memory(memory).restore([memory_block(target)])
    assert tree(target) == {}


async def test_an_object_that_is_replaced_while_it_is_fetched_comes_as_the_new_one(
    memory: MemoryStore, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.seed("bucket", "p/a", b"old content")

    async def fetch(bucket: str, key: str, sink: Sink, *, etag: str, start_byte: int, length_bytes: int) -> None:
        if memory.calls["fetch"] == 0:
            memory.seed("bucket", "p/a", b"new")
        await MemoryStore.fetch(memory, bucket, key, sink, etag=etag, start_byte=start_byte, length_bytes=length_bytes)

    monkeypatch.setattr(memory, "fetch", fetch)
    report = await of_memory(memory).restore([memory_block(target)])
    assert tree(target) == {"a": b"new"}
    assert report.files[0].object.size_bytes == 3


async def test_a_range_that_breaks_off_goes_on_where_it_broke(
    memory: MemoryStore, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(10_000)
    memory.seed("bucket", "p/a", data)
    asked: list[tuple[int, int]] = []

    async def fetch(bucket: str, key: str, sink: Sink, *, etag: str, start_byte: int, length_bytes: int) -> None:
        asked.append((start_byte, length_bytes))
        sink(memoryview(data)[start_byte : start_byte + 4_000])
        if start_byte + 4_000 < len(data):
            raise StorageUnavailable("cut", bucket=bucket, key=key)

    monkeypatch.setattr(memory, "fetch", fetch)
    monkeypatch.setattr("kelpie_worker.sync.retry.FIRST_PAUSE_S", 0.001)
    await of_memory(memory, give_up_s=30).restore([memory_block(target)])
    assert tree(target) == {"a": data}
    assert asked == [(0, 10_000), (4_000, 6_000), (8_000, 2_000)]


async def test_content_that_does_not_fit_its_etag_is_fetched_again(
    memory: MemoryStore, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.seed("bucket", "p/a", b"right")
    fetched = 0

    async def fetch(bucket: str, key: str, sink: Sink, *, etag: str, start_byte: int, length_bytes: int) -> None:
        nonlocal fetched
        fetched += 1
        sink(memoryview(b"wrong" if fetched == 1 else b"right"))

    monkeypatch.setattr(memory, "fetch", fetch)
    await of_memory(memory).restore([memory_block(target)])
    assert tree(target) == {"a": b"right"}


async def test_an_etag_that_looks_like_a_digest_but_is_none_stops_nobody(memory: MemoryStore, target: Path) -> None:
    memory.seed("bucket", "p/a", b"content", etag="0" * 32)
    await of_memory(memory).restore([memory_block(target)])
    assert tree(target) == {"a": b"content"}


async def test_a_storage_that_stays_away_is_an_interruption_after_a_while(memory: MemoryStore, target: Path) -> None:
    memory.down = True
    with pytest.raises(StorageUnavailable):
        await of_memory(memory, give_up_s=0.0).restore([memory_block(target)])


async def test_a_storage_that_comes_back_in_time_is_waited_for(
    memory: MemoryStore, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kelpie_worker.sync.retry.FIRST_PAUSE_S", 0.02)
    memory.seed("bucket", "p/a", b"x")
    memory.down = True
    task = asyncio.ensure_future(of_memory(memory, give_up_s=30).restore([memory_block(target)]))
    while memory.calls["list"] < 2:
        await asyncio.sleep(0.01)
    memory.down = False
    await asyncio.wait_for(task, 20)
    assert tree(target) == {"a": b"x"}


async def test_a_cancelled_restore_leaves_no_temporary_files(
    memory: MemoryStore, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.seed("bucket", "p/a", b"x" * 100)
    started = asyncio.Event()

    async def fetch(bucket: str, key: str, sink: Sink, *, etag: str, start_byte: int, length_bytes: int) -> None:
        sink(memoryview(b"x"))
        started.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(memory, "fetch", fetch)
    task = asyncio.ensure_future(of_memory(memory).restore([memory_block(target)]))
    await asyncio.wait_for(started.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(target.iterdir()) == []


async def test_a_checkpoint_that_a_death_left_in_both_forms_restores_the_packed_one(
    memory: MemoryStore, target: Path
) -> None:
    memory.seed("bucket", "p/a", b"by hand")
    memory.seed("bucket", "p/a.gz", gzip.compress(b"committed"))
    restore = PlainRestore(memory, compression=True, give_up_s=0)
    await restore.restore([memory_block(target, role="checkpoint")])
    assert tree(target) == {"a": b"committed"}
    with pytest.raises(StorageSetupError, match="both become"):
        await restore.restore([memory_block(target, role="input")])


async def test_more_than_the_disk_can_hold_is_refused_before_anything_is_fetched(
    memory: MemoryStore, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.seed("bucket", "p/a", b"x" * 1000)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=999))
    with pytest.raises(DiskFull, match="1000 bytes"):
        await of_memory(memory).restore([memory_block(target)])
    assert memory.calls["fetch"] == 0


async def test_blocks_on_one_disk_need_room_together(
    memory: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        memory.seed("bucket", f"{name}/x", b"x" * 1000)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1999))
    blocks = [replace(memory_block(tmp_path / name), prefix=f"{name}/") for name in ("a", "b")]
    with pytest.raises(DiskFull, match="2000 bytes") as full:
        await of_memory(memory).restore(blocks)
    assert (full.value.needed_bytes, full.value.free_bytes) == (2000, 1999)
    assert all(str(tmp_path / name) in str(full.value) for name in ("a", "b"))
    assert memory.calls["fetch"] == 0


async def test_what_comes_after_it_to_the_same_disk_needs_room_as_well(
    memory: MemoryStore, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.seed("bucket", "p/a", b"x" * 1000)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1999))
    beside = {target / "later": (target, 1000)}
    with pytest.raises(DiskFull, match="2000 bytes"):
        await of_memory(memory).restore([memory_block(target)], beside)
    await of_memory(memory).restore([memory_block(target)], {target / "a": (target, 1500)})  # the same file, once


async def test_a_disk_that_fills_up_under_way_is_told_apart_from_the_storage(
    memory: MemoryStore, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.seed("bucket", "p/a", b"x" * 1000)

    def full(fd: int, data: bytes, at: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskFull, match=str(target)):
        await of_memory(memory, give_up_s=30).restore([memory_block(target)])
    assert list(target.iterdir()) == []
