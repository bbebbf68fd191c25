"""Folders for what an attempt needs beside the job's directories, gone with the worker that made them.

A worker that was killed leaves its folder; the next one on that disk removes it, and first empties the directories that
the dead one's jobs had. A lock tells the living from the dead.
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

from kelpie_celery.clock import SystemClock
from kelpie_worker.claims import FOLDER_PREFIX, LOCK, Claims, clean_up_after, grab, is_ours

_LOOKED_AT_S = 0.2


class Scratch:
    """The scratch folder of one worker process.

    Attributes:
        path: The folder.
        claims: Which directories of jobs this worker uses.
    """

    def __init__(self, home: Path | None = None) -> None:
        home = home or Path(tempfile.gettempdir())
        remove_abandoned(home)
        self.path, self._lock = _locked_folder(home)
        self.claims = Claims(home, self.path)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder for one attempt, removed at its end."""
        with tempfile.TemporaryDirectory(dir=self.path, ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _locked_folder(home: Path) -> tuple[Path, int]:
    """A new folder and the descriptor of its lock.

    Another worker that starts at this moment may lock it first, and then takes it for a dead one's and removes it.
    """
    while True:
        path = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=home))
        lock = os.open(path / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink:
            return path, lock
        os.close(lock)


def remove_abandoned(home: Path) -> None:
    """Remove the folders of workers that are no more, and what their jobs left in their directories."""
    for folder in home.glob(f"{FOLDER_PREFIX}*"):
        if not is_ours(folder):
            continue
        lock = grab(folder)
        if lock is None and (folder / LOCK).exists():
            # Somebody may only be looking whether it lives, or its last process is being cleared away.
            SystemClock().sleep(_LOOKED_AT_S)
            lock = grab(folder)
        if lock is None:
            continue
        try:
            clean_up_after(home, folder)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
