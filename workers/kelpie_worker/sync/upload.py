"""Sending captured files: small ones in one request, larger ones in parts that nobody sees until the last step.

Memory: at most `PARTS_AT_ONCE` bodies are under way, each of which holds one piece of 512 KiB (and as much again on its
way through the event loop), whatever the size of the file.

Limits: a file that was begun in one attempt is not continued by the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

from kelpie_celery.errors import KelpieError, StorageUnavailable
from kelpie_worker.sync.bodies import FileBody
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.object_store import ObjectStore, StoredObject, UploadGone
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.stable_read import Captured, Digests
from kelpie_worker.sync.threads import run_bounded

log = logging.getLogger(__name__)

PARTS_AT_ONCE = 8
_ABORT_S = 10.0
_BEGINNINGS = 3

T = TypeVar("T")


@dataclass(frozen=True)
class Stored:
    """A file that is on the storage.

    Attributes:
        object: As the storage knows it.
        captured: The file that was sent, as it was then.
        sent: What was sent.
    """

    object: StoredObject
    captured: Captured
    sent: Digests


class Uploader:
    """Sends files; one for all transfers of a kind, so that all of them together keep to the bound.

    Args:
        store: The storage.
        fence: Of the attempt.
        on_sent: Called with the number of bytes of each piece that was sent.
    """

    def __init__(self, store: ObjectStore, fence: Fence, on_sent: Callable[[int], None]) -> None:
        self._store, self._fence, self._on_sent = store, fence, on_sent
        self._free = asyncio.Semaphore(PARTS_AT_ONCE)

    async def upload(self, captured: Captured, bucket: str, key: str, patience: Patience) -> Stored:
        """Send a file; it is closed by the caller.

        Args:
            captured: The file.
            bucket: Where to.
            key: Likewise.
            patience: With a storage that is away. What it has taken by then is not sent again.

        Raises:
            FileChanged: It was written to meanwhile; nothing became visible.
            StorageError: It failed.
            LeaseLost: The fence says so.
        """
        bodies = captured.bodies(self._on_sent)
        if len(bodies) == 1:
            async with self._free:
                stored = await patience.persist(partial(self._store.put, bucket, key, bodies[0], self._fence))
        else:
            stored = await self._in_parts(bodies, bucket, key, patience)
        return Stored(stored, captured, captured.sent)

    async def _in_parts(self, bodies: list[FileBody], bucket: str, key: str, patience: Patience) -> StoredObject:
        for _ in range(_BEGINNINGS):
            upload_id = await patience.persist(partial(self._store.begin, bucket, key))
            try:
                return await self._all_parts(_Upload(bucket, key, upload_id), bodies, patience)
            except _Begone:
                continue
            except BaseException:
                await self._abort(bucket, key, upload_id)
                raise
        raise StorageUnavailable(
            f"bucket {bucket!r}, object {key!r}: its upload is aborted by somebody again and again; see whether the"
            " bucket has a rule that removes unfinished uploads too soon",
            bucket=bucket, key=key,
        )  # fmt: skip

    async def _all_parts(self, upload: _Upload, bodies: list[FileBody], patience: Patience) -> StoredObject:
        etags = [""] * len(bodies)

        async def send(numbered: tuple[int, FileBody]) -> None:
            number, body = numbered
            async with self._free:
                part = partial(self._store.put_part, *upload, number, body)
                etags[number - 1] = await patience.persist(partial(_unless_gone, part))

        await run_bounded(enumerate(bodies, 1), send, PARTS_AT_ONCE)
        complete = partial(self._store.complete, *upload, etags, self._fence)
        return await patience.persist(partial(_unless_gone, complete))

    async def _abort(self, bucket: str, key: str, upload_id: str) -> None:
        """Leave no parts behind, which cost money; a bounded wait, also while being cancelled."""
        abort = asyncio.ensure_future(self._store.abort(bucket, key, upload_id))
        try:
            async with asyncio.timeout(_ABORT_S):
                await abort
        except (KelpieError, TimeoutError) as error:
            log.warning(
                "parts of an upload stay on the storage until its own rules remove them",
                extra={"action": "abort_failed", "bucket": bucket, "key": key, "error": str(error)},
            )
        finally:
            abort.cancel()
            with contextlib.suppress(asyncio.CancelledError, KelpieError):
                await abort


class _Upload(NamedTuple):
    bucket: str
    key: str
    upload_id: str


class _Begone(Exception):
    """The upload is gone, which patience does not mend."""


async def _unless_gone(operation: Callable[[], Awaitable[T]]) -> T:
    try:
        return await operation()
    except UploadGone:
        raise _Begone from None
