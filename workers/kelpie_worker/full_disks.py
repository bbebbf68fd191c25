"""Whether a disk that a command writes to is full, as the file system tells, or the command itself.

Limits: looked at when the command has failed: what it deleted on its way out has made room again, and then only its
last words tell. Blocking calls, for a thread.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_MIB = 1 << 20
_SAID = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))
"""What programs print when the kernel answers so: ``No space left on device``, ``Disk quota exceeded``."""


@dataclass(frozen=True)
class Disk:
    """Room on the file system of a path."""

    path: Path
    free_bytes: int
    total_bytes: int
    free_files: int | None

    @property
    def is_full(self) -> bool:
        """Less than a thousandth is free, and at least a MiB and at most 64 count as such; or no inode is."""
        return self.free_bytes < min(64 * _MIB, max(_MIB, self.total_bytes // 1000)) or self.free_files == 0

    def __str__(self) -> str:
        """``the disk of /data is full: 0 B of 8.0 MiB are free``."""
        if self.free_files == 0 and self.free_bytes:
            return f"the disk of {self.path} has no inode free: it holds too many files"
        return f"the disk of {self.path} is full: {in_words(self.free_bytes)} of {in_words(self.total_bytes)} are free"


@dataclass(frozen=True)
class FullDisk:
    """What tells of a full disk: one that is, or a line of the command's output with the room that there is now."""

    disk: Disk | None
    said: str = ""
    now: Sequence[Disk] = ()

    def __str__(self) -> str:
        if self.disk is not None:
            return str(self.disk)
        now = ", ".join(f"{disk.path} {in_words(disk.free_bytes)}" for disk in self.now)
        return f"its output says {self.said!r} (free now: {now or 'not known'})"


def room_at(path: Path) -> Disk | None:
    """The room at a path, which need not exist; None where nothing can be written, or nothing is known."""
    for place in (path, *path.parents):
        try:
            seen = os.statvfs(place)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        if seen.f_flag & os.ST_RDONLY or not seen.f_blocks:
            return None
        files = seen.f_favail if seen.f_files else None  # btrfs and others count none
        return Disk(path, seen.f_bavail * seen.f_frsize, seen.f_blocks * seen.f_frsize, files)
    return None


def full_disk(paths: Iterable[Path], last_lines: Iterable[str]) -> FullDisk | None:
    """What tells of a full disk after a command has failed.

    Args:
        paths: Where it may have written.
        last_lines: Of its output.
    """
    disks = [disk for path in dict.fromkeys(paths) if (disk := room_at(path))]
    full = next((disk for disk in disks if disk.is_full), None)
    said = next((words for line in last_lines for words in _SAID if words.lower() in line.lower()), "")
    if full is None and not said:
        return None
    return FullDisk(full, said, disks)


def in_words(count_bytes: int) -> str:
    """``512 B``, ``3.4 MiB``."""
    number, unit = float(count_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if number < 1024:  # noqa: PLR2004
            break
        number, unit = number / 1024, larger
    return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
