"""Errors of the local side of sync: disks, directories and files.

KelpieError
+-- DiskFull         no room for what is brought down or packed
+-- LocalPathError   a ``local_path`` that must not be touched
+-- LocalFileError   a file of the job's that cannot be read whole

Limits: errors of the storage are in ``kelpie_celery.errors``.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kelpie_celery.errors import KelpieError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class DiskFull(KelpieError):
    """A disk of this machine has no room for what the job needs."""


class LocalPathError(KelpieError):
    """A ``local_path`` that must not be cleared, because more than the job's files live there."""


class LocalFileError(KelpieError):
    """A file or directory of the job's that cannot be read, or that never stays the same while it is read."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Give names to what the file system answers.

    Args:
        path: What is being written.

    Raises:
        DiskFull: No space, or over the quota.
        LocalFileError: Anything else, such as a read-only file system.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise  # not the file system's, but a library's that builds on OSError, as gzip's
        if error.errno in _FULL:
            raise DiskFull(f"the disk is full while writing {path}; use machines with a larger disk") from error
        raise LocalFileError(f"cannot use {path}: {error.strerror}; check its folder's owner and mode") from error
