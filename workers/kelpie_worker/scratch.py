"""Folders for what an attempt needs beside the job's directories, gone with the worker that made them.

A worker that was killed leaves its folder; the next one on that disk removes it. A lock tells the living from the dead.
Limits: workers that share a temporary directory must see each other's locks (one machine, one file system).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "kelpie-worker-"
_LOCK = "lock"


class Scratch:
    """The scratch folder of one worker process."""

    def __init__(self, home: Path | None = None) -> None:
        home = home or Path(tempfile.gettempdir())
        remove_abandoned(home)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=home))
        self._lock = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder for one attempt, removed at its end."""
        with tempfile.TemporaryDirectory(dir=self.path, ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def remove_abandoned(home: Path) -> None:
    """Remove the folders of workers that are no more."""
    for folder in home.glob(f"{_PREFIX}*"):
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # somebody else's, or made this moment
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # its worker lives
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
