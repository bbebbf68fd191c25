"""Putting a plain key together on the storage, from the segments of a commit, instead of sending its bytes once more.

How is in ``assembly_plan``. Segments are immutable, so what is copied is what the commit holds, whatever has become of
the file since. The object under a plain key is ours by agreement only: where it is copied from, it is looked at again
before the upload is completed. What has to be sent is proven to be what the commit holds.

Limits: a storage that does not copy, or whose copies fail, is sent everything by the caller.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from blake3 import blake3
from zlib_ng.zlib_ng import crc32

from kelpie_celery.errors import StorageSetupError, StorageUnavailable
from kelpie_worker.sync.assembly_plan import Copied, Older, Plan, Sent
from kelpie_worker.sync.bodies import FileBody, FileChanged, PartDigest, blake3_of, pieces
from kelpie_worker.sync.known import Address
from kelpie_worker.sync.object_store import ObjectStore, StoredObject
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.stable_read import open_for_reading
from kelpie_worker.sync.threads import in_thread
from kelpie_worker.sync.upload import Uploader

log = logging.getLogger(__name__)

GIVE_UP_S = 30.0
"""How long a storage that is there is tried to copy, seconds, twice; then the file is sent instead."""
REST_S = 600.0
"""How long copying is not tried any more after that, seconds."""
_TRIES = 2


class Assembler:
    """Puts plain keys together.

    Args:
        store: The storage.
        uploader: Makes the requests, within its bound.
        on_copied: Told how many bytes the storage has copied.
    """

    def __init__(self, store: ObjectStore, uploader: Uploader, on_copied: Callable[[int], None]) -> None:
        self._store, self._uploader, self._on_copied = store, uploader, on_copied
        self._refused: set[str] = set()
        self._rests_until_s = 0.0

    def may(self, bucket: str) -> bool:
        """Whether the storage copies within a bucket, as far as is known."""
        return bucket not in self._refused and asyncio.get_running_loop().time() >= self._rests_until_s

    async def assemble(
        self, address: Address, path: Path, plan: Plan, patience: Patience, older: Older | None = None
    ) -> StoredObject | None:
        """Put an object together.

        Args:
            address: Where it goes.
            path: The file, for what has to be sent.
            plan: How.
            patience: With a storage that is away.
            older: What the plan was made with.

        Returns:
            The object; None when the file has to be sent instead.

        Raises:
            FileChanged: What has to be sent is not what the commit holds any more.
            StorageError: As for `kelpie_worker.sync.upload.Uploader.in_parts`; not because copies fail.
            LeaseLost: The attempt lost its job.
        """
        work = _Work(self._store, self._uploader, self._on_copied, *address, path, plan, older)
        try:
            stored = await self._persist(work, patience)
        except _NotCopied as error:
            if await patience.persist(partial(self._store.head, work.bucket, error.source)):
                self._refuse(work, str(error))
            return None  # without a source this one cannot be copied; others can
        except _Replaced:
            return None
        if stored is not None and stored.size_bytes != plan.size_bytes:
            self._refuse(work, f"{stored.size_bytes} bytes came of {plan.size_bytes}")
            return None
        return stored

    async def _persist(self, work: _Work, patience: Patience) -> StoredObject | None:
        for _ in range(_TRIES):
            try:
                return await work.do(Patience(GIVE_UP_S, "plain_waits"))
            except StorageUnavailable as error:
                failure = error
            # A storage that is away is waited for; one that is there fails at nothing but copies.
            await patience.persist(partial(self._store.head, work.bucket, work.key))
        self._rests_until_s = asyncio.get_running_loop().time() + REST_S
        _say(work, "copy_failed", str(failure))
        return None

    def _refuse(self, work: _Work, why: str) -> None:
        if work.bucket not in self._refused:
            self._refused.add(work.bucket)
            _say(work, "copy_refused", why)


def _say(work: _Work, action: str, why: str) -> None:
    log.warning(
        "the storage does not copy within the bucket; plain keys are sent instead",
        extra={"action": action, "bucket": work.bucket, "key": work.key, "error": why},
    )


class _NotCopied(Exception):
    """The storage refused to copy."""

    def __init__(self, source: str, why: str) -> None:
        super().__init__(why)
        self.source = source


class _Replaced(Exception):
    """The object under the plain key is not the one any more that was to be copied from."""


class _Work:
    """One object that is put together."""

    def __init__(
        self, store: ObjectStore, uploader: Uploader, on_copied: Callable[[int], None], bucket: str, key: str,
        path: Path, plan: Plan, older: Older | None,
    ) -> None:  # fmt: skip
        self._store, self._uploader, self._on_copied = store, uploader, on_copied
        self.bucket, self.key = bucket, key
        self._path, self._plan = path, plan
        used = any(isinstance(part, Copied) and part.source == key for part in plan.parts)
        self._older = older.object if older and used else None

    async def do(self, patience: Patience) -> StoredObject:
        """Put it together.

        Raises:
            _NotCopied: The storage refused to copy.
            _Replaced: The older object is there no more.
        """
        source = self._plan.copy_of
        if source:
            try:
                stored = await self._uploader.copy(self.bucket, self.key, source, patience)
            except StorageSetupError as error:
                raise _NotCopied(source, str(error)) from error
            self._on_copied(stored.size_bytes)
            return stored
        fd = await in_thread(partial(open_for_reading, self._path)) if self._plan.sent_bytes else -1
        try:
            parts = [partial(self._part, fd, part) for part in self._plan.parts]
            sure = partial(self._look_again, patience) if self._older else None
            size_bytes = self._plan.size_bytes
            return await self._uploader.in_parts(self.bucket, self.key, parts, patience, sure, size_bytes=size_bytes)
        finally:
            if fd >= 0:
                os.close(fd)

    async def _part(self, fd: int, part: Copied | Sent, upload_id: str, number: int) -> str:
        if isinstance(part, Sent):
            body = await in_thread(partial(_proven, self._path, fd, part, self._uploader.on_sent))
            return await self._uploader.send_part(self.bucket, self.key, body, upload_id, number)
        try:
            etag = await self._store.copy_part(self.bucket, self.key, upload_id, number, *part)
        except StorageSetupError as error:
            if part.source == self.key:  # it is gone, or shorter
                raise _Replaced from error
            raise _NotCopied(part.source, str(error)) from error
        self._on_copied(part.length)
        return etag

    async def _look_again(self, patience: Patience) -> None:
        if await patience.persist(partial(self._store.head, self.bucket, self.key)) != self._older:
            raise _Replaced


def _proven(path: Path, fd: int, part: Sent, on_sent: Callable[[int], None]) -> FileBody:
    """The body of a part that is what the commit holds.

    Raises:
        FileChanged: It is not.
    """
    crc, whole, at = 0, blake3(), part.at
    for extent in part.extents:
        content = blake3()
        for piece in pieces(path, fd, at, extent.length):
            crc = crc32(piece, crc)
            whole.update(piece)
            content.update(piece)
        if blake3_of(content).hex() != extent.digest:
            raise FileChanged(f"{path} is not what was committed any more")
        at += extent.length
    return FileBody(path, fd, part.at, part.length, PartDigest(crc, blake3_of(whole)), on_sent)
