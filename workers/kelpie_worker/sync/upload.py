"""Sending captured files: small ones in one request, larger ones in parts that nobody sees until the last step.

Memory: at most `PARTS_AT_ONCE` bodies are under way, each of which holds one piece of 512 KiB (and as much again on its
way through the event loop), whatever the size of the file.

Limits: one try of each part is the store's few tries; longer patience is the caller's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from kelpie_celery.errors import KelpieError
from kelpie_worker.sync.bodies import FileBody
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.object_store import ObjectStore, StoredObject
from kelpie_worker.sync.stable_read import Captured, Digests
from kelpie_worker.sync.threads import run_bounded

log = logging.getLogger(__name__)

PARTS_AT_ONCE = 8
_ABORT_S = 10.0


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
    """Sends files; one for all transfers of an attempt, so that all of them together keep to the bound.

    Args:
        store: The storage.
        fence: Of the attempt.
        on_sent: Called with the number of bytes of each piece that was sent.
    """

    def __init__(self, store: ObjectStore, fence: Fence, on_sent: Callable[[int], None]) -> None:
        self._store, self._fence, self._on_sent = store, fence, on_sent
        self._free = asyncio.Semaphore(PARTS_AT_ONCE)

    async def upload(self, captured: Captured, bucket: str, key: str) -> Stored:
        """Send a file; it is closed by the caller.

        Raises:
            FileChanged: It was written to meanwhile; nothing became visible.
            StorageError: It failed.
            LeaseLost: The fence says so.
        """
        bodies = captured.bodies(self._on_sent)
        if len(bodies) == 1:
            async with self._free:
                stored = await self._store.put(bucket, key, bodies[0], self._fence)
        else:
            stored = await self._in_parts(bodies, bucket, key)
        return Stored(stored, captured, captured.sent)

    async def _in_parts(self, bodies: list[FileBody], bucket: str, key: str) -> StoredObject:
        upload_id = await self._store.begin(bucket, key)
        try:
            etags = [""] * len(bodies)

            async def send(numbered: tuple[int, FileBody]) -> None:
                number, body = numbered
                async with self._free:
                    etags[number - 1] = await self._store.put_part(bucket, key, upload_id, number, body)

            await run_bounded(enumerate(bodies, 1), send, PARTS_AT_ONCE)
            return await self._store.complete(bucket, key, upload_id, etags, self._fence)
        except BaseException:
            await self._abort(bucket, key, upload_id)
            raise

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
