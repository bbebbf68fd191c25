"""What a directory holds at one time, by stat: the walk that decides what changed.

Regular files only. Symbolic links are not followed and not stored, nor are sockets, pipes and empty folders, nor our
own temporary files. Two files with the same stamp are taken to be the same.

Limits: a store into a page that a program has mapped for long may change a file without changing its stamp; whoever
needs certainty reads the file (see ``stable_read`` and ``commit``).
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kelpie_worker.sync.errors import LocalFileError
from kelpie_worker.sync.paths import CONTROL_SUFFIX, TEMPORARY


class Stamp(NamedTuple):
    """What stat says of a file; times in nanoseconds since the epoch."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """From a stat result."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def is_same_content(self, other: Stamp) -> bool:
        """Whether both are one file, unchanged but perhaps renamed, which moves its ctime."""
        return self[:4] == other[:4]


@dataclass(frozen=True)
class Snapshot:
    """The files of a directory by relative path.

    Attributes:
        files: The regular ones that are not our own.
        exists: Whether there is a directory; a link in its place is none.
        reserved: Folders that are left out, since their names say that they are ours.
    """

    files: dict[str, Stamp]
    exists: bool = True
    reserved: tuple[str, ...] = ()


def take(directory: Path) -> Snapshot:
    """Walk a directory.

    Raises:
        LocalFileError: Part of it cannot be read; what is hidden must not be taken for deleted.
    """
    if not is_real_directory(directory):
        return Snapshot({}, exists=False)
    files: dict[str, Stamp] = {}
    reserved: list[str] = []
    pending = [("", os.fspath(directory))]
    while pending:
        prefix, folder = pending.pop()
        for entry in _entries(folder):
            _note(entry, prefix, files, pending, reserved)
    return Snapshot(files, reserved=tuple(reserved))


def is_real_directory(directory: Path) -> bool:
    """Whether a directory, whose path was resolved before, still is one, and no link leads to it now."""
    return directory.is_dir() and os.path.realpath(directory) == os.fspath(directory)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []  # gone, or replaced, since its parent was read
    except OSError as error:
        raise LocalFileError(f"cannot read the folder {folder}: {error.strerror}; check its owner and mode") from error


def _note(
    entry: os.DirEntry[str],
    prefix: str,
    files: dict[str, Stamp],
    pending: list[tuple[str, str]],
    reserved: list[str],
) -> None:
    relative = prefix + entry.name
    try:
        if entry.is_dir(follow_symlinks=False):
            if entry.name.endswith(CONTROL_SUFFIX):
                reserved.append(relative)
            else:
                pending.append((relative + "/", entry.path))
            return
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return
    except OSError as error:
        raise LocalFileError(f"cannot look at {entry.path}: {error.strerror}") from error
    if stat.S_ISREG(status.st_mode) and not entry.name.startswith(TEMPORARY):
        files[relative] = Stamp.of(status)
