"""Errors of the local side of sync: disks, directories and files.

KelpieError
+-- DiskFull         no room for what is brought down or packed (path, free_bytes, needed_bytes)
+-- LocalPathError   a ``local_path`` that must not be touched
+-- LocalFileError   a file of the job's that cannot be read whole

Limits: errors of the storage are in ``kelpie_celery.errors``.
"""

from __future__ import annotations

import errno
from pathlib import Path

from kelpie_celery.errors import KelpieError
from kelpie_worker.full_disks import in_words, room_at

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the kernel answers where there is no room, or no more for this user."""


class DiskFull(KelpieError):
    """A disk of this machine has no room for what the job needs.

    Attributes:
        path: What was written, or was to be.
        free_bytes: Free there, as far as is known.
        needed_bytes: What was to be written, as far as is known.
    """

    def __init__(
        self, message: str, path: Path | str, free_bytes: int | None = None, needed_bytes: int | None = None
    ) -> None:
        super().__init__(message)
        self.path, self.free_bytes, self.needed_bytes = str(path), free_bytes, needed_bytes

    def __reduce__(self) -> tuple[type[DiskFull], tuple[str, str, int | None, int | None]]:
        return type(self), (str(self), self.path, self.free_bytes, self.needed_bytes)


class LocalPathError(KelpieError):
    """A ``local_path`` that must not be cleared, because more than the job's files live there."""


class LocalFileError(KelpieError):
    """A file or directory of the job's that cannot be read, or that never stays the same while it is read."""


class disk_errors:  # noqa: N801 -- used as a function; a generator would take three times as long to enter
    """A context that gives names to what the file system answers.

    Args:
        path: What is being written.
        needed_bytes: How much that is, if it is known.

    Raises:
        DiskFull: No space, or over the quota.
        LocalFileError: Anything else, such as a read-only file system.
    """

    __slots__ = ("_needed_bytes", "_path")

    def __init__(self, path: str | Path, needed_bytes: int | None = None) -> None:
        self._path, self._needed_bytes = path, needed_bytes

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        # Without a number it is not the file system's, but a library's that builds on OSError, as gzip's.
        if isinstance(error, OSError) and error.errno is not None:
            raise _named(self._path, self._needed_bytes, error) from error


def _named(path: str | Path, needed_bytes: int | None, error: OSError) -> KelpieError:
    if error.errno in FULL:
        return disk_full(Path(path), needed_bytes, error.strerror)
    return LocalFileError(f"cannot use {path}: {error.strerror}; check its folder's owner and mode")


def disk_full(path: Path, needed_bytes: int | None = None, why: str | None = None) -> DiskFull:
    """The error for a path that could not be written."""
    room = room_at(path)
    needs = f", which takes {in_words(needed_bytes)}" if needed_bytes is not None else ""
    free = f": {in_words(room.free_bytes)} of {in_words(room.total_bytes)} are free" if room else ""
    quota = f" ({why})" if why and room and not room.is_full else ""
    return DiskFull(
        f"the disk is full while writing {path}{needs}{free}{quota}; use machines with a larger disk",
        path, room.free_bytes if room else None, needed_bytes,
    )  # fmt: skip
