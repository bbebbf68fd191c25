"""Brings objects down to a directory: each file appears whole and verified, or not at all.

A file that is there already with the same content (size, and digest or ETag) is not fetched again; one that holds
something else is left alone, and nothing is fetched, unless ``force`` is given. Files are put together in a folder of
our own inside of the directory, and then renamed.

Limits: where the storage gives neither a digest nor an ETag that is one, a file is verified by its length alone, and
counted. A kill leaves the folder ``.kelpie-tmp-fetch``, which the next call clears away.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from itertools import count
from pathlib import Path

from kelpie_celery.checkpoints.download import OnBytes
from kelpie_celery.checkpoints.names import check_parents, is_reserved, relative_path
from kelpie_celery.checkpoints.storage import Storage, open_storage
from kelpie_celery.clock import Clock, SystemClock
from kelpie_celery.errors import DirectoryError, StorageSetupError, StorageUnavailable
from kelpie_celery.settings import Settings
from kelpie_celery.staging import content, packing
from kelpie_celery.staging.carrier import Carrier
from kelpie_celery.staging.crowd import Crowd
from kelpie_celery.staging.place import checked, storage_settings
from kelpie_celery.staging.scratch import scratch_of
from kelpie_celery.staging.tree import named, shown
from kelpie_celery.staging.wanted import Wanted, check_clash, clash

_TRIES = 4
_FIRST_PAUSE_S = 0.5


@dataclass(frozen=True)
class Fetched:
    """What a directory was filled with.

    Attributes:
        directory: Which.
        files: How many files it was to hold.
        bytes: Of their objects.
        fetched: How many came.
        fetched_bytes: Of those.
        unchanged: How many were there already.
        by_length: How many were verified by their length alone.
    """

    directory: str
    files: int
    bytes: int
    fetched: int
    fetched_bytes: int
    unchanged: int
    by_length: int = 0


class _There(Enum):
    """What is in a file's place."""

    NOTHING = "nothing"
    SAME = "same"
    OTHER = "other"
    UNKNOWN = "unknown"  # a packed object must be fetched to tell


def download(
    bucket: str, prefix: str, directory: str | Path, *, force: bool = False, progress: OnBytes | None = None,
    settings: Settings | None = None, clock: Clock | None = None,
) -> Fetched:  # fmt: skip
    """Bring everything below a prefix down to a directory; what is there already is not fetched again.

    Args:
        bucket: Where from.
        prefix: Likewise, as in a job definition; a missing last ``/`` is added.
        directory: Made if it is missing. What it holds besides is left alone.
        force: Replace files that hold something else.
        progress: Told how many of how many bytes are done, what is there already included.
        settings: Name the storage; by default the environment does.
        clock: For pauses between tries.

    Raises:
        DirectoryError: A file holds something else, or cannot be written.
        StorageSetupError: There is nothing, a key cannot be a file, or the storage refuses.
        StorageUnavailable: It is away; what has come stays, and is not fetched again.
    """
    bucket, prefix = checked(bucket, prefix)
    storage = open_storage(storage_settings(settings))
    wanted = list(below(storage, bucket, prefix))
    if not wanted:
        text = f"there is no object below s3://{bucket}/{prefix}; check bucket and prefix"
        raise StorageSetupError(text, bucket=bucket, key=prefix)
    return fetch(storage, wanted, Path(directory), clock or SystemClock(), force=force, progress=progress)


def below(storage: Storage, bucket: str, prefix: str) -> Iterable[Wanted]:
    """The files below a prefix, without records of kelpie's and markers of folders.

    Raises:
        UnsafeKey: A key cannot be a file.
    """
    for found in storage.list(bucket, prefix):
        if is_reserved(found.key[len(prefix) :]):
            continue
        relative = relative_path(bucket, prefix, found.key)
        if relative and not relative.endswith("/"):
            yield Wanted(bucket, found.key, relative, found.size_bytes, found.etag)


def fetch(
    storage: Storage, wanted: Sequence[Wanted], directory: Path, clock: Clock, *, force: bool = False,
    progress: OnBytes | None = None,
) -> Fetched:  # fmt: skip
    """Fill a directory; see `download`."""
    check_clash(wanted)
    with content.writing(directory):
        missing = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    try:
        with scratch_of(directory) as scratch:
            return _Fetching(storage, wanted, directory, scratch, clock, progress).run(force=force)
    finally:
        with suppress(OSError):
            for folder in missing:  # the innermost first; nothing is left of a call that brought nothing
                folder.rmdir()  # unless there is something in it


class _Fetching:
    """One download."""

    def __init__(
        self, storage: Storage, wanted: Sequence[Wanted], directory: Path, scratch: Path, clock: Clock,
        progress: OnBytes | None,
    ) -> None:  # fmt: skip
        self._storage, self._wanted, self._progress, self._clock = storage, wanted, progress, clock
        self._directory, self._scratch, self._numbers = directory, scratch, count()
        self._crowd, self._lock = Crowd(), threading.Lock()
        self._placed: dict[tuple[int, int], Wanted] = {}
        self._carrier = Carrier(storage, self._crowd, self._add)
        self._total_bytes = sum(one.size_bytes for one in wanted)
        self._done_bytes = self._fetched = self._fetched_bytes = self._unchanged = self._by_length = 0

    def run(self, *, force: bool) -> Fetched:
        there: dict[Wanted, _There] = {}
        self._crowd.do(self._wanted, lambda one: there.__setitem__(one, self._look(one)))
        self._check_others([one for one, what in there.items() if what is _There.OTHER and not force])
        self._check_room([one for one, what in there.items() if what is not _There.SAME])
        with self._carrier:
            self._crowd.do(self._wanted, lambda one: self._one(one, there[one], force=force), self._carrier.cancel)
        return Fetched(
            str(self._directory), len(self._wanted), self._total_bytes, self._fetched, self._fetched_bytes,
            self._unchanged, self._by_length,
        )  # fmt: skip

    # -- what is there already -----------------------------------------------------------------------------------

    def _look(self, one: Wanted) -> _There:
        path = check_parents(self._directory, one.relative, bucket=one.bucket, key=one.key)
        with content.reading(path):
            if path.is_symlink():
                return _There.OTHER
            if not path.exists():
                self._check_folders(path, one)
                return _There.NOTHING
            if not path.is_file():
                raise DirectoryError(f"{shown(path)} is in the way of {one.url}, and is no file; move it away")
            size_bytes = path.stat().st_size
        if one.unpack:
            return _There.UNKNOWN
        if size_bytes != one.size_bytes:
            return _There.OTHER
        return _There.SAME if self._holds(path, one) else _There.OTHER

    @staticmethod
    def _check_folders(path: Path, one: Wanted) -> None:
        """Refuse where a file, or a link to nothing, is in the place of a folder."""
        for folder in path.parents:
            if folder.is_dir():
                return
            if folder.is_symlink() or folder.exists():
                raise DirectoryError(f"{shown(folder)} is in the way of {one.url}, and is no folder; move it away")

    def _holds(self, path: Path, one: Wanted) -> bool:
        """Whether a file of the right size is, for certain, what an object holds."""
        if one.sha256:
            return content.sha256_of(path, self._crowd.check) == one.sha256
        return content.has_etag(path, one.etag, one.size_bytes, self._crowd.check)

    def _check_others(self, others: Sequence[Wanted], so: str = "nothing was fetched") -> None:
        if others:
            names = named([one.relative for one in others])
            raise DirectoryError(
                f"{shown(self._directory)} holds files that are not what the storage has: {names}; {so}."
                " --force (force=True) replaces them, or name another directory"
            )

    def _check_room(self, missing: Sequence[Wanted]) -> None:
        needed = sum(one.size_bytes for one in missing)
        with content.writing(self._directory):
            free = shutil.disk_usage(self._directory).free
        if needed > free:
            raise DirectoryError(
                f"{shown(self._directory)} has room for {free} bytes, and {needed} are to come; name a directory on a"
                " larger disk"
            )

    # -- one object ----------------------------------------------------------------------------------------------

    def _one(self, one: Wanted, what: _There, *, force: bool) -> None:
        if what is _There.SAME:
            self._note_unchanged(one)
            return
        packed = self._scratch / str(next(self._numbers))
        self._fetch_verified(one, packed)
        came = packing.unpack(packed, one.url, one.bucket, one.key, self._crowd.check) if one.unpack else packed
        path = self._directory / one.relative
        if what is _There.UNKNOWN and packing.same_content(came, path):
            came.unlink()
            self._note_unchanged(one, came=True)
            return
        if what is _There.UNKNOWN and not force:
            self._check_others([one], "it is left alone")
        with content.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._place(one, came, path, may_be_there=force or what is not _There.NOTHING)
        with self._lock:
            self._fetched, self._fetched_bytes = self._fetched + 1, self._fetched_bytes + one.size_bytes

    def _place(self, one: Wanted, came: Path, path: Path, *, may_be_there: bool) -> None:
        with self._lock:
            if os.path.lexists(path):
                status = path.lstat()
                other = self._placed.get((status.st_dev, status.st_ino))
                if other is not None:  # no difference between A and a on this disk, or a link from folder to folder
                    raise clash(other, one, f"in {shown(self._directory)} both are one file")
                if not may_be_there:
                    raise DirectoryError(f"{shown(path)} came into being meanwhile; run it again")
            came.replace(path)
            status = path.lstat()
            self._placed[status.st_dev, status.st_ino] = one

    def _note_unchanged(self, one: Wanted, *, came: bool = False) -> None:
        with self._lock:
            self._unchanged += 1
        if not came:
            self._add(one.size_bytes)

    def _fetch_verified(self, one: Wanted, path: Path) -> None:
        pause_s, seen = _FIRST_PAUSE_S, set[str]()
        for last in (*[False] * (_TRIES - 1), True):
            try:
                self._carrier.fetch(one.bucket, one.key, one.size_bytes, path)
            except StorageUnavailable:
                if last:
                    raise
                self._add(-path.stat().st_size if path.exists() else 0)
            else:
                if self._is_right(one, path, seen):
                    return
            self._crowd.check()
            self._clock.sleep(pause_s)
            pause_s *= 2
        if one.sha256:
            raise StorageSetupError(
                f"{one.url} is not what the job stored (its SHA-256 is another one): it was replaced or damaged since;"
                " --as-is (as_is=True) fetches what lies there now",
                bucket=one.bucket, key=one.key,
            )  # fmt: skip
        text = f"{one.url}: reading failed: what arrives is damaged, or replaced again and again; try again later"
        raise StorageUnavailable(text, bucket=one.bucket, key=one.key)

    def _is_right(self, one: Wanted, path: Path, seen: set[str]) -> bool:
        with content.reading(path):
            size_bytes = path.stat().st_size
        if size_bytes == one.size_bytes:
            if self._holds(path, one):
                return True
            if not one.sha256 and self._is_as_good(one, path, seen):
                with self._lock:
                    self._by_length += 1
                return True
        self._add(-size_bytes)
        return False

    def _is_as_good(self, one: Wanted, path: Path, seen: set[str]) -> bool:
        """Whether the ETag cannot tell: it is no digest, or twice the same bytes came with another one."""
        if not content.is_telling(one.etag, one.size_bytes):
            return True
        digest = content.sha256_of(path, self._crowd.check)
        known = digest in seen
        seen.add(digest)
        return known

    def _add(self, count_bytes: int) -> None:
        with self._lock:
            self._done_bytes += count_bytes
            if self._progress is not None:
                self._progress(min(self._done_bytes, self._total_bytes), self._total_bytes)
