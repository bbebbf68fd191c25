"""When a disk counts as full, and what tells of one."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest

from kelpie_worker.full_disks import Disk, full_disk, in_words, room_at
from kelpie_worker.sync.errors import DiskFull, LocalFileError, disk_errors

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("free", "total", "files", "full"),
    [
        (0, 8 * MIB, 100, True),
        (MIB - 1, 8 * MIB, 100, True),
        (MIB, 8 * MIB, 100, False),
        (9 * MIB, 10 * GIB, 100, True),
        (11 * MIB, 10 * GIB, 100, False),
        (63 * MIB, 10_000 * GIB, None, True),
        (65 * MIB, 10_000 * GIB, None, False),
        (5 * GIB, 10 * GIB, 0, True),
    ],
)
def test_a_disk_is_full_by_what_is_left(free: int, total: int, files: int | None, full: bool) -> None:
    assert Disk(Path("/d"), free, total, files).is_full is full


def test_a_path_that_does_not_exist_has_the_room_of_its_nearest_folder(tmp_path: Path) -> None:
    room = room_at(tmp_path / "not" / "there")
    assert room is not None
    assert room.total_bytes > room.free_bytes > 0
    assert room_at(Path("/proc/self")) is None, "no disk at all"


def test_nothing_tells_of_a_full_disk_where_none_is(tmp_path: Path) -> None:
    assert full_disk([tmp_path], ["all is well", "exit"]) is None


@pytest.mark.parametrize(
    "line",
    ["OSError: [Errno 28] No space left on device: '/x'", "write: no space left on device", "Disk quota exceeded"],
)
def test_a_command_that_says_so_is_believed(tmp_path: Path, line: str) -> None:
    full = full_disk([tmp_path], ["step 7", line, "traceback ends"])
    assert full is not None
    assert str(tmp_path) in str(full)
    assert "free now" in str(full)


def test_a_full_disk_is_named_with_its_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = os.statvfs(tmp_path)
    fields = list(real)
    fields[4] = 0  # f_bavail
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))
    full = full_disk([tmp_path / "a", tmp_path / "b"], [])
    assert full is not None
    total = in_words(real.f_blocks * real.f_frsize)
    assert str(full) == f"the disk of {tmp_path / 'a'} is full: 0 B of {total} are free"


def test_a_read_only_disk_is_never_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fields = list(os.statvfs(tmp_path))
    fields[4], fields[8] = 0, os.ST_RDONLY
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))
    assert full_disk([tmp_path], []) is None


def test_what_the_file_system_answers_gets_a_name_and_figures(tmp_path: Path) -> None:
    with pytest.raises(DiskFull) as full, disk_errors(tmp_path / "copy", needed_bytes=3 * MIB):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(tmp_path / "copy") in str(full.value)
    assert "takes 3.0 MiB" in str(full.value)
    assert full.value.needed_bytes == 3 * MIB
    assert full.value.free_bytes
    again = pickle.loads(pickle.dumps(full.value))
    assert (str(again), again.path, again.needed_bytes) == (str(full.value), full.value.path, 3 * MIB)
    with pytest.raises(LocalFileError), disk_errors(tmp_path):
        raise OSError(errno.EROFS, "Read-only file system")
