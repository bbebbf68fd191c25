"""Where a download lands: a temporary file, written and digested by transfer threads, then put in its place.

Limits: an object of several ranges is digested by whoever needs its digest, once it is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable

from kelpie_worker.sync.errors import disk_errors

_NEW = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW


class Landing:
    """The file that an object becomes.

    An object that comes in one range is put in its place by the thread that its last byte arrives in: with many small
    ones, every change of threads counts.

    Args:
        path: Where it goes. (Text: to make a ``Path`` of each name takes as long as to give a file its name.)
        temporary: Where it is written first, in the same folder.
        place: Whether it may go to its place as it is.
    """

    def __init__(self, path: str, temporary: str, *, place: bool) -> None:
        self.path, self.temporary = path, temporary
        self.placed, self.digest = False, ""
        self._place = place
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._size_bytes, self._expected, self._in_order = 0, "", False
        self._md5: hashlib._Hash | None = None

    def begin(self, size_bytes: int, expected: str, *, in_order: bool) -> None:
        """Wait for an object from its first byte on.

        Args:
            size_bytes: Its size.
            expected: Its MD5 (hex), or empty.
            in_order: Whether it comes in one range.
        """
        self.close()
        self._size_bytes, self._expected, self._in_order, self.digest = size_bytes, expected, in_order, ""
        self._md5 = hashlib.md5(usedforsecurity=False) if in_order and expected else None

    def write(self, data: memoryview, at: int) -> None:
        """Write what arrived; in a transfer thread.

        Raises:
            DiskFull: No room.
            LocalFileError: It cannot be written.
        """
        with disk_errors(self.temporary, self._size_bytes):
            _write_all(self._open(), data, at)
        if self._in_order:
            if self._md5 is not None:
                self._md5.update(data)
            if at + len(data) == self._size_bytes:
                self.arrived_whole()

    def arrived_whole(self) -> None:
        """All of an object that comes in one range is there."""
        with disk_errors(self.temporary):
            self._open()
        self.close()
        self.digest = self._md5.hexdigest() if self._md5 is not None else ""
        if self._place and self._expected in {"", self.digest}:
            into_place(self.temporary, self.path)
            self.placed = True

    def _open(self) -> int:
        with self._lock:
            if self._fd is None:
                self._fd = os.open(self.temporary, _NEW, 0o666)
            return self._fd

    def close(self) -> None:
        """Nothing more arrives."""
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None


class Writer:
    """Writes one range to its place as it arrives, in the thread that it arrives in."""

    def __init__(self, landing: Landing, start: int, end: int, on_bytes: Callable[[int], None]) -> None:
        self.at, self.end = start, end
        self._landing, self._on_bytes = landing, on_bytes

    def take(self, data: memoryview) -> None:
        """Write the next bytes."""
        self._landing.write(data, self.at)
        self.at += len(data)
        self._on_bytes(len(data))


def land(data: memoryview, path: str, temporary: str) -> None:
    """Write a whole object and put it in its place.

    Args:
        data: All of it.
        path: Where it goes.
        temporary: Where it is written first, in the same folder.

    Raises:
        DiskFull: No room.
        LocalFileError: It cannot be written.
    """
    try:
        with disk_errors(temporary, len(data)):
            fd = os.open(temporary, _NEW, 0o666)
            try:
                _write_all(fd, data, 0)
            finally:
                os.close(fd)
        into_place(temporary, path)
    except BaseException:
        remove(temporary)
        raise


def remove(path: str) -> None:
    """Delete a file, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108 -- text; see `Landing`


def _write_all(fd: int, view: memoryview, at: int) -> None:
    while view:
        written = os.pwrite(fd, view, at)
        view, at = view[written:], at + written


def into_place(temporary: str, path: str) -> None:
    """Give a file its name.

    Raises:
        DiskFull: No room.
        LocalFileError: It cannot have it.
    """
    with disk_errors(path):
        try:
            os.replace(temporary, path)  # noqa: PTH105 -- both are text; see `Landing`
        except IsADirectoryError:
            # The prefix was found to have no such conflict; this is what an empty directory marker left.
            os.rmdir(path)  # noqa: PTH106 -- likewise
            os.replace(temporary, path)  # noqa: PTH105 -- likewise
