"""The machine's cache of input objects: what a job brought down is there for the next attempt, and for the next job.

A file that a job may write to shares nothing with its entry but, at best, blocks that are copied on writing; only files
of ``read_only`` blocks are hard links. Should a job write to one all the same, the entry is dropped when it is wanted
next (see ``cache_folder``).

The least recently used entries give way to new ones, and to whatever else needs the disk: the larger of 1 GiB and 10 %
of it stays free. That somebody holds a hard link to an entry's file keeps nobody from evicting it.

Limits: blocking calls, for a thread. A cache that fails is one that finds nothing: it warns once, and fails no job.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

from kelpie_worker.sync.cache_folder import OVERHEAD_BYTES, CacheFolder, Stamp, is_as_put_in, is_linkable, seal
from kelpie_worker.sync.cloning import Cancelled, CopyCancelled, clone, copy, link, never
from kelpie_worker.sync.paths import TEMPORARY

log = logging.getLogger(__name__)

READ_ONLY_MODE = 0o444
"""Of the files of ``read_only`` blocks, and of all entries."""


@dataclass(frozen=True)
class CacheAddress:
    """Which content: an object as the storage had it, and whether it was unpacked since.

    Attributes:
        endpoint: Of the storage; empty for AWS.
        bucket: The bucket.
        key: The object's key.
        etag: Its ETag; what has none is not kept.
        size_bytes: Its size on the storage.
        unpacked: Whether the file is what ``gunzip`` made of it.
    """

    endpoint: str
    bucket: str
    key: str
    etag: str
    size_bytes: int
    unpacked: bool = False

    @property
    def digest(self) -> str:
        """A name for it (hex)."""
        return hashlib.sha256(json.dumps(astuple(self)).encode()).hexdigest()


class InputCache:
    """See the module.

    Args:
        home: A directory of the cache's own, which exists.
        max_bytes: How much it may hold.
    """

    def __init__(self, home: Path, max_bytes: int) -> None:
        self.home, self._max_bytes = home, max_bytes
        self._folder = CacheFolder(home, max_bytes)
        self._no_clones: set[tuple[int, int]] = set()
        self._complained = False

    def place(
        self, address: CacheAddress, target: Path, *, read_only: bool = False, cancelled: Cancelled = never
    ) -> bool:
        """Put content where a job wants it; whether it was there.

        Args:
            address: Which.
            target: The file to make, or to replace.
            read_only: The job does not write to it: it may be a hard link, and gets `READ_ONLY_MODE`.
            cancelled: Asked again and again while a large file is copied.
        """
        digest = address.digest
        try:
            file = self._folder.intact(digest, cancelled)
            if file is None or not self._bring(digest, file, target, cancelled, read_only=read_only):
                return False
            self._folder.touch(digest)
        except FileNotFoundError:
            return False  # evicted this moment
        except (OSError, CopyCancelled) as error:
            self._complain(error)
            return False
        return True

    def _bring(self, digest: str, file: Path, target: Path, cancelled: Cancelled, *, read_only: bool) -> bool:
        temporary = target.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
        try:
            with _opened(file) as fd:
                shared = self._share(fd, file, temporary, link_it=False)
                if read_only and not shared:
                    if not is_linkable(file):
                        seal(file, cancelled, linked=True)
                    shared = link(file, temporary)
                if not shared:
                    if not self._has_room(os.fstat(fd), target.parent, cancelled):
                        return False
                    copy(fd, temporary, cancelled)
                    # Looked at afterwards: what was written meanwhile may be in the copy.
                    if self._folder.intact(digest, cancelled) is None:
                        return False
                elif not is_as_put_in(file, os.fstat(fd)):
                    self._folder.drop(digest)
                    return False
            if read_only:
                temporary.chmod(READ_ONLY_MODE)
            if target.is_dir() and not target.is_symlink():
                target.rmdir()  # what an empty directory marker left
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _has_room(self, file: os.stat_result, folder: Path, cancelled: Cancelled) -> bool:
        """Whether a copy fits; older entries give way to it. Where it does not, it would not help to fill the disk."""
        if shutil.disk_usage(folder).free >= file.st_size:
            return True
        if folder.stat().st_dev == file.st_dev:
            self._folder.make_room(file.st_size, cancelled)
        return shutil.disk_usage(folder).free >= file.st_size

    def add(self, address: CacheAddress, file: Path, *, read_only: bool = False, cancelled: Cancelled = never) -> bool:
        """Keep content that was brought down and verified; whether it is kept.

        Args:
            address: Which.
            file: Where it is; nobody writes to it meanwhile.
            read_only: Nobody will write to it later: then the entry may be a hard link to it, and its mode changes.
            cancelled: Asked again and again while a large file is copied.
        """
        digest = address.digest
        try:
            size = file.lstat().st_size
            if not address.etag or size + OVERHEAD_BYTES > self._max_bytes:
                return False
            if self._folder.folder(digest).exists():
                return True
            with self._folder.reserved(size, cancelled) as place:
                if place is None or not self._fill(place, file, size, cancelled, read_only=read_only):
                    return False
                self._folder.publish(place, digest)
        except (OSError, CopyCancelled) as error:
            self._complain(error)
            return False
        return True

    def _fill(self, place: Path, file: Path, size: int, cancelled: Cancelled, *, read_only: bool) -> bool:
        """Make the one file of an entry, under the name that it then has to keep to."""
        data = place / "data"
        with _opened(file) as fd:
            shared = self._share(fd, file, data, link_it=read_only)
            if not self._folder.make_room(0 if shared else size, cancelled):
                return False
            if not shared:
                copy(fd, data, cancelled)
        data.chmod(READ_ONLY_MODE)
        stamp = Stamp.of(data.lstat())
        kept = place / stamp.name
        data.rename(kept)
        seal(kept, cancelled, linked=kept.lstat().st_nlink > 1)
        return stamp.size_bytes == size

    def _share(self, fd: int, file: Path, target: Path, *, link_it: bool) -> bool:
        """Make ``target`` a reflink, else a hard link if it may be one; whether it is either."""
        devices = os.fstat(fd).st_dev, target.parent.stat().st_dev
        if devices not in self._no_clones:
            if clone(fd, target):
                return True
            # To try it costs as much as to copy a small file.
            self._no_clones.add(devices)
        return link_it and link(file, target)

    def make_room(self, needed_bytes: int, cancelled: Cancelled = never) -> None:
        """Let somebody else have the disk: evict until so many bytes can be written to it, as far as that helps."""
        try:
            self._folder.make_room(needed_bytes, cancelled)
        except (OSError, CopyCancelled) as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        if not self._complained and not isinstance(error, CopyCancelled):
            self._complained = True
            log.warning("the cache of inputs does not work", extra={"action": "cache_failed", "error": str(error)})


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[int]:
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(file))
        yield fd
    finally:
        os.close(fd)
