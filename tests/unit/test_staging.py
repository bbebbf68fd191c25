"""What staging decides without a storage: names, content, what a directory holds. P10."""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path

import pytest

from kelpie_celery.clock import ManualClock
from kelpie_celery.errors import DirectoryError, StorageSetupError, StorageUnavailable, UnsafeKey
from kelpie_celery.etags import etag_of_parts
from kelpie_celery.listings import OutputListing
from kelpie_celery.staging import content, packing
from kelpie_celery.staging.carrier import Carrier
from kelpie_celery.staging.crowd import Crowd, Stopped
from kelpie_celery.staging.fetching import below, fetch
from kelpie_celery.staging.place import split_url, storage_settings
from kelpie_celery.staging.tree import named, walk
from kelpie_celery.staging.wanted import Wanted
from tests.unit.fake_s3 import FakeS3

MIB = content.MIB


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://bucket/a/b", ("bucket", "a/b/")),
        ("bucket/a/", ("bucket", "a/")),
        ("s3://bucket/with space/é", ("bucket", "with space/é/")),
    ],
)
def test_a_place_is_a_bucket_and_a_folder(url: str, place: tuple[str, str]) -> None:
    assert split_url(url) == place


@pytest.mark.parametrize(
    "url", ["s3://bucket", "s3://bucket/", "s3://b/x", "s3://bucket/../x", "s3://bucket/a.kelpie/x", ""]
)
def test_what_is_no_place_is_refused(url: str) -> None:
    with pytest.raises(StorageSetupError, match="is no place for files"):
        split_url(url)


def test_the_storage_needs_no_redis_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KELPIE_REDIS_URL", raising=False)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert storage_settings().aws_region == "eu-west-1"


def test_parts_are_equal_and_at_most_ten_thousand() -> None:
    assert content.part_bytes(content.SINGLE_BYTES) == 0
    assert content.part_bytes(content.SINGLE_BYTES + 1) == content.PART_BYTES
    huge = 3 * 1024**4
    assert -(-huge // content.part_bytes(huge)) <= content.MAX_PARTS


@pytest.mark.parametrize("part_bytes", [5 * MIB, 8 * MIB, 16 * MIB, 0])
def test_a_file_is_known_by_an_etag_however_the_object_was_cut(tmp_path: Path, part_bytes: int) -> None:
    data = os.urandom(17 * MIB + 3)
    (tmp_path / "f").write_bytes(data)
    step = part_bytes or len(data)
    parts = [hashlib.md5(data[at : at + step]).hexdigest() for at in range(0, len(data), step)]
    etag = etag_of_parts(parts) if part_bytes else parts[0]
    assert content.has_etag(tmp_path / "f", etag, len(data))
    (tmp_path / "f").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert not content.has_etag(tmp_path / "f", etag, len(data))


@pytest.mark.parametrize(
    "etag", ["", "encrypted", f"{'0' * 32}-7", "x-1", f"{'0' * 32}-\u00b2", f"{'0' * 32}-{'9' * 5000}"]
)
def test_of_an_etag_that_is_no_digest_nothing_is_concluded(tmp_path: Path, etag: str) -> None:
    (tmp_path / "f").write_bytes(b"x" * 40)
    assert not content.is_telling(etag, 40)
    assert not content.has_etag(tmp_path / "f", etag, 40)


def test_a_walk_follows_no_link_and_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "d/empty").mkdir(parents=True)
    (tmp_path / "d/f").write_bytes(b"123")
    (tmp_path / "l").symlink_to("d")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    tree = walk(tmp_path)
    assert (tree.files, tree.links, tree.others, tree.empty) == ({"d/f": 3}, ["dangling", "l"], ["pipe"], ["d/empty"])
    with pytest.raises(DirectoryError, match="is not a directory"):
        walk(tmp_path / "d/f")
    with pytest.raises(DirectoryError, match="cannot be looked into: File name too long"):
        walk(tmp_path / ("x" * 300))


def test_names_in_messages_cannot_break_a_line() -> None:
    assert named(["a", "b\nc", os.fsdecode(b"\xff"), "d", "e", "f", "g"]) == r"a, 'b\nc', '\udcff', d, e and 2 more"


@pytest.mark.parametrize("key", ["p/../x", "p//x", "p/./x", "p/a\\..\\x", "p/" + "x" * 256, "p/nul\0"])
def test_a_key_that_has_no_place_below_the_directory_is_refused(key: str) -> None:
    s3 = FakeS3()
    s3.put_object(Bucket="bkt", Key=key, Body=b"x")
    with pytest.raises(UnsafeKey, match="rename or delete it"):
        list(below(s3.storage, "bkt", "p/"))


def test_records_and_markers_of_folders_are_no_files() -> None:
    s3 = FakeS3()
    for key in ("p/", "p/d/", "p/x.kelpie/jobs/1/a", "p/.kelpie-tmp-1", "p/f"):
        s3.put_object(Bucket="bkt", Key=key, Body=b"")
    assert [one.key for one in below(s3.storage, "bkt", "p/")] == ["p/f"]


def test_a_disk_without_room_and_names_that_clash_are_told_before_anything_is_fetched(tmp_path: Path) -> None:
    s3 = FakeS3(before=lambda operation, key: pytest.fail(f"{operation} {key}: the storage was asked"))
    huge = Wanted("bkt", "p/f", "f", 1 << 60)
    with pytest.raises(DirectoryError, match="has room for"):
        fetch(s3.storage, [huge], tmp_path / "deep/out", ManualClock())
    clash = [Wanted("bkt", "p/a", "a", 1), Wanted("bkt", "p/a/b", "a/b", 1)]
    with pytest.raises(UnsafeKey, match="p/a and s3://bkt/p/a/b cannot both be brought down"):
        fetch(s3.storage, clash, tmp_path / "deep/out", ManualClock())
    assert list(tmp_path.iterdir()) == []


def test_content_that_stays_damaged_is_never_put_in_place(tmp_path: Path) -> None:
    s3 = FakeS3()
    s3.put_object(Bucket="bkt", Key="p/f", Body=b"right")
    s3.body = lambda _key, data: os.urandom(len(data))
    wanted = Wanted("bkt", "p/f", "f", 5, hashlib.md5(b"right").hexdigest())
    with pytest.raises(Exception, match="what arrives is damaged"):
        fetch(s3.storage, [wanted], tmp_path / "out", ManualClock())
    assert list(tmp_path.iterdir()) == []


def test_an_etag_that_is_no_md5_is_believed_when_the_same_comes_twice(tmp_path: Path) -> None:
    s3 = FakeS3()
    s3.put_object(Bucket="bkt", Key="p/f", Body=b"right")
    done = fetch(s3.storage, [Wanted("bkt", "p/f", "f", 5, "0" * 32)], tmp_path / "out", ManualClock())
    assert (done.by_length, (tmp_path / "out/f").read_bytes()) == (1, b"right")


def test_an_object_that_was_replaced_by_a_longer_one_is_never_taken_for_its_beginning(tmp_path: Path) -> None:
    s3 = FakeS3()
    s3.put_object(Bucket="bkt", Key="p/f", Body=b"longer than it was")
    wanted = Wanted("bkt", "p/f", "f", 5, hashlib.md5(b"short").hexdigest())
    with pytest.raises(
        StorageUnavailable, match="has 18 bytes now instead of 5: it was replaced meanwhile; run it again"
    ):
        fetch(s3.storage, [wanted], tmp_path / "out", ManualClock())
    assert list(tmp_path.iterdir()) == []


def test_two_objects_that_become_one_file_are_told_and_none_is_lost(tmp_path: Path) -> None:
    """As on a disk that knows no difference between A and a; here by a link from folder to folder."""
    s3 = FakeS3()
    for key in ("p/A/f", "p/a/f"):
        s3.put_object(Bucket="bkt", Key=key, Body=key.encode())
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    (out / "A").symlink_to("a")
    wanted = [Wanted("bkt", f"p/{n}/f", f"{n}/f", 5, hashlib.md5(f"p/{n}/f".encode()).hexdigest()) for n in "Aa"]
    with pytest.raises(UnsafeKey, match=r"cannot both be brought down: in .*/out both are one file"):
        fetch(s3.storage, wanted, out, ManualClock(), force=True)


def test_what_is_in_the_way_is_told_before_anything_is_fetched(tmp_path: Path) -> None:
    s3 = FakeS3(before=lambda operation, key: pytest.fail(f"{operation} {key}: the storage was asked"))
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_bytes(b"mine")
    wanted = [Wanted("bkt", "p/first", "first", 1), Wanted("bkt", "p/a/b/c", "a/b/c", 1)]
    with pytest.raises(DirectoryError, match="out/a is in the way of s3://bkt/p/a/b/c, and is no folder; move it away"):
        fetch(s3.storage, wanted, out, ManualClock(), force=True)
    assert [path.name for path in out.iterdir()] == ["a"]
    ours = [Wanted("bkt", "p/.kelpie-tmp-fetch/0", ".kelpie-tmp-fetch/0", 1)]
    with pytest.raises(UnsafeKey, match="a folder of kelpie's own"):
        fetch(s3.storage, ours, out, ManualClock())
    with pytest.raises(DirectoryError, match="File name too long"):
        fetch(s3.storage, wanted, tmp_path / ("x" * 300), ManualClock())


@pytest.mark.parametrize(
    "row",
    [
        '{"bucket": "b", "key": "k", "size": Infinity, "sha256": ""}',
        '{"bucket": "b", "key": "k", "size": -1, "sha256": ""}',
        '{"bucket": "b", "key": 5, "size": 1, "sha256": ""}',
        '{"bucket": "b", "key": "k", "size": 1, "sha256": "", "etag": null}',
        "[" * 100_000,
        "5",
    ],
)
def test_a_listing_with_rows_of_another_kind_is_none(row: str) -> None:
    with pytest.raises(ValueError, match="not a listing of outputs"):
        OutputListing.from_json(f'{{"files": [{row}]}}'.encode())


def test_reading_a_large_file_ends_when_the_rest_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 3 * MIB)
    (tmp_path / "f.gz").write_bytes(gzip.compress(b"x" * 3 * MIB))
    pieces: list[int] = []

    def check() -> None:
        pieces.append(1)
        if len(pieces) == 2:
            raise Stopped

    for read in (
        lambda: content.has_etag(tmp_path / "f", "0" * 32, 3 * MIB, check),
        lambda: content.sha256_of(tmp_path / "f", check),
        lambda: packing.unpack(tmp_path / "f.gz", "s3://b/k", "b", "k", check),
    ):
        pieces.clear()
        with pytest.raises(Stopped):
            read()


def test_a_file_that_changed_since_it_was_looked_at_does_not_replace_what_is_stored(tmp_path: Path) -> None:
    s3, file = FakeS3(), tmp_path / "f"
    file.write_bytes(b"one")
    stamp = content.Stamp.of(file)
    file.write_bytes(b"half of tw")
    with pytest.raises(DirectoryError, match="changed while it was sent"):
        Carrier(s3.storage, Crowd(), lambda _bytes: None).send_small(file, "bkt", "p/f", stamp)
    assert s3.listed() == []


def test_only_what_is_gzipped_is_unpacked(tmp_path: Path) -> None:
    assert [packing.is_packed(name) for name in ("a.gz", "d/.gz", ".gz", "a.txt")] == [True, False, False, False]
    (tmp_path / "0").write_bytes(gzip.compress(b"text"))
    assert packing.unpack(tmp_path / "0", "s3://b/k", "b", "k").read_bytes() == b"text"
    for bad in (b"no gzip", gzip.compress(b"text" * 1000)[:-9]):
        (tmp_path / "1").write_bytes(bad)
        with pytest.raises(StorageSetupError, match="s3://b/k is not gzipped, or cut off"):
            packing.unpack(tmp_path / "1", "s3://b/k", "b", "k")


def test_a_crowd_stops_together_and_raises_what_stopped_it() -> None:
    done, stopped = [], []

    def one(number: int) -> None:
        if number == 3:
            raise DirectoryError("the third")
        done.append(number)

    with pytest.raises(DirectoryError, match="the third"):
        Crowd().do(range(1_000_000), one, lambda: stopped.append(True))
    assert stopped == [True]
    assert len(done) < 1_000_000
