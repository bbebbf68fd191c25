"""Emptying a job's directories, and moving what they hold out of the next job's way.

Nothing outside of a configured directory is touched, and no symbolic link is followed. Limits: blocking calls, for a
thread.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from kelpie_worker.sync.errors import disk_errors
from kelpie_worker.sync.snapshot import is_real_directory

log = logging.getLogger(__name__)

_ASIDE = ".kelpie-aside-"
_LOCK = "lock"
_OTHER = "other"


def prepare(directory: Path) -> None:
    """Make a directory exist and be empty.

    Raises:
        LocalFileError: It cannot be; names it.
    """
    with disk_errors(directory):
        empty(directory)
        directory.mkdir(parents=True, exist_ok=True)


def empty(directory: Path) -> None:
    """Delete what a directory holds; where there is something else, that itself.

    Raises:
        OSError: Something cannot be deleted, or a link on the way leads elsewhere.
    """
    if _is_something_else(directory):
        directory.unlink()
        return
    if not directory.exists():
        return
    if not is_real_directory(directory):
        raise OSError(errno.ELOOP, "a link on its path leads elsewhere", os.fspath(directory))
    with os.scandir(directory) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                # rmtree works by descriptors here: a link put in a folder's place meanwhile is not followed.
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)  # noqa: PTH108 -- an entry, not a Path


def _is_something_else(path: Path) -> bool:
    return path.is_symlink() or (path.exists() and not path.is_dir())


class Aside:
    """What some directories held, in folders beside them; or still in them, where that cannot be.

    The entries are moved, not the directory itself: that works for a directory of the container image, too, and leaves
    its owner and mode to the next job. A directory that the job removed, or put a link or a file in the place of, has a
    folder as well, which does not exist: what comes to be in its place is the next job's.
    """

    def __init__(self, directories: Sequence[Path], spare: Path) -> None:
        self._places: dict[Path, Path] = {}
        self._locks: list[int] = []
        self._others: list[tuple[Path, Path]] = []
        self.moved = self._move_all(directories, spare.resolve())

    def where(self, directory: Path) -> Path:
        """Where the content of a directory, or of a folder below one, is now."""
        for origin, folder in self._places.items():
            if directory.is_relative_to(origin):
                return folder / directory.relative_to(origin)
        return directory

    def remove(self) -> None:
        """Delete what was moved; what cannot be deleted is left, with a warning."""
        for folder in self._places.values():
            shutil.rmtree(folder.parent, onerror=_warn)
        self._unlock()
        self._places = {}

    def _move_all(self, directories: Sequence[Path], spare: Path) -> bool:
        try:
            for directory in directories:
                self._places[directory] = self._move(directory, spare)
        except OSError as error:
            log.info(
                "a directory cannot be moved aside; its slot stays taken until everything is stored",
                extra={"action": "aside_refused", "error": str(error)},
            )
            self._move_back()
            return False
        return True

    def _move(self, directory: Path, spare: Path) -> Path:
        failure: OSError | None = None
        # Beside a directory that is gone there may be nothing of the job's any more.
        present = is_real_directory(directory) or _is_something_else(directory)
        for beside in (directory.parent, spare) if present else (spare,):
            try:
                return self._move_into(beside / f"{_ASIDE}{directory.name}-{secrets.token_hex(4)}", directory)
            except OSError as error:
                failure = error
        raise failure or OSError("nowhere to move to")

    def _move_into(self, home: Path, directory: Path) -> Path:
        target = home / "files"
        home.mkdir(parents=True, mode=0o700)
        lock = os.open(home / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self._locks.append(lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        moved: list[str] = []
        try:
            if _is_something_else(directory):
                # Left where it is, the next job would take what it leads to for its own directory.
                directory.rename(home / _OTHER)
                self._others.append((directory, home / _OTHER))
            if not is_real_directory(directory):
                return target
            target.mkdir(mode=0o700)
            for name in os.listdir(directory):  # noqa: PTH208 -- names are wanted
                (directory / name).rename(target / name)
                moved.append(name)
        except OSError:
            for name in moved:
                (target / name).rename(directory / name)
            shutil.rmtree(home)
            raise
        return target

    def _move_back(self) -> None:
        for directory, folder in self._places.items():
            for name in os.listdir(folder) if folder.is_dir() else ():  # noqa: PTH208
                (folder / name).rename(directory / name)
        for directory, other in self._others:
            other.rename(directory)
        self.remove()

    def _unlock(self) -> None:
        while self._locks:
            os.close(self._locks.pop())


def remove_stale_asides(directory: Path) -> None:
    """Delete what a worker that died left beside a directory: folders that no living process holds locked."""
    for home in directory.parent.glob(f"{_ASIDE}{directory.name}-*"):
        try:
            lock = os.open(home / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(home, onerror=_warn)
        except OSError:
            continue  # its owner lives
        finally:
            os.close(lock)


def _warn(_: object, path: str, error: object) -> None:
    log.warning("cannot delete", extra={"action": "clean_failed", "path": path, "error": str(error)})
