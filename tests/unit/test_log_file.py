"""A command's log on the disk: its first and its last half, lines of both streams whole, and secrets masked."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest

from kelpie_celery.redaction import Redactor
from kelpie_worker.attempt_log import masked, whole_log
from kelpie_worker.command import log_file
from kelpie_worker.command.log_file import LogFile
from kelpie_worker.sync.threads import in_thread

SECRET = "hunter2-and-more"


def text_of(file: LogFile, max_bytes: int, *secrets: str) -> str:
    return b"".join(whole_log(file, Redactor(secrets), max_bytes)).decode()


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def written(folder: Path, max_bytes: int, *pieces: bytes) -> LogFile:
    file = LogFile(folder, max_bytes)
    write = file.pen()
    for piece in pieces:
        write(piece)
    await file.finish()
    return file


async def test_all_of_a_short_output_is_kept_also_a_last_line_without_a_break(tmp_path: Path) -> None:
    file = await written(tmp_path, 1000, b"one\ntw", b"o\nthr", b"ee")
    assert text_of(file, 1000) == "one\ntwo\nthree"
    assert (file.written_bytes, file.left_out_bytes) == (13, 0)
    file.close()


async def test_nothing_written_is_an_empty_log(tmp_path: Path) -> None:
    file = await written(tmp_path, 1000)
    assert text_of(file, 1000) == ""


@pytest.mark.parametrize("size", [99, 100, 101, 140, 199, 200, 201, 250, 300, 399, 400, 401, 1000, 12_345])
@pytest.mark.parametrize("piece", [7, 64, 150, 100_000])
async def test_of_a_long_output_the_first_and_the_last_half_are_kept(tmp_path: Path, size: int, piece: int) -> None:
    data = b"".join(b"line %05d\n" % n for n in range(size // 11 + 1))[:size]
    file = await written(tmp_path, 200, *(data[at : at + piece] for at in range(0, size, piece)))
    text = text_of(file, 200)
    if size <= 200:
        assert text.encode() == data
    else:
        first, _, rest = text.partition("\nkelpie: ")
        said, _, last = rest.partition("\n")
        assert data.startswith(first.encode())
        assert first.endswith("\n")
        assert data.endswith(last.encode())
        assert last.startswith("line ")
        assert 80 < len(first) <= 100
        assert 80 < len(last) <= 100
        assert int(said.split()[0]) == size - len(first) - len(last)
    file.close()


async def test_lines_of_both_streams_are_kept_whole(tmp_path: Path) -> None:
    file = LogFile(tmp_path, 10_000)
    out, err = file.pen(), file.pen()
    out(b"of std")
    err(b"of stderr\n")
    out(b"out\n")
    await file.finish()
    assert text_of(file, 10_000) == "of stderr\nof stdout\n"
    file.close()


async def test_bytes_that_are_no_text_are_kept_as_they_are(tmp_path: Path) -> None:
    data = os.urandom(300_000)
    file = await written(tmp_path, 1 << 20, data[:1000], data[1000:])
    assert b"".join(whole_log(file, Redactor([SECRET]), 1 << 20)) == data
    file.close()


@pytest.mark.parametrize("piece", [1, 3, 10, 1000])
def test_a_secret_is_masked_wherever_the_pieces_are_cut(piece: int) -> None:
    data = f"a {SECRET} b\nü{SECRET}{SECRET}\n".encode()
    pieces = [data[at : at + piece] for at in range(0, len(data), piece)]
    assert b"".join(masked(pieces, Redactor([SECRET]))).decode() == "a *** b\nü******\n"


@pytest.mark.parametrize("piece", [1, 2, 5, 7, 11, 12, 13, 100])
def test_a_secret_that_begins_like_another_one_leaves_no_end_behind_where_pieces_are_cut(piece: int) -> None:
    short, long = SECRET[:7], f"{SECRET}-ü"
    data = f"a {long} b {short} c {long}{short}".encode()
    pieces = [data[at : at + piece] for at in range(0, len(data), piece)]
    assert b"".join(masked(pieces, Redactor([short, long]))).decode() == "a *** b *** c ******"


@pytest.mark.parametrize("size", range(200, 320, 7))
async def test_no_half_of_a_secret_is_left_beside_the_gap(tmp_path: Path, size: int) -> None:
    data = (SECRET.encode() * (size // len(SECRET) + 1))[:size]
    file = await written(tmp_path, 198, data)
    text = text_of(file, 198, SECRET)
    assert "hunter" not in text
    assert "more" not in text.replace("KELPIE_LOG_BYTES", "")
    file.close()


async def test_a_disk_that_takes_nothing_is_told_and_harms_nobody(tmp_path: Path) -> None:
    file = await written(tmp_path / "gone", 1000, b"a\n", b"b\n")
    assert file.lost_bytes == 4
    assert (
        text_of(file, 1000)
        == "\nkelpie: the last output is missing: the node's disk took no more: No such file or directory\n"
    )
    file.close()


async def test_what_the_disk_is_too_slow_for_is_left_out_where_it_came_and_told_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_file, "_WAITING_BYTES", 100)
    file = LogFile(tmp_path, 10_000)
    write = file.pen()
    with file._writing:  # the disk holds it up
        for n in range(30):
            write(b"line %04d\n" % n)
    await file.finish()
    text = text_of(file, 10_000)
    said = re.search(r"kelpie: (\d+) bytes of output are missing here: they came too fast for the disk\n", text)
    assert said
    assert text.endswith("line 0029\n")
    assert int(said[1]) == file.lost_bytes == 300 - 10 * len(re.findall(r"line \d{4}\n", text))
    file.close()


async def test_floods_leave_the_threads_to_others_now_and_then(tmp_path: Path) -> None:
    class Endless(LogFile):
        def _write(self, data: bytes) -> None:
            super()._write(data)
            self._take(data)  # the command was faster than the disk

    files = []
    for number in range(16):  # more than there are threads
        folder = tmp_path / str(number)
        folder.mkdir()
        files.append(Endless(folder, 1000))
        files[-1].pen()(b"more\n")
    try:
        async with asyncio.timeout(30):
            assert [await in_thread(lambda: 1) for _ in range(20)] == [1] * 20
    finally:
        for file in files:
            file.close()


async def test_once_closed_nothing_is_opened_or_written_any_more(tmp_path: Path) -> None:
    file = LogFile(tmp_path, 1000)
    write = file.pen()
    with file._writing:  # a thread that has yet to come to it
        write(b"one\n")
        closing = asyncio.create_task(asyncio.to_thread(file.close))
        while not file._closed:
            await asyncio.sleep(0.001)
        write(b"two\n")
    await closing
    await file.finish()
    assert names_in(tmp_path) == []
