"""Which directories the attempts of the workers of one machine use, in files that all of its workers can read.

An attempt claims its directories before it touches them. Nobody takes what a living worker has claimed; what a dead one
had claimed is emptied by the next worker that starts. A worker lives as long as it holds the lock of its scratch
folder, in which its claims lie.

Limits: workers of one user that share a temporary directory. A claim costs a few small files; a machine has few
workers.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kelpie_worker.sync.dirs import empty, remove_stale_asides

log = logging.getLogger(__name__)

FOLDER_PREFIX = "kelpie-worker-"
"""What the scratch folders of workers are called."""
LOCK = "lock"
_CLAIMS = "claims"


def overlap(one: Path, other: Path) -> bool:
    """Whether two directories are one place: the same, or one within the other."""
    return one == other or one in other.parents or other in one.parents


class Claim:
    """What one attempt claims, in a file."""

    def __init__(self, file: Path, paths: Sequence[Path]) -> None:
        self._file, self._paths = file, [str(path) for path in paths]
        self._write({"uses": self._paths})

    def _write(self, content: dict[str, list[str]]) -> None:
        draft = self._file.with_suffix(".draft")
        draft.write_text(json.dumps(content))
        draft.replace(self._file)

    def let_go(self) -> None:
        """The directories are free; what was moved aside still lies beside them."""
        with contextlib.suppress(OSError):
            self._write({"uses": [], "beside": self._paths})

    def close(self) -> None:
        """Nothing is left there."""
        with contextlib.suppress(OSError):
            self._file.unlink()


class Claims:
    """The claims of one worker.

    Args:
        home: Where the scratch folders of all workers are.
        folder: This worker's; it holds its lock.
    """

    def __init__(self, home: Path, folder: Path) -> None:
        self._home, self._folder = home, folder
        (folder / _CLAIMS).mkdir(exist_ok=True)

    def take(self, paths: Sequence[Path]) -> Claim | None:
        """Claim directories, resolved; None when another living worker has one of them, or is just asking."""
        with _turn(self._home) as mine:
            if not mine or used_by_others(self._home, self._folder, paths):
                return None
            return Claim(self._folder / _CLAIMS / f"{secrets.token_hex(8)}.json", paths)


def used_by_others(home: Path, own: Path, paths: Sequence[Path]) -> bool:
    """Whether a living worker other than the one with the folder ``own`` has claimed any of these."""
    for folder in home.glob(f"{FOLDER_PREFIX}*"):
        if folder == own or not is_ours(folder):
            continue
        used = [path for claim in _claims_in(folder) for path in claim["uses"]]
        if any(overlap(path, other) for path in paths for other in used) and lives(folder):
            return True
    return False


def clean_up_after(home: Path, folder: Path) -> None:
    """Empty the directories that a dead worker had claimed, but for those that a living one has by now.

    Args:
        home: Where the scratch folders of all workers are.
        folder: The dead one's, whose lock the caller holds: so its claims keep others out meanwhile.
    """
    claims = list(_claims_in(folder))
    used = dict.fromkeys(path for claim in claims for path in claim["uses"])
    # Whoever has its turn now took a directory before this worker could be seen to clean; whoever comes later waits.
    with _turn(home, wait=True):
        left = [path for path in used if not used_by_others(home, folder, [path])]
    for path in dict.fromkeys([*used, *(path for claim in claims for path in claim["beside"])]):
        with contextlib.suppress(OSError):
            remove_stale_asides(path)
    for path in left:
        _empty(path)


def _empty(path: Path) -> None:
    try:
        empty(path)
    except OSError as error:
        log.warning(
            "cannot empty a directory that a dead worker left",
            extra={"action": "clean_failed", "path": str(path), "error": str(error)},
        )
    else:
        log.info("emptied a directory that a dead worker left", extra={"action": "left_cleaned", "path": str(path)})


def is_ours(folder: Path) -> bool:
    """Whether a folder is one of this user's that nobody else can write to: what lies in there is believed."""
    try:
        seen = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.geteuid() and not seen.st_mode & 0o022


def lives(folder: Path) -> bool:
    """Whether the worker that made a folder lives, or somebody cleans up after it."""
    lock = grab(folder)
    if lock is None:
        return (folder / LOCK).exists()
    os.close(lock)
    return False


def grab(folder: Path) -> int | None:
    """Take the lock of a worker that is no more; None while it lives, or where there is none. A descriptor to close."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None  # somebody else's, or made this moment
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


@contextmanager
def _turn(home: Path, *, wait: bool = False) -> Iterator[bool]:
    """One worker at a time; False while another has its turn. Whoever cannot have the file goes without."""
    flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        lock = os.open(home / f"kelpie-claims-{os.geteuid()}", flags, 0o600)
    except OSError:
        yield True
        return
    try:
        yield _locked(lock, wait=wait)
    finally:
        os.close(lock)


def _locked(lock: int, *, wait: bool) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _claims_in(folder: Path) -> Iterator[dict[str, list[Path]]]:
    for file in (folder / _CLAIMS).glob("*.json"):
        try:
            content = json.loads(file.read_text())
            yield {name: [Path(path) for path in content.get(name, ())] for name in ("uses", "beside")}
        except (OSError, ValueError, TypeError, AttributeError):
            continue  # closed this moment
