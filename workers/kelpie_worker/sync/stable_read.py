"""Reading a file that may be written to meanwhile, so that what is taken really existed at one instant.

The rule: read everything; accept if the file's stamp did not move, its path still names it, and nobody has it open for
writing (a stamp proves nothing for a program that writes through a mapping, so that is asked of the kernel by a lease).
Else read again, and accept if every byte is the same. A file that only grows passes the second test with the length
that it had.

Limits: two writes that cancel each other out between both reads are not seen, and do no harm.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import logging
import os
import signal
import stat
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from blake3 import blake3
from zlib_ng.zlib_ng import crc32

from kelpie_worker.sync.bodies import FileBody, FileChanged, PartDigest, blake3_of
from kelpie_worker.sync.errors import LocalFileError, disk_errors
from kelpie_worker.sync.snapshot import Stamp
from kelpie_worker.sync.threads import buffer, in_thread

log = logging.getLogger(__name__)

SINGLE_BYTES = 32 * 1024 * 1024
"""Up to this size a file is sent in one request."""
PART_BYTES = 8 * 1024 * 1024
_MAX_PARTS = 10_000
_PIECES_AT_ONCE = 8
_TRIES = 3
_GZIP_LEVEL = 6


T = TypeVar("T")
Work = Generator[None, None, T]
"""Blocking work that pauses after each piece; pieces may be done in different threads."""


class _Writer(Protocol):
    def write(self, data: memoryview, /) -> int:
        """Take some bytes."""


@dataclass(frozen=True)
class Digests:
    """What some content is: its length, its SHA-256 (hex), and what each part is."""

    size_bytes: int
    sha256: str
    part_bytes: int
    parts: tuple[PartDigest, ...]


@dataclass
class Captured:
    """The content of one file at one instant, ready to be sent.

    Attributes:
        path: The file.
        stamp: Of the file when it was read.
        source_sha256: Of the file's content (hex).
        sent: What is to be sent: the content, or what it was packed into.
        copy: Where that is, if not in the file itself; deleted by ``close``.
    """

    path: Path
    stamp: Stamp
    source_sha256: str
    sent: Digests
    copy: Path | None = None
    _fd: int | None = field(default=None, repr=False)

    def bodies(self, on_sent: Callable[[int], None]) -> list[FileBody]:
        """One body a part; valid until ``close``."""
        fd, part_bytes = self._open(), self.sent.part_bytes
        return [
            FileBody(self.path, fd, at, min(part_bytes, self.sent.size_bytes - at), part, on_sent)
            for at, part in zip(range(0, max(1, self.sent.size_bytes), part_bytes), self.sent.parts, strict=True)
        ]

    def _open(self) -> int:
        # A copy is opened only now: a commit may hold many thousands of them.
        if self._fd is None:
            self._fd = os.open(self.copy or self.path, os.O_RDONLY | os.O_CLOEXEC)
        return self._fd

    def close(self) -> None:
        """Let go of the file, and delete the copy."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if self.copy is not None:
            self.copy.unlink(missing_ok=True)


def part_size(size_bytes: int) -> int:
    """How large the parts of an upload are: all equal but the last, which R2 asks for, and at most 10,000.

    A file of up to `SINGLE_BYTES` is one part.
    """
    if size_bytes <= SINGLE_BYTES:
        return SINGLE_BYTES
    mebibytes = -(-size_bytes // (_MAX_PARTS * 1024 * 1024))
    return max(PART_BYTES, mebibytes * 1024 * 1024)


async def capture(path: Path, *, copy_to: Path | None = None, pack: bool = False) -> Captured:
    """Read a file consistently.

    Args:
        path: A regular file.
        copy_to: Where to keep a copy, so that a slow upload cannot be overtaken by the next write; needed for ``pack``.
            None: it is sent from the file itself, and stopped when that changes.
        pack: gzip the copy, always to the same bytes.

    Raises:
        FileChanged: It is gone, or does not hold still.
        LocalFileError: It cannot be read.
        DiskFull: No room for the copy.
    """
    taken: list[Captured] = []
    try:
        for _ in range(_TRIES):
            await _drive(_try_to_capture(path, copy_to, taken, pack=pack))
            if taken:
                return taken[0]
    except BaseException:
        # Cancelled, perhaps just when it was done.
        for captured in taken:
            captured.close()
        raise
    raise FileChanged(f"{path} changed each time that it was read")


def capture_small(path: Path) -> Captured:
    """Read a small file consistently, in this thread, and once.

    Raises:
        FileChanged: It is gone, does not hold still, or is not small any more; `capture` knows more.
        LocalFileError: It cannot be read.
    """
    taken: list[Captured] = []
    work = _try_to_capture(path, None, taken, pack=False)
    try:
        _some_steps(work)
    finally:
        work.close()
    if not taken:
        raise FileChanged(f"{path} changed when it was read, or is not small")
    return taken[0]


async def digest(path: Path) -> Digests:
    """Read a file and digest it, without looking at writers.

    Raises:
        LocalFileError: It cannot be read.
    """
    return await _drive(_digest(path))


async def _drive(work: Work[T]) -> T:
    """Do some blocking work in threads, several pieces at a time: a small file needs one change of threads."""
    try:
        while (done := await in_thread(partial(_some_steps, work))) is None:
            pass
        return done[0]
    finally:
        work.close()


def _some_steps(work: Work[T]) -> tuple[T] | None:
    try:
        for _ in range(_PIECES_AT_ONCE):
            next(work)
    except StopIteration as end:
        return (end.value,)
    return None


def _digest(path: Path) -> Work[Digests]:
    fd = open_for_reading(path)
    try:
        with disk_errors(path):
            return (yield from _read(fd, os.fstat(fd).st_size, ()))
    finally:
        os.close(fd)


def _try_to_capture(path: Path, copy_to: Path | None, taken: list[Captured], *, pack: bool) -> Work[None]:
    fd = open_for_reading(path)
    try:
        before = Stamp.of(os.fstat(fd))
        with disk_errors(copy_to or path, before.size_bytes):
            content = yield from _copy(fd, before.size_bytes, copy_to, pack=pack)
        with disk_errors(path):
            existed = content.size_bytes == before.size_bytes and (yield from _existed(path, fd, before, content))
        if existed:
            sent = (yield from _digest(copy_to)) if copy_to and pack else content
            taken.append(Captured(path, before, content.sha256, sent, copy_to, None if copy_to else fd))
    finally:
        if not taken or copy_to:
            os.close(fd)
        if not taken and copy_to:
            _remove(copy_to)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def open_for_reading(path: Path) -> int:
    """Open a regular file.

    Raises:
        FileChanged: There is none any more.
        LocalFileError: It cannot be read.
    """
    try:
        # Without O_NONBLOCK a pipe put in the file's place would hold us up for ever.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise FileChanged(f"{path} is gone") from None
    except OSError as error:
        raise LocalFileError(f"cannot read {path}: {error.strerror}; check its owner and mode") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileChanged(f"{path} is not a regular file any more")
    return fd


def _copy(fd: int, size_bytes: int, copy_to: Path | None, *, pack: bool) -> Work[Digests]:
    if copy_to is None:
        return (yield from _read(fd, size_bytes, ()))
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(copy_to.open("wb"))
        if not pack:
            return (yield from _read(fd, size_bytes, [target]))
        packed = stack.enter_context(gzip.GzipFile("", "wb", _GZIP_LEVEL, target, mtime=0))
        return (yield from _read(fd, size_bytes, [packed]))


def _read(fd: int, size_bytes: int, writers: Sequence[_Writer]) -> Work[Digests]:
    """Read the first ``size_bytes`` of a file, digest them and hand them to ``writers``; stops at an early end."""
    whole, part_bytes = hashlib.sha256(), part_size(size_bytes)
    parts: list[PartDigest] = []
    crc, part = 0, blake3()
    at = 0
    # The view is asked for anew each time: the next piece may be read by another thread. None crosses a part's end.
    while at < size_bytes:
        view = buffer()[: min(size_bytes - at, part_bytes - at % part_bytes)]
        taken = os.preadv(fd, [view], at)
        if not taken:
            break
        data = view[:taken]
        crc = crc32(data, crc)
        whole.update(data)
        part.update(data)
        for writer in writers:
            writer.write(data)
        at += taken
        if at % part_bytes == 0 and at < size_bytes:
            parts.append(PartDigest(crc, blake3_of(part)))
            crc, part = 0, blake3()
        if at < size_bytes:
            yield
    return Digests(at, whole.hexdigest(), part_bytes, (*parts, PartDigest(crc, blake3_of(part))))


def _existed(path: Path, fd: int, before: Stamp, content: Digests) -> Work[bool]:
    if Stamp.of(os.fstat(fd)) == before and names(path, before) and nobody_writes(fd):
        return True
    again = yield from _read(fd, before.size_bytes, ())
    return again.sha256 == content.sha256


def names(path: Path, stamp: Stamp) -> bool:
    """Whether a path still names the file that was opened."""
    try:
        now = path.lstat()
    except OSError:
        return False
    return (now.st_dev, now.st_ino) == (stamp.device, stamp.inode)


def nobody_writes(fd: int) -> bool:
    """Whether no process has the file open for writing, or mapped so: only then the kernel grants a read lease."""
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        # Somebody may open the file while the lease is held; the default signal for that, SIGIO, would kill us.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True


def space_for_copies(folder: Path) -> int:
    """How many bytes of copies a folder may hold: half of what is free on its disk."""
    with disk_errors(folder):
        status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize // 2
