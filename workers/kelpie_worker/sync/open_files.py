"""Which files the processes of a job have open for writing, as /proc tells: what is open may be half written.

A descriptor counts if it may write, whatever it has done so far; so does a writable shared mapping, also after its
descriptor was closed, since stores to it leave no other trace. Files that were deleted meanwhile do not count.

Limits: Linux. A file that is opened by a name outside of the roots (another hard link) is not seen, nor one that only
io_uring or a message in a socket still holds. Blocking calls, for a thread: 0.1 s for 10,000 descriptors, 0.4 s if all
are of files below the roots.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_MOST_DESCRIPTORS = 20_000
"""Beyond so many nobody looks any further: it could take a second, each time."""
_DELETED = b" (deleted)"
_MAPPING = re.compile(rb"^\S+ .w.s \S+ \S+ \d+ +(/.*)$", re.MULTILINE)
"""A writable shared mapping in /proc/PID/maps and its file (proc_pid_maps(5))."""


@dataclass(frozen=True)
class OpenFile:
    """A file that is open for writing.

    Attributes:
        path: Where it is.
        append: Whether each descriptor can only append to it.
        mapped: Whether somebody has it mapped, so that it can change without a trace.
    """

    path: Path
    append: bool
    mapped: bool


class _CannotBeTold(Exception):
    """Somebody may have files open, and does not let us see."""


def open_for_writing(roots: Sequence[Path], pids: Iterable[int]) -> list[OpenFile] | None:
    """The regular files below ``roots``, whose paths are resolved, that ``pids`` have open for writing.

    Returns:
        One entry a file, by path; None when that cannot be told: without /proc, of a process that we may not look at,
        or with more descriptors than are looked at.
    """
    if not os.path.isdir("/proc/self/fd"):  # noqa: PTH112 -- called often
        return None
    look = _Look(tuple(os.fsencode(root) + b"/" for root in roots))
    try:
        for pid in pids:
            look.at(pid)
    except _CannotBeTold:
        return None
    return [
        OpenFile(Path(os.fsdecode(path)), path in look.opened and look.opened[path], path in look.mapped)
        for path in sorted({*look.opened, *look.mapped})
    ]


class _Look:
    """One look: ``opened`` has for each path whether all descriptors append, ``mapped`` the mapped ones."""

    def __init__(self, roots: tuple[bytes, ...]) -> None:
        self._roots = roots
        self._left = _MOST_DESCRIPTORS
        self.opened: dict[bytes, bool] = {}
        self.mapped: set[bytes] = set()

    def at(self, pid: int) -> None:
        try:
            self._descriptors(f"/proc/{pid}/fd".encode(), f"/proc/{pid}/fdinfo".encode())
            self._mappings(pid)
        except (FileNotFoundError, ProcessLookupError):
            return  # it has ended
        except OSError as error:
            # One that has ended and is not yet collected belongs to root.
            if not _is_dead(pid):
                raise _CannotBeTold from error

    def _descriptors(self, folder: bytes, details: bytes) -> None:
        numbers = os.listdir(folder)  # noqa: PTH208 -- as readlink
        self._left -= len(numbers)
        if self._left < 0:
            raise _CannotBeTold
        for number in numbers:
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                link = folder + b"/" + number
                path = os.readlink(link)  # noqa: PTH115 -- bytes, as a name need not be text
                if path.startswith(self._roots) and _is_file_at(path, os.stat(link)):  # noqa: PTH116
                    self._note(path, details + b"/" + number)

    def _note(self, path: bytes, details: bytes) -> None:
        flags = _flags(details)
        if flags & os.O_ACCMODE in (os.O_WRONLY, os.O_RDWR):
            self.opened[path] = self.opened.get(path, True) and bool(flags & os.O_APPEND)

    def _mappings(self, pid: int) -> None:
        with open(f"/proc/{pid}/maps", "rb") as f:  # noqa: PTH123
            text = f.read()
        for name in set(_MAPPING.findall(text)):
            if name.startswith(self._roots):
                self.mapped.update(_mapped_path(name))


def _is_file_at(path: bytes, status: os.stat_result) -> bool:
    """Whether what a descriptor has is a regular file that still is where its link says."""
    if not stat.S_ISREG(status.st_mode) or status.st_nlink == 0:
        return False
    # With another name left, a deleted one still is told by its end only; but that may as well belong to the name.
    return not path.endswith(_DELETED) or os.path.lexists(path)


def _mapped_path(name: bytes) -> Iterator[bytes]:
    r"""What a path in /proc/PID/maps stands for: there, and only there, a newline is written as ``\012``."""
    for path in dict.fromkeys((name.replace(b"\\012", b"\n"), name)):
        if os.path.lexists(path):
            yield path


def _flags(details: bytes) -> int:
    with open(details, "rb") as f:  # noqa: PTH123
        for line in f:
            if line.startswith(b"flags:"):
                return int(line[6:], 8)
    return os.O_RDWR  # it does not say: the worst


def _is_dead(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:  # noqa: PTH123
            text = f.read()
    except OSError:
        return True
    return text[text.rfind(b")") + 2 : text.rfind(b")") + 3] in {b"Z", b"X"}
