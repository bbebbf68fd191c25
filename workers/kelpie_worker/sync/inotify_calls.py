"""The kernel's inotify by ctypes: watching folders and reading what happened in them (inotify(7)).

Limits: Linux. Nothing here waits, and nothing is decided.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

ACCESS = 0x1
MODIFY = 0x2
CLOSE_WRITE = 0x8
CLOSE_NOWRITE = 0x10
OPEN = 0x20
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
MOVE_SELF = 0x800
UNMOUNT = 0x2000
Q_OVERFLOW = 0x4000
IGNORED = 0x8000
_ONLYDIR = 0x01000000
_DONT_FOLLOW = 0x02000000
_EXCL_UNLINK = 0x04000000
ISDIR = 0x40000000

_WATCHED = (
    MODIFY | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF
    | _ONLYDIR | _DONT_FOLLOW | _EXCL_UNLINK
)  # fmt: skip
_HEADER = struct.Struct("iIII")
_READ_BYTES = 256 * 1024
_LONGEST_EVENT_BYTES = 512


class RawEvent(NamedTuple):
    """One event: in which watch, what (a mask), and the name in that folder; empty for the folder itself."""

    watch: int
    mask: int
    name: bytes


class Watches:
    """One inotify instance; ``fd`` is readable when there are events.

    Args:
        also: More events to hear of than those of changes, a mask.

    Raises:
        OSError: The kernel has no inotify, or no further instance for this user.
    """

    def __init__(self, also: int = 0) -> None:
        self._watched = _WATCHED | also
        self._libc: Any = ctypes.CDLL(None, use_errno=True)
        if not hasattr(self._libc, "inotify_init1"):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        self.fd = self._checked(self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))

    def add(self, folder: bytes) -> int:
        """Watch a folder; the number of its watch, which is the same one for a folder that is watched already.

        Raises:
            OSError: ENOSPC when this user may have no further watch; ENOENT or ENOTDIR when no folder is there.
        """
        return self._checked(self._libc.inotify_add_watch(self.fd, folder, ctypes.c_uint32(self._watched)))

    def remove(self, watch: int) -> None:
        """Watch a folder no longer, if it is watched."""
        with contextlib.suppress(OSError):
            self._checked(self._libc.inotify_rm_watch(self.fd, watch))

    def read(self, spoken: int = -1) -> tuple[list[RawEvent], bool]:
        """Take what has happened, and whether that was all.

        Args:
            spoken: A watch whose events keep their place among the others'.
        """
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return [], True
        return list(_parsed(data, spoken)), len(data) < _READ_BYTES - _LONGEST_EVENT_BYTES

    def close(self) -> None:
        """Let go of everything."""
        os.close(self.fd)

    @staticmethod
    def _checked(result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result


def _parsed(data: bytes, spoken: int) -> Iterator[RawEvent]:
    """The events of one read; of writes in turn to several files, which the kernel does not merge, one each."""
    at, written = 0, set[bytes]()
    while at < len(data):
        watch, mask, _, length = _HEADER.unpack_from(data, at)
        name = at + _HEADER.size
        event, at = data[at : name + length], name + length
        if mask != MODIFY or watch == spoken:
            written.clear()
        elif event in written:
            continue
        else:
            written.add(event)
        yield RawEvent(watch, mask, event[_HEADER.size :].rstrip(b"\0"))
