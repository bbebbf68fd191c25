"""A folder of our own inside of a directory that is being filled, for one process at a time.

Limits: where the file system knows no locks, two processes are not kept apart, and each clears away the other's files.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kelpie_celery.checkpoints.names import TEMPORARY
from kelpie_celery.errors import DirectoryError
from kelpie_celery.staging.content import writing
from kelpie_celery.staging.tree import shown

NAME = f"{TEMPORARY}fetch"


@contextmanager
def scratch_of(directory: Path) -> Iterator[Path]:
    """An empty folder inside of a directory, which is made; gone at the end, also what was left in it.

    Raises:
        DirectoryError: It cannot be made, or another process fills the directory.
    """
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(fd, directory)
        scratch = directory / NAME
        with writing(scratch):
            # What a killed process left; a link is not followed.
            if scratch.is_symlink() or scratch.is_file():
                scratch.unlink()
            elif scratch.exists():
                shutil.rmtree(scratch)
            scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    finally:
        os.close(fd)


def _lock(fd: int, directory: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DirectoryError(f"another process fills {shown(directory)}; wait for it, or name another one") from None
    except OSError:
        return  # a file system without locks
