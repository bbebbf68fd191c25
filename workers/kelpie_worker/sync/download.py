"""Fetching objects whole: into a temporary name, verified, then renamed.

Large objects come in ranges, in parallel; a range that is cut goes on where it broke. Small ones come in batches (see
``batches``). What arrives is digested and written by the transfer thread that it arrives in. Memory: at most `STREAMS`
ranges are under way, each with its thread's buffer of 1 MiB.

Limits: an ETag that is an MD5 is compared; of others the length and the identity over all ranges are what is verified.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import itertools
import logging
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from kelpie_celery.errors import StorageSetupError, StorageUnavailable
from kelpie_worker.sync.batches import Batching, Direct, Done, NotPlain, divided, in_batches
from kelpie_worker.sync.errors import DiskFull, disk_errors
from kelpie_worker.sync.landing import Landing, Writer, into_place, land, remove
from kelpie_worker.sync.object_store import ObjectChanged, ObjectStore, StoredObject
from kelpie_worker.sync.paths import TEMPORARY
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.threads import in_thread, run_bounded

log = logging.getLogger(__name__)

STREAMS = 16
RANGE_BYTES = 64 * 1024 * 1024
"""Larger objects come in several ranges; few large ones are faster than many small ones."""
_RANGES_OF_ONE = 4
_UNPACK_BYTES = 4 * 1024 * 1024
_CHANGES = 3
_CORRUPT = 5
_ODD = 3
"""So many answers that do not fit a batch, and there are none any more."""
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
        on_bytes: Called, in a transfer thread, with the number of bytes as they arrive.
    """

    def __init__(self, store: ObjectStore, patience: Patience, on_bytes: Callable[[int], None]) -> None:
        self._store, self._patience, self._on_bytes = store, patience, on_bytes
        self._free = asyncio.Semaphore(STREAMS)
        self._together, self._odd = True, 0
        self._temporary, self._names = f"{TEMPORARY}{secrets.token_hex(8)}-", itertools.count()

    async def download_all(
        self, wanted: Iterable[Wanted], *, check: Callable[[Wanted], None],
        done: Callable[[Wanted, StoredObject], Awaitable[None]],
    ) -> None:  # fmt: skip
        """Fetch many objects, `STREAMS` at a time.

        Args:
            wanted: What is to be fetched.
            check: Called before each of them, in any thread; objects by raising.
            done: Told of each of them, and which object it was in the end.

        Raises:
            Exception: As `download`, or what ``check`` or ``done`` raised.
        """

        async def together(batch: Sequence[Wanted], moved: Done) -> None:
            if self._together:
                await self._fetch_together(batch, check, moved)
            for one in batch[: moved.count]:
                await done(one, one.object)

        async def alone(one: Wanted) -> None:
            check(one)
            await done(one, await self.download(one))

        batching = together if isinstance(self._store, Batching) else None
        await in_batches(divided(wanted, _size_of_small, STREAMS), batching, alone, STREAMS)

    async def _fetch_together(self, batch: Sequence[Wanted], check: Callable[[Wanted], None], done: Done) -> None:
        """Fetch objects until one fails."""

        def work(direct: Direct) -> None:
            with done:
                try:
                    self._fetch_each(direct, batch, check, done)
                except NotPlain:
                    self._odd += 1
                    self._together = self._together and self._odd < _ODD
                    raise

        self._patience.begin()
        async with self._free:
            await cast("Batching", self._store).batch({one.bucket for one in batch}, work, None)

    def _fetch_each(self, direct: Direct, batch: Sequence[Wanted], check: Callable[[Wanted], None], done: Done) -> None:
        for bucket, group in itertools.groupby(batch, key=lambda one: one.bucket):
            wanted = list(group)
            objects = [one.object for one in wanted]
            with contextlib.closing(direct.fetch_each(bucket, objects, self._arrived)) as bodies:
                for one, body in zip(wanted, bodies, strict=True):
                    check(one)
                    self._land(one, body)
                    done.count += 1

    def _land(self, wanted: Wanted, body: memoryview) -> None:
        expected = _expected(wanted.object)
        if expected and hashlib.md5(body, usedforsecurity=False).hexdigest() != expected:
            raise StorageUnavailable("it is not what its ETag says", bucket=wanted.bucket, key=wanted.object.key)
        land(body, *self._paths(wanted))

    async def download(self, wanted: Wanted) -> StoredObject:
        """Fetch one object.

        Returns:
            The object that was fetched; another one than wanted if it was replaced meanwhile.

        Raises:
            StorageSetupError: It does not exist any more, may not be read, or is not gzipped although named so.
            StorageUnavailable: Patience ran out.
            DiskFull: No room.
        """
        landing = self._landing(wanted)
        temporary = landing.temporary
        try:
            found = await self._fetch_current(wanted, landing)
            if not landing.placed:
                if wanted.unpack:
                    temporary = await self._unpack(wanted, temporary)
                await in_thread(partial(into_place, temporary, landing.path))
                landing.placed = True
        finally:
            landing.close()
            if not landing.placed:
                remove(temporary)
        return found

    def _landing(self, wanted: Wanted) -> Landing:
        return Landing(*self._paths(wanted), place=not wanted.unpack)

    def _paths(self, wanted: Wanted) -> tuple[str, str]:
        """Where it goes, and where it is written first."""
        path = os.fspath(wanted.path)
        return path, f"{path[: path.rindex('/') + 1]}{self._temporary}{next(self._names)}"

    async def _fetch_current(self, wanted: Wanted, landing: Landing) -> StoredObject:
        found = wanted.object
        for _ in range(_CHANGES):
            try:
                await self._fetch_verified(wanted.bucket, found, landing)
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

    async def _fetch_verified(self, bucket: str, found: StoredObject, landing: Landing) -> None:
        expected = _expected(found)
        seen: set[str] = set()
        while len(seen) < _CORRUPT:
            landing.begin(found.size_bytes, expected, in_order=found.size_bytes <= RANGE_BYTES)
            await self._fetch_whole(bucket, found, landing)
            if not expected or landing.placed:
                return
            digest = landing.digest or await _md5(landing.temporary)
            if digest == expected:
                return
            if digest in seen:
                # Twice the same bytes: then it is the ETag that is no MD5, as with some kinds of encryption.
                self._together = False  # nor will others be: in a batch they would only be fetched once more
                log.info("an ETag is no MD5", extra={"action": "etag_no_md5", "bucket": bucket, "key": found.key})
                return
            seen.add(digest)
        raise StorageUnavailable(
            f"bucket {bucket!r}, object {found.key!r}: what arrives is damaged, {_CORRUPT} times differently",
            bucket=bucket, key=found.key,
        )  # fmt: skip

    async def _fetch_whole(self, bucket: str, found: StoredObject, landing: Landing) -> None:
        writers = (
            Writer(landing, start, min(found.size_bytes, start + RANGE_BYTES), self._arrived)
            for start in range(0, max(1, found.size_bytes), RANGE_BYTES)
        )
        if found.size_bytes <= RANGE_BYTES:
            await self._fetch_range(bucket, found, next(writers))
            if not found.size_bytes:
                await in_thread(landing.arrived_whole)
        else:
            await run_bounded(writers, partial(self._fetch_range, bucket, found), _RANGES_OF_ONE)
        landing.close()

    async def _fetch_range(self, bucket: str, found: StoredObject, writer: Writer) -> None:
        async def rest() -> None:
            # What arrived before a cut is kept, and the next try asks for the rest only.
            if writer.at == writer.end and found.size_bytes:
                return
            try:
                await self._store.fetch(
                    bucket, found.key, writer.take, etag=found.etag, start_byte=writer.at,
                    length_bytes=writer.end - writer.at,
                )  # fmt: skip
            except ObjectChanged as changed:
                raise _Replaced(changed) from None

        try:
            async with self._free:
                await self._patience.persist(rest)
        except _Replaced as replaced:
            raise replaced.error from None

    def _arrived(self, count: int) -> None:
        self._patience.sign_of_life()
        self._on_bytes(count)

    async def _unpack(self, wanted: Wanted, packed: str) -> str:
        target = packed + "-unpacked"
        try:
            with disk_errors(target), gzip.open(packed, "rb") as source, open(target, "wb") as sink:  # noqa: ASYNC230, PTH123
                while data := await in_thread(partial(source.read, _UNPACK_BYTES)):
                    await in_thread(partial(sink.write, data))
        except (gzip.BadGzipFile, EOFError, zlib.error):
            remove(target)
            raise StorageSetupError(
                f"bucket {wanted.bucket!r}, object {wanted.object.key!r}: it is not gzipped, or cut off, although the"
                " job has `compression` and the name ends in .gz",
                bucket=wanted.bucket, key=wanted.object.key,
            ) from None  # fmt: skip
        except BaseException:
            remove(target)
            raise
        finally:
            os.unlink(packed)  # noqa: PTH108 -- one quick system call
        return target


def _expected(found: StoredObject) -> str:
    """The MD5 that an object should have, where its ETag looks like one."""
    return found.etag if _MD5.fullmatch(found.etag) else ""


def _size_of_small(wanted: Wanted) -> int | None:
    """The size of an object that may come in a batch: neither packed, nor empty, nor listed without an ETag."""
    return wanted.object.size_bytes or None if not wanted.unpack and wanted.object.etag else None


class _Replaced(Exception):
    """The object was replaced: not something that patience mends."""

    def __init__(self, error: ObjectChanged) -> None:
        super().__init__(str(error))
        self.error = error


async def _md5(path: str) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as source:  # noqa: ASYNC230, PTH123 -- one quick system call

        def piece() -> int:
            data = source.read(_UNPACK_BYTES)
            digest.update(data)
            return len(data)

        while await in_thread(piece):
            pass
    return digest.hexdigest()


def check_room(needed_bytes: Mapping[Path, int]) -> None:
    """Refuse early what cannot fit: all that is to come to one disk counts together.

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
            text = f"{names}: {needed} bytes are to be brought down, {free} are free; use machines with a larger disk"
            raise DiskFull(text, directories[0], free, needed)
