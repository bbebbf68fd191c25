"""Fetching objects whole: into a temporary name, verified, then renamed.

Large objects come in ranges, in parallel; a range that is cut goes on where it broke. Memory: at most `STREAMS` ranges
are under way, each holding up to 1 MiB until it is written.

Limits: an ETag that is an MD5 is compared; of others the length and the identity over all ranges are what is verified.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import logging
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kelpie_celery.errors import StorageSetupError, StorageUnavailable
from kelpie_worker.sync.errors import DiskFull, disk_errors
from kelpie_worker.sync.object_store import ObjectChanged, ObjectStore, StoredObject
from kelpie_worker.sync.paths import TEMPORARY
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.threads import in_thread, run_bounded

log = logging.getLogger(__name__)

STREAMS = 16
RANGE_BYTES = 64 * 1024 * 1024
_RANGES_OF_ONE = 4
_WRITE_BYTES = 1024 * 1024
_UNPACK_BYTES = 4 * 1024 * 1024
_CHANGES = 3
_CORRUPT = 5
_MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Wanted:
    """One object and the file that it becomes; ``unpack`` says that it is gzipped."""

    bucket: str
    object: StoredObject
    path: Path
    unpack: bool = False


class Downloader:
    """Fetches objects.

    Args:
        store: The storage.
        patience: With a storage that is away.
        on_bytes: Called with the number of bytes as they arrive.
    """

    def __init__(self, store: ObjectStore, patience: Patience, on_bytes: Callable[[int], None]) -> None:
        self._store, self._patience, self._on_bytes = store, patience, on_bytes
        self._free = asyncio.Semaphore(STREAMS)

    async def download(self, wanted: Wanted) -> StoredObject:
        """Fetch one object.

        Returns:
            The object that was fetched; another one than wanted if it was replaced meanwhile.

        Raises:
            StorageSetupError: It does not exist any more, may not be read, or is not gzipped although named so.
            StorageUnavailable: Patience ran out.
            DiskFull: No room.
        """
        found = wanted.object
        temporary = wanted.path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
        try:
            found = await self._fetch_current(wanted, temporary)
            if wanted.unpack:
                temporary = await self._unpack(wanted, temporary)
            await in_thread(partial(_into_place, temporary, wanted.path))
        finally:
            temporary.unlink(missing_ok=True)
        return found

    async def _fetch_current(self, wanted: Wanted, temporary: Path) -> StoredObject:
        found = wanted.object
        for _ in range(_CHANGES):
            try:
                await self._fetch_verified(wanted.bucket, found, temporary)
            except ObjectChanged:
                now = await self._patience.persist(partial(self._store.head, wanted.bucket, found.key))
                if now is None:
                    break
                found = now
            else:
                return found
        raise StorageSetupError(
            f"bucket {wanted.bucket!r}, object {found.key!r}: download failed: it was deleted, or is replaced again and"
            " again, while it is being fetched",
            bucket=wanted.bucket, key=found.key,
        )  # fmt: skip

    async def _fetch_verified(self, bucket: str, found: StoredObject, temporary: Path) -> None:
        seen: set[str] = set()
        while len(seen) < _CORRUPT:
            await self._fetch_whole(bucket, found, temporary)
            if not _MD5.fullmatch(found.etag):
                return
            digest = await _md5(temporary)
            if digest == found.etag:
                return
            if digest in seen:
                # Twice the same bytes: then it is the ETag that is no MD5, as with some kinds of encryption.
                log.info("an ETag is no MD5", extra={"action": "etag_no_md5", "bucket": bucket, "key": found.key})
                return
            seen.add(digest)
        raise StorageUnavailable(
            f"bucket {bucket!r}, object {found.key!r}: what arrives is damaged, {_CORRUPT} times differently",
            bucket=bucket, key=found.key,
        )  # fmt: skip

    async def _fetch_whole(self, bucket: str, found: StoredObject, temporary: Path) -> None:
        with disk_errors(temporary):
            fd = os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            starts = range(0, max(1, found.size_bytes), RANGE_BYTES)
            await run_bounded(starts, partial(self._fetch_range, bucket, found, fd, temporary), _RANGES_OF_ONE)
        finally:
            os.close(fd)

    async def _fetch_range(self, bucket: str, found: StoredObject, fd: int, path: Path, start_byte: int) -> None:
        end = min(found.size_bytes, start_byte + RANGE_BYTES)
        writer = _Writer(fd, path, start_byte, self._arrived)

        async def rest() -> None:
            if writer.at == end > start_byte:
                return
            try:
                await self._store.fetch(
                    bucket, found.key, writer.take, etag=found.etag, start_byte=writer.at, length_bytes=end - writer.at
                )
            except ObjectChanged as changed:
                raise _Replaced(changed) from None
            finally:
                # What arrived before a cut is kept, and the next try asks for the rest only.
                await writer.flush()

        try:
            async with self._free:
                await self._patience.persist(rest)
        except _Replaced as replaced:
            raise replaced.error from None

    def _arrived(self, count: int) -> None:
        self._patience.sign_of_life()
        self._on_bytes(count)

    async def _unpack(self, wanted: Wanted, packed: Path) -> Path:
        target = packed.with_name(packed.name + "-unpacked")
        try:
            with disk_errors(target), gzip.open(packed, "rb") as source, target.open("wb") as sink:
                while data := await in_thread(partial(source.read, _UNPACK_BYTES)):
                    await in_thread(partial(sink.write, data))
        except (gzip.BadGzipFile, EOFError, zlib.error):
            target.unlink(missing_ok=True)
            raise StorageSetupError(
                f"bucket {wanted.bucket!r}, object {wanted.object.key!r}: it is not gzipped, or cut off, although the"
                " job has `compression` and the name ends in .gz",
                bucket=wanted.bucket, key=wanted.object.key,
            ) from None  # fmt: skip
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        finally:
            os.unlink(packed)  # noqa: PTH108 -- one quick system call
        return target


class _Replaced(Exception):
    """The object was replaced: not something that patience mends."""

    def __init__(self, error: ObjectChanged) -> None:
        super().__init__(str(error))
        self.error = error


class _Writer:
    """Gathers what arrives into pieces worth a thread's while, and writes them to their place."""

    def __init__(self, fd: int, path: Path, at: int, on_bytes: Callable[[int], None]) -> None:
        self.at = at
        self._fd, self._path, self._on_bytes = fd, path, on_bytes
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    async def take(self, data: bytes) -> None:
        self._pending.append(data)
        self._pending_bytes += len(data)
        self._on_bytes(len(data))
        if self._pending_bytes >= _WRITE_BYTES:
            await self.flush()

    async def flush(self) -> None:
        if not self._pending:
            return
        data = b"".join(self._pending)
        self._pending, self._pending_bytes = [], 0
        with disk_errors(self._path):
            await in_thread(partial(_write_all, self._fd, data, self.at))
        self.at += len(data)


def _write_all(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        view, at = view[written:], at + written


def _into_place(temporary: Path, path: Path) -> None:
    with disk_errors(path):
        if path.is_dir() and not path.is_symlink():
            # The prefix was found to have no such conflict; this is what an empty directory marker left.
            path.rmdir()
        temporary.replace(path)


async def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as source:

        def piece() -> int:
            data = source.read(_UNPACK_BYTES)
            digest.update(data)
            return len(data)

        while await in_thread(piece):
            pass
    return digest.hexdigest()


def check_room(needed_bytes: dict[Path, int]) -> None:
    """Refuse early what cannot fit.

    Args:
        needed_bytes: By directory.

    Raises:
        DiskFull: Names the directories and both figures.
    """
    by_device: dict[int, list[Path]] = {}
    for directory in needed_bytes:
        by_device.setdefault(directory.stat().st_dev, []).append(directory)
    for directories in by_device.values():
        needed = sum(needed_bytes[directory] for directory in directories)
        free = shutil.disk_usage(directories[0]).free
        if needed > free:
            names = ", ".join(str(directory) for directory in directories)
            raise DiskFull(f"{names}: {needed} bytes are to be brought down, {free} are free; use a larger disk")
