"""Brings a checkpoint down to a directory of a person's: whole and verified, or not at all.

Everything is put together in a folder inside of the directory; only when all is there and verified do its entries move
to their places. What goes wrong before leaves the directory as it was.

Memory: a few tens of MB (see `kelpie_celery.checkpoints.pieces`), and the manifest. Limits: times and permission bits
are restored, owners are not. A kill leaves the folder, whose name begins with ``.kelpie-tmp-``.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from kelpie_celery.checkpoints.content import Damaged
from kelpie_celery.checkpoints.manifest import Extent
from kelpie_celery.checkpoints.names import TEMPORARY
from kelpie_celery.checkpoints.pieces import Run, Scatter, runs
from kelpie_celery.checkpoints.storage import REQUESTS, Storage
from kelpie_celery.checkpoints.unpacking import Contents, Source
from kelpie_celery.clock import Clock
from kelpie_celery.errors import DirectoryError, KelpieError, StorageSetupError, StorageUnavailable

OnBytes = Callable[[int, int], None]
"""Told how many of how many bytes have come; from any thread, one at a time."""

_TRIES = 4
_FIRST_PAUSE_S = 0.5
_PERMISSIONS = 0o777


@dataclass(frozen=True)
class Part:
    """One line of what was brought down: prefix, id of the commit, and the folder (empty: the directory itself)."""

    prefix: str
    commit: str
    folder: str


@dataclass(frozen=True)
class Downloaded:
    """What was brought down.

    Attributes:
        files: How many.
        bytes: Of all of them.
        refused_links: Links that led out of the directory, and were left out.
        parts: Where it came from, and went to.
        without: Prefixes of the job that do not keep the checkpoint.
    """

    files: int
    bytes: int
    refused_links: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    without: tuple[str, ...] = ()

    def of(self, sources: Iterable[Source], without: Iterable[str]) -> Downloaded:
        """The same, with where it came from."""
        parts = (Part(one.address.url, one.manifest.header.id, one.folder) for one in sources)
        return replace(self, parts=tuple(parts), without=tuple(without))


class _Stopped(KelpieError):
    """Another thread failed; this one need not go on."""


def check_directory(directory: Path) -> None:
    """Refuse a directory that holds something.

    Raises:
        DirectoryError: It does, or is none.
    """
    with _disk_errors(directory):
        if directory.is_symlink() or directory.exists():
            if not directory.is_dir():
                raise DirectoryError(f"{directory} is not a directory; name a new or an empty one")
            if any(directory.iterdir()):
                raise DirectoryError(f"{directory} is not empty; name a new or an empty directory")


def download(
    storage: Storage, contents: Contents, directory: Path, clock: Clock, progress: OnBytes | None = None
) -> Downloaded:
    """Fill a new or empty directory.

    Raises:
        DirectoryError: It cannot be filled.
        StorageSetupError: Content is gone or damaged, or the storage refuses.
        StorageUnavailable: The storage stayed away.
    """
    check_directory(directory)
    made = _make(directory)
    scratch = directory / f"{TEMPORARY}{secrets.token_hex(4)}"
    try:
        _check_room(directory, contents)
        _create(scratch, contents)
        _fetch(_Fetching(storage, clock, progress), scratch, contents)
        _finish(scratch, contents)
        refused = _link(scratch, contents)
        _move(scratch, directory)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        for folder in reversed(made):
            if not any(folder.iterdir()):
                folder.rmdir()
        raise
    return Downloaded(len(contents.files), contents.total_bytes, (*contents.refused, *refused))


def _make(directory: Path) -> list[Path]:
    """Make a directory and its parents; those that were missing, the outermost first."""
    missing = [folder for folder in (directory, *directory.parents) if not folder.exists()][::-1]
    with _disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    return missing


def _check_room(directory: Path, contents: Contents) -> None:
    with _disk_errors(directory):
        free = shutil.disk_usage(directory).free
    if contents.total_bytes > free:
        raise DirectoryError(
            f"{directory} has room for {free} bytes, and the checkpoint has {contents.total_bytes}; name a directory on"
            " a larger disk"
        )


def _create(scratch: Path, contents: Contents) -> None:
    """Make the folders, and the files in their sizes: they are filled in any order."""
    names = {*contents.folders, *(name.rpartition("/")[0] for name in (*contents.files, *contents.links))}
    with _disk_errors(scratch):
        scratch.mkdir(mode=0o700)
    for name in sorted(names):
        with _disk_errors(scratch / name):
            (scratch / name).mkdir(parents=True, exist_ok=True)
    for name, (_, entry) in contents.files.items():
        with _disk_errors(scratch / name):
            fd = os.open(scratch / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(fd, entry.size)
            finally:
                os.close(fd)


@dataclass
class _Fetching:
    storage: Storage
    clock: Clock
    progress: OnBytes | None

    def __post_init__(self) -> None:
        self.stop = threading.Event()
        self.total_bytes, self._done_bytes, self._lock = 0, 0, threading.Lock()

    def add(self, count_bytes: int) -> None:
        """So much has come."""
        with self._lock:
            self._done_bytes += count_bytes
            if self.progress is not None:
                self.progress(self._done_bytes, self.total_bytes)

    def take(self, sink: Scatter, data: memoryview) -> None:
        """Hand on what came, unless nobody wants it any more."""
        if self.stop.is_set():
            raise _Stopped
        sink.take(data)


def _fetch(fetching: _Fetching, scratch: Path, contents: Contents) -> None:
    work = [(bucket, run) for bucket, files in _by_bucket(scratch, contents).items() for run in runs(files)]
    fetching.total_bytes = sum(run.length_bytes for _, run in work)
    pool = ThreadPoolExecutor(REQUESTS, thread_name_prefix="kelpie-get")
    try:
        futures = [pool.submit(_fetch_run, fetching, bucket, run) for bucket, run in work]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        failures = [error for error in (future.exception() for future in done) if error]
        if failures:
            raise next((error for error in failures if not isinstance(error, _Stopped)), failures[0])
    finally:
        # Also after Ctrl-C: what is under way ends with the next bytes.
        fetching.stop.set()
        pool.shutdown(cancel_futures=True)


def _by_bucket(scratch: Path, contents: Contents) -> dict[str, list[tuple[Path, Sequence[Extent]]]]:
    files: dict[str, list[tuple[Path, Sequence[Extent]]]] = {}
    for name, (bucket, entry) in contents.files.items():
        files.setdefault(bucket, []).append((scratch / name, entry.extents))
    return files


def _fetch_run(fetching: _Fetching, bucket: str, run: Run) -> None:
    pause_s = _FIRST_PAUSE_S
    for last in (*[False] * (_TRIES - 1), True):
        if fetching.stop.is_set():
            raise _Stopped
        try:
            _once(fetching, bucket, run)
        except Damaged as error:
            failure: KelpieError = StorageSetupError(
                f"s3://{bucket}/{run.segment}: content of the checkpoint {error}; choose another checkpoint",
                bucket=bucket, key=run.segment,
            )  # fmt: skip
        except StorageUnavailable as error:
            failure = error
        else:
            fetching.add(run.length_bytes)
            return
        if last:
            raise failure
        fetching.clock.sleep(pause_s)
        pause_s *= 2


def _once(fetching: _Fetching, bucket: str, run: Run) -> None:
    sink = Scatter(run, _write)
    take = partial(fetching.take, sink)
    fetching.storage.fetch(bucket, run.segment, run.start_byte, run.length_bytes, take)
    if not sink.is_complete:
        raise Damaged("is shorter than its manifest says")


def _write(path: Path, at: int, raw: bytes | memoryview) -> None:
    with _disk_errors(path):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            done = 0
            while done < len(raw):
                done += os.pwrite(fd, memoryview(raw)[done:], at + done)
        finally:
            os.close(fd)


def _finish(scratch: Path, contents: Contents) -> None:
    for name, (_, entry) in contents.files.items():
        with _disk_errors(scratch / name):
            # Not more than permissions: no program of a stranger's may run as somebody else.
            (scratch / name).chmod(entry.mode & _PERMISSIONS)
            os.utime(scratch / name, ns=(entry.mtime_ns, entry.mtime_ns))


def _link(scratch: Path, contents: Contents) -> list[str]:
    """Make the links; those that lead out after all, by way of other links, are removed again and told."""
    for name, target in contents.links.items():
        with _disk_errors(scratch / name):
            (scratch / name).symlink_to(target)
    refused: list[str] = []
    root = scratch.resolve()
    left = dict(contents.links)
    # Where a link is removed, others that went by way of it lead elsewhere.
    while leading_out := [name for name in left if not Path(os.path.realpath(scratch / name)).is_relative_to(root)]:
        for name in leading_out:
            (scratch / name).unlink()
            del left[name]
        refused += leading_out
    return refused


def _move(scratch: Path, directory: Path) -> None:
    for entry in sorted(scratch.iterdir()):
        target = directory / entry.name
        with _disk_errors(target):
            if target.is_symlink() or target.exists():
                raise DirectoryError(f"{target} came into being meanwhile; name a directory that nobody else uses")
            entry.rename(target)
    with _disk_errors(scratch):
        scratch.rmdir()


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, OverflowError, ValueError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise DirectoryError(f"cannot write {path}: {why}; check the disk's room and the folder's owner") from error
