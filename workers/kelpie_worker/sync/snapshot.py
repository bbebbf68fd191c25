"""What a directory holds at one time, by stat: the walk that decides what changed.

Symbolic links are noted, never followed; sockets, pipes and devices are left out, and so are our own temporary files.
Two files with the same stamp are taken to be the same.

Limits: a store into a page that a program has mapped for long may change a file without changing its stamp; whoever
needs certainty reads the file (see ``stable_read`` and ``commit``). A walk takes time: what it returns need not have
been there at one instant.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kelpie_worker.sync.errors import LocalFileError
from kelpie_worker.sync.paths import CONTROL_SUFFIX, TEMPORARY

_PERMISSIONS = 0o777


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
        # Not by its constructor, which costs twice as much: a walk makes one for each file.
        return tuple.__new__(
            cls, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        )  # fmt: skip

    def is_same_content(self, other: Stamp) -> bool:
        """Whether both are one file, unchanged but perhaps renamed, which moves its ctime."""
        return self[:4] == other[:4]


@dataclass(frozen=True)
class Snapshot:
    """What a directory holds, by relative path.

    Attributes:
        files: The regular files that are not our own.
        exists: Whether there is a directory; a link in its place is none.
        reserved: Folders that are left out, since their names say that they are ours.
        links: The symbolic links with the text of each; whether it leads anywhere is not looked at.
        folders: The folders below it, empty ones too, but none of ``reserved``.
        modes: The permission bits of each file and folder, without setuid, setgid and the sticky bit.
    """

    files: dict[str, Stamp]
    exists: bool = True
    reserved: tuple[str, ...] = ()
    links: dict[str, str] = field(default_factory=dict)
    folders: frozenset[str] = frozenset()
    modes: dict[str, int] = field(default_factory=dict)


def take(directory: Path) -> Snapshot:
    """Walk a directory.

    Raises:
        LocalFileError: Part of it cannot be read; what is hidden must not be taken for deleted.
    """
    try:
        exists = is_real_directory(directory)
    except OSError as error:
        raise LocalFileError(f"cannot look at {directory}: {error.strerror}; check its owner and mode") from error
    if not exists:
        return Snapshot({}, exists=False)
    walk = _Walk(os.fspath(directory))
    while walk.pending:
        walk.look_into(*walk.pending.pop())
    return Snapshot(walk.files, True, tuple(walk.reserved), walk.links, frozenset(walk.folders), walk.modes)


def is_real_directory(directory: Path) -> bool:
    """Whether a directory, whose path was resolved before, still is one, and no link leads to it now.

    Raises:
        OSError: That cannot be told.
    """
    return directory.is_dir() and os.path.realpath(directory) == os.fspath(directory)


class _Walk:
    """What was found so far, and the folders still to be looked into, each as its prefix and its path."""

    def __init__(self, top: str) -> None:
        self.pending = [("", top)]
        self.files: dict[str, Stamp] = {}
        self.links: dict[str, str] = {}
        self.modes: dict[str, int] = {}
        self.folders: list[str] = []
        self.reserved: list[str] = []

    def look_into(self, prefix: str, folder: str) -> None:
        """Note what one folder holds."""
        files, modes = self.files, self.modes
        for entry in _entries(folder):
            try:
                status = entry.stat(follow_symlinks=False)
                mode = status.st_mode
                if stat.S_ISREG(mode):  # here and not in a function, as most entries are such
                    if not entry.name.startswith(TEMPORARY):
                        relative = prefix + entry.name
                        files[relative] = Stamp.of(status)
                        modes[relative] = mode & _PERMISSIONS
                else:
                    self._note_other(entry, prefix + entry.name, mode)
            except FileNotFoundError:
                continue  # gone since its folder was read
            except OSError as error:
                raise LocalFileError(f"cannot look at {entry.path}: {error.strerror}") from error

    def _note_other(self, entry: os.DirEntry[str], relative: str, mode: int) -> None:
        if stat.S_ISDIR(mode) and entry.name.endswith(CONTROL_SUFFIX):
            self.reserved.append(relative)
        elif stat.S_ISDIR(mode):
            self.folders.append(relative)
            self.modes[relative] = mode & _PERMISSIONS
            self.pending.append((relative + "/", entry.path))
        elif stat.S_ISLNK(mode) and not entry.name.startswith(TEMPORARY):
            self._note_link(entry, relative)

    def _note_link(self, entry: os.DirEntry[str], relative: str) -> None:
        try:
            self.links[relative] = os.readlink(entry.path)  # noqa: PTH115 -- the text as it is
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # A file took the link's place just now; without it, it would be taken for deleted.
            status = os.lstat(entry.path)
            if stat.S_ISREG(status.st_mode):
                self.files[relative], self.modes[relative] = Stamp.of(status), status.st_mode & _PERMISSIONS


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []  # gone, or replaced, since its parent was read
    except OSError as error:
        raise LocalFileError(f"cannot read the folder {folder}: {error.strerror}; check its owner and mode") from error
