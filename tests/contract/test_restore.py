"""What every restore must do, on a storage in memory and on a real one; P5 and P10."""

# ruff: noqa: ASYNC240 -- small files, made and looked at by the test itself

from __future__ import annotations

import asyncio
import errno
import gzip
import hashlib
import os
import shutil
from pathlib import Path

import pytest

from kelpie_celery.errors import StorageSetupError, StorageUnavailable, UnsafeKey
from kelpie_celery.patterns import compile_pattern
from kelpie_worker.sync.errors import DiskFull
from kelpie_worker.sync.object_store import Sink
from kelpie_worker.sync.plan import Placed
from kelpie_worker.sync.restore import PlainRestore, Restore
from tests.contract.conftest import Shelf
from tests.contract.fakes_s3 import MemoryStore


def restorer(shelf: Shelf, *, compression: bool = False) -> Restore:
    return PlainRestore(shelf.store, compression=compression, give_up_s=5)


def of_memory(memory: MemoryStore, **options: float) -> PlainRestore:
    return PlainRestore(memory, **{"give_up_s": 0.0, **options})  # type: ignore[arg-type]  # floats all


def tree(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "data"


def inputs(shelf: Shelf, target: Path, prefix: str = "in/", pattern: str | None = None) -> Placed:
    return shelf.block(target, prefix, role="input", stage="before", pattern=pattern)


async def test_every_object_of_a_prefix_is_brought_down_whole(shelf: Shelf, target: Path) -> None:
    files = {"a.txt": b"a", "deep/er/b.bin": os.urandom(300_000), "empty": b"", "ünï code.txt": b"u"}
    for name, data in files.items():
        await shelf.seed(f"in/{name}", data)
    report = await restorer(shelf).restore([inputs(shelf, target)])
    assert tree(target) == files
    assert len(report.files) == 4
    assert report.bytes == sum(map(len, files.values()))


async def test_a_prefix_does_not_match_its_namesakes(shelf: Shelf, target: Path) -> None:
    for key in ("a/b/x", "a/bc/y", "a/b-old/z"):
        await shelf.seed(key, b"x")
    await restorer(shelf).restore([inputs(shelf, target, "a/b/")])
    assert tree(target) == {"x": b"x"}


async def test_an_empty_input_prefix_stops_the_start_and_is_named(shelf: Shelf, target: Path) -> None:
    with pytest.raises(StorageSetupError, match=r"'in/'.*holds no object") as caught:
        await restorer(shelf).restore([inputs(shelf, target)])
    assert caught.value.bucket == shelf.bucket


async def test_a_pattern_that_matches_nothing_is_named(shelf: Shelf, target: Path) -> None:
    await shelf.seed("in/a.txt", b"a")
    with pytest.raises(StorageSetupError, match=r"matching '\\\\.bin\$'"):
        await restorer(shelf).restore([inputs(shelf, target, pattern=r"\.bin$")])


async def test_an_empty_checkpoint_prefix_is_the_first_start(shelf: Shelf, target: Path) -> None:
    report = await restorer(shelf).restore([shelf.block(target, stage="before")])
    assert report.files == ()
    assert target.is_dir()


async def test_a_missing_bucket_stops_the_start_also_for_a_checkpoint(shelf: Shelf, target: Path) -> None:
    block = Placed("before", "checkpoint", "no-such-bucket", "p/", target)
    with pytest.raises(StorageSetupError, match="no-such-bucket"):
        await restorer(shelf).restore([block])


async def test_the_pattern_is_searched_in_the_whole_key(shelf: Shelf, target: Path) -> None:
    for key in ("in/keep/a.txt", "in/drop/b.txt"):
        await shelf.seed(key, b"x")
    await restorer(shelf).restore([inputs(shelf, target, pattern="^in/keep")])
    assert tree(target) == {"keep/a.txt": b"x"}


async def test_gzipped_objects_are_unpacked_and_lose_their_ending_when_the_job_compresses(
    shelf: Shelf, target: Path
) -> None:
    await shelf.seed("in/a.txt.gz", gzip.compress(b"unpacked"))
    await shelf.seed("in/plain.txt", b"plain")
    await restorer(shelf, compression=True).restore([inputs(shelf, target)])
    assert tree(target) == {"a.txt": b"unpacked", "plain.txt": b"plain"}


async def test_gzipped_objects_stay_as_they_are_otherwise(shelf: Shelf, target: Path) -> None:
    packed = gzip.compress(b"x")
    await shelf.seed("in/a.txt.gz", packed)
    await restorer(shelf).restore([inputs(shelf, target)])
    assert tree(target) == {"a.txt.gz": packed}


async def test_an_object_that_is_not_gzipped_although_it_says_so_is_named(shelf: Shelf, target: Path) -> None:
    await shelf.seed("in/a.gz", b"not gzipped")
    with pytest.raises(StorageSetupError, match=r"in/a\.gz"):
        await restorer(shelf, compression=True).restore([inputs(shelf, target)])
    assert tree(target) == {}


async def test_what_an_earlier_job_left_is_gone_afterwards(shelf: Shelf, target: Path) -> None:
    await shelf.seed("in/a", b"new")
    (target / "old").mkdir(parents=True)
    (target / "old" / "file").write_text("old")
    (target / "a").write_text("old")
    await restorer(shelf).restore([inputs(shelf, target)])
    assert tree(target) == {"a": b"new"}
    assert not (target / "old").exists()


async def test_links_in_the_directory_are_removed_and_not_followed(shelf: Shelf, target: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    target.mkdir()
    (target / "link").symlink_to(outside)
    await shelf.seed("in/link/a", b"x")
    await restorer(shelf).restore([inputs(shelf, target)])
    assert tree(outside) == {"precious": b"mine"}
    assert tree(target) == {"link/a": b"x"}


async def test_folder_markers_become_folders(shelf: Shelf, target: Path) -> None:
    for key in ("in/", "in/empty/", "in/full/", "in/full/a"):
        await shelf.seed(key)
    await restorer(shelf).restore([inputs(shelf, target)])
    assert (target / "empty").is_dir()
    assert tree(target) == {"full/a": b""}


async def test_our_own_records_are_no_files_of_the_job(shelf: Shelf, target: Path) -> None:
    for key in ("in/a", "in/x.kelpie/jobs/1/completed.json", "in/.kelpie/jobs/2/completed.json"):
        await shelf.seed(key, b"x")
    await restorer(shelf).restore([inputs(shelf, target)])
    assert tree(target) == {"a": b"x"}


async def test_a_large_object_comes_in_ranges_and_is_the_same(
    shelf: Shelf, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kelpie_worker.sync.download.RANGE_BYTES", 1_000_000)
    data = os.urandom(5_300_001)
    await shelf.seed("in/big", data)
    await restorer(shelf).restore([inputs(shelf, target)])
    assert hashlib.sha256((target / "big").read_bytes()).digest() == hashlib.sha256(data).digest()


async def test_of_two_blocks_that_bring_the_same_file_the_later_counts(shelf: Shelf, target: Path) -> None:
    await shelf.seed("one/a", b"first")
    await shelf.seed("two/a", b"second")
    await restorer(shelf).restore([inputs(shelf, target, "one/"), inputs(shelf, target, "two/")])
    assert tree(target) == {"a": b"second"}


async def test_a_block_may_lie_within_another(shelf: Shelf, target: Path) -> None:
    await shelf.seed("one/a", b"outer")
    await shelf.seed("two/b", b"inner")
    await restorer(shelf).restore([inputs(shelf, target / "sub", "two/"), inputs(shelf, target, "one/")])
    assert tree(target) == {"a": b"outer", "sub/b": b"inner"}


# -- what only a storage in memory can be brought to do ------------------------------------------------------------


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
        await sink(data[start_byte : start_byte + 4_000])
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
        await sink(b"wrong" if fetched == 1 else b"right")

    monkeypatch.setattr(memory, "fetch", fetch)
    await of_memory(memory).restore([memory_block(target)])
    assert tree(target) == {"a": b"right"}


async def test_an_etag_that_looks_like_a_digest_but_is_none_stops_nobody(memory: MemoryStore, target: Path) -> None:
    memory.objects["bucket"]["p/a"] = (b"content", "0" * 32)
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
        await sink(b"x")
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
