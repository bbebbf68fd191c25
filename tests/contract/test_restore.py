"""What every restore must do, on a storage in memory and on a real one; P5 and P10."""

# ruff: noqa: ASYNC240 -- small files, made and looked at by the test itself

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path

import pytest

from kelpie_celery.errors import StorageSetupError
from kelpie_worker.sync.plan import Placed
from kelpie_worker.sync.restore import PlainRestore, Restore
from tests.contract.shelf import Shelf


def restorer(shelf: Shelf, *, compression: bool = False) -> Restore:
    return PlainRestore(shelf.store, compression=compression, give_up_s=5)


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
