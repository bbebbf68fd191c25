# ruff: noqa: ASYNC240 -- small files, made and looked at by the test itself

from __future__ import annotations

import fcntl
import gzip
import hashlib
import mmap
import os
from pathlib import Path

import pytest
from blake3 import blake3

from kelpie_worker.sync.bodies import FileBody, FileChanged
from kelpie_worker.sync.stable_read import PART_BYTES, SINGLE_BYTES, Captured, capture, digest, part_size

MIB = 1024 * 1024


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


async def content(captured: Captured) -> bytes:
    data = b"".join([bytes(chunk) for body in captured.bodies(lambda _: None) for chunk in body.chunks()])
    captured.close()
    return data


@pytest.mark.parametrize("size", [0, 1, SINGLE_BYTES, SINGLE_BYTES + 1])
@pytest.mark.parametrize("copied", [False, True])
async def test_a_file_that_holds_still_is_captured(path: Path, size: int, copied: bool) -> None:
    data = os.urandom(size)
    path.write_bytes(data)
    copy = path.with_name("copy") if copied else None
    captured = await capture(path, copy_to=copy)
    assert captured.source_sha256 == captured.sent.sha256 == hashlib.sha256(data).hexdigest()
    assert len(captured.sent.parts) == (1 if size <= SINGLE_BYTES else -(-size // PART_BYTES))
    assert await content(captured) == data
    assert copy is None or not copy.exists()


async def test_parts_are_those_of_the_file_however_little_a_read_brings(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(SINGLE_BYTES + 1)
    path.write_bytes(data)
    reads = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: reads(fd, [views[0][:700_001]], at))
    captured = await capture(path)
    assert [part.blake3 for part in captured.sent.parts] == [
        blake3(data[at : at + PART_BYTES]).digest(length=16) for at in range(0, len(data), PART_BYTES)
    ]
    assert await content(captured) == data


async def test_a_packed_file_is_always_the_same(path: Path) -> None:
    path.write_bytes(b"text" * 1000)
    packed = [await capture(path, copy_to=path.with_name(name), pack=True) for name in ("one", "two")]
    assert packed[0].sent.sha256 == packed[1].sent.sha256
    assert packed[0].source_sha256 == hashlib.sha256(b"text" * 1000).hexdigest()
    assert gzip.decompress(await content(packed[0])) == b"text" * 1000
    packed[1].close()


async def test_a_copy_does_not_follow_what_is_written_later(path: Path) -> None:
    path.write_bytes(b"old")
    captured = await capture(path, copy_to=path.with_name("copy"))
    path.write_bytes(b"new")
    assert await content(captured) == b"old"


async def test_a_file_that_changed_after_it_was_captured_is_never_sent_whole(path: Path) -> None:
    path.write_bytes(b"x" * 3 * MIB)
    captured = await capture(path)
    with path.open("r+b") as file:
        file.write(b"y")
    sent = bytearray()

    def send() -> None:
        for chunk in captured.bodies(lambda _: None)[0].chunks():
            sent.extend(chunk)

    with pytest.raises(FileChanged):
        send()
    assert len(sent) < 3 * MIB
    captured.close()


async def test_a_replaced_file_is_still_sent_as_it_was(path: Path) -> None:
    path.write_bytes(b"old")
    captured = await capture(path)
    path.with_name("new").write_bytes(b"new")
    path.with_name("new").rename(path)
    assert await content(captured) == b"old"


async def test_a_file_that_is_gone_or_no_file_any_more_is_told(path: Path) -> None:
    with pytest.raises(FileChanged):
        await capture(path)
    os.mkfifo(path)
    with pytest.raises(FileChanged):
        await capture(path)


class Meddler:
    """Writes to the file whenever one more piece of it has been read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path, times: int, *, keep_times: bool = False) -> None:
        self.left, self.reads = times, 0
        preadv = os.preadv

        def meddling(fd: int, buffers: list[memoryview], at: int) -> int:
            count = preadv(fd, buffers, at)
            self.reads += 1
            if self.left:
                self.left -= 1
                self.write(path)
            return count

        self._keep_times = keep_times
        monkeypatch.setattr(os, "preadv", meddling)

    def write(self, path: Path) -> None:
        before = path.stat()
        with path.open("r+b") as file:
            file.write(os.urandom(16))
        if self._keep_times:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


async def test_a_file_that_is_written_to_while_it_is_read_is_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"x" * 4 * MIB)
    Meddler(monkeypatch, path, times=2)
    captured = await capture(path)
    assert captured.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    captured.close()


async def test_a_file_that_never_holds_still_is_given_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"x" * 4 * MIB)
    Meddler(monkeypatch, path, times=1_000)
    with pytest.raises(FileChanged, match=str(path)):
        await capture(path, copy_to=path.with_name("copy"))
    assert not path.with_name("copy").exists()


async def test_a_writer_that_hides_its_time_is_found_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"x" * 4 * MIB)
    meddler = Meddler(monkeypatch, path, times=1, keep_times=True)
    (await capture(path)).close()
    assert meddler.reads > 8  # once, again to compare, and anew


async def test_a_file_that_only_grows_is_taken_at_the_length_that_it_had(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"x" * MIB)
    preadv = os.preadv

    def growing(fd: int, buffers: list[memoryview], at: int) -> int:
        count = preadv(fd, buffers, at)
        with path.open("ab") as file:
            file.write(b"y")
        return count

    monkeypatch.setattr(os, "preadv", growing)
    captured = await capture(path)
    monkeypatch.undo()
    assert captured.sent.size_bytes == MIB
    assert await content(captured) == b"x" * MIB


@pytest.mark.skipif(not hasattr(fcntl, "F_SETLEASE"), reason="leases are Linux's")
async def test_a_file_that_somebody_has_mapped_for_writing_is_read_twice(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"x" * MIB)
    reads = 0
    preadv = os.preadv

    def counting(fd: int, buffers: list[memoryview], at: int) -> int:
        nonlocal reads
        reads += 1
        return preadv(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", counting)
    (await capture(path)).close()
    assert reads == 1
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0):
        (await capture(path)).close()
    assert reads == 3


async def test_an_early_end_is_a_change(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"x" * 2 * MIB)
    preadv = os.preadv

    def shrinking(fd: int, buffers: list[memoryview], at: int) -> int:
        count = preadv(fd, buffers, at)
        os.truncate(path, max(0, path.stat().st_size - MIB))
        return count

    monkeypatch.setattr(os, "preadv", shrinking)
    captured = await capture(path)
    assert captured.sent.size_bytes == 0
    captured.close()


async def test_a_body_can_be_read_again_for_another_try(path: Path) -> None:
    path.write_bytes(b"x" * MIB)
    captured = await capture(path)
    body: FileBody = captured.bodies(lambda _: None)[0]
    for _ in range(2):
        assert b"".join([bytes(chunk) for chunk in body.chunks()]) == b"x" * MIB
    captured.close()


async def test_the_digest_of_a_file_is_that_of_its_content(path: Path) -> None:
    path.write_bytes(b"abc")
    assert (await digest(path)).sha256 == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize(
    ("size", "part"),
    [
        (0, 32 * MIB),
        (32 * MIB, 32 * MIB),
        (33 * MIB, 8 * MIB),
        (80_000 * MIB, 8 * MIB),
        (80_001 * MIB, 9 * MIB),
        (5 * 1024**4, 525 * MIB),
    ],
)
def test_parts_are_equal_and_at_most_ten_thousand(size: int, part: int) -> None:
    assert part_size(size) == part
    assert -(-size // part) <= 10_000
