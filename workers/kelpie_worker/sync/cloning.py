"""The same content under a second name: as a reflink, a hard link or a copy.

A reflink (``FICLONE``: btrfs, XFS, bcachefs) shares the blocks until one side is written to; a hard link shares the
file itself; a copy shares nothing. Limits: Linux; blocking calls, for a thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

# linux/fs.h: _IOW(0x94, 9, int)
FICLONE = 0x40049409
_PIECE_BYTES = 16 * 1024 * 1024
# What file systems answer that cannot copy within the kernel, or not between these two.
_NOT_IN_KERNEL = frozenset({errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

Cancelled = Callable[[], bool]


class CopyCancelled(Exception):
    """A copy was told to stop."""


def never() -> bool:
    """For copies that nobody stops."""
    return False


def clone(source_fd: int, target: Path) -> bool:
    """Make ``target``, a new file, a reflink.

    Returns:
        Whether that was possible; if not, there is no such file.

    Raises:
        OSError: The file cannot be made, or the disk is full.
    """
    target_fd = _create(target)
    try:
        fcntl.ioctl(target_fd, FICLONE, source_fd)
    except OSError as error:
        os.unlink(target)  # noqa: PTH108 -- beside the other calls on descriptors
        if error.errno in _FULL:
            raise
        return False
    finally:
        os.close(target_fd)
    return True


def link(source: Path, target: Path) -> bool:
    """Make ``target`` a hard link; whether that was possible.

    Raises:
        FileNotFoundError: ``source`` is gone.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True


def copy(source_fd: int, target: Path, cancelled: Cancelled = never) -> None:
    """Make ``target``, a new file, a copy.

    Raises:
        CopyCancelled: It was told to stop; what there is of the file is left to the caller.
        OSError: Likewise.
    """
    target_fd = _create(target)
    try:
        at, end, piece = 0, os.fstat(source_fd).st_size, _in_kernel
        while at < end:
            if cancelled():
                raise CopyCancelled
            count = piece(source_fd, target_fd, at)
            if count == 0 and piece is _read_and_write:
                return  # it was cut off meanwhile
            if count == 0:
                piece = _read_and_write
            at += count
    finally:
        os.close(target_fd)


def _create(target: Path) -> int:
    return os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)


def _in_kernel(source_fd: int, target_fd: int, at: int) -> int:
    """Copy a piece; 0 where the file system cannot (some say so by an error, some by 0)."""
    try:
        return os.copy_file_range(source_fd, target_fd, _PIECE_BYTES, at, at)
    except OSError as error:
        if error.errno in _NOT_IN_KERNEL:
            return 0
        raise


def _read_and_write(source_fd: int, target_fd: int, at: int) -> int:
    data = memoryview(os.pread(source_fd, _PIECE_BYTES, at))
    written = 0
    while written < len(data):
        written += os.pwrite(target_fd, data[written:], at + written)
    return written
