"""Sending captured files: small ones in one request, larger ones in parts that nobody sees until the last step.

Parts need not be sent: an upload may as well be made of parts that the storage copies (see ``assembling``).

Memory: at most `PARTS_AT_ONCE` bodies are under way, each of which holds one piece of 512 KiB, whatever the size of the
file.

Limits: a file that was begun in one attempt is not continued by the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, cast

from kelpie_celery.errors import KelpieError, StorageUnavailable
from kelpie_worker.sync.batches import Batching, Work
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.object_store import Body, ObjectStore, StoredObject, UploadGone
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.stable_read import Captured, Digests
from kelpie_worker.sync.threads import run_bounded

log = logging.getLogger(__name__)

PARTS_AT_ONCE = 16
_ABORT_S = 10.0
_BEGINNINGS = 3

T = TypeVar("T")

Part = Callable[[str, int], Awaitable[str]]
"""Puts one part of an upload in its place, told the upload's id and the part's number; its ETag."""


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
        on_sent: Called, in a transfer thread, with the number of bytes of each piece that was sent.
        at_once: How many requests at once, until `hurry` is called.
        turn: Awaited before each request: lets what is more urgent go first.
    """

    def __init__(
        self, store: ObjectStore, fence: Fence, on_sent: Callable[[int], None], *, at_once: int = PARTS_AT_ONCE,
        turn: Callable[[], Awaitable[None]] | None = None,
    ) -> None:  # fmt: skip
        self._store, self._fence, self._on_sent = store, fence, on_sent
        self.sent_bytes = 0
        """How many bytes were handed to the network."""
        self._free, self._at_once = asyncio.Semaphore(at_once), at_once
        self._turn, self._lock = turn, threading.Lock()

    def on_sent(self, count: int) -> None:
        """Count bytes of a body; of bodies that are given to `send_part`. From any thread."""
        with self._lock:
            self.sent_bytes += count
        self._on_sent(count)

    def hurry(self) -> None:
        """From now on as many requests at once as there may be."""
        for _ in range(self._at_once, PARTS_AT_ONCE):
            self._free.release()
        self._at_once = PARTS_AT_ONCE

    @contextlib.asynccontextmanager
    async def _request(self, patience: Patience) -> AsyncIterator[None]:
        async with self._free:
            if self._turn:
                await self._turn()
                patience.sign_of_life()  # what went first has shown that the storage is there
            yield

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
        bodies = captured.bodies(self.on_sent)
        if len(bodies) == 1:
            async with self._request(patience):
                stored = await patience.persist(partial(self._store.put, bucket, key, bodies[0], self._fence))
        else:
            parts = [partial(self.send_part, bucket, key, body) for body in bodies]
            size_bytes = sum(body.size_bytes for body in bodies)
            stored = await self.in_parts(bucket, key, parts, patience, size_bytes=size_bytes)
        return Stored(stored, captured, captured.sent)

    async def together(self, buckets: Iterable[str], work: Work, patience: Patience) -> None:
        """Send several small files in one transfer thread; see ``Batching.batch``.

        Args:
            buckets: Where to.
            work: Sends them, as bodies that count by `on_sent`.
            patience: Told how it goes.

        Raises:
            LeaseLost: The fence says so.
            Exception: What ``work`` raised.
        """
        patience.begin()
        async with self._request(patience):
            await cast("Batching", self._store).batch(buckets, work, self._fence)

    async def send_part(self, bucket: str, key: str, body: Body, upload_id: str, number: int) -> str:
        """A `Part` that is sent, once its first three arguments are given."""
        return await self._store.put_part(bucket, key, upload_id, number, body)

    async def copy(self, bucket: str, key: str, source_key: str, patience: Patience) -> StoredObject:
        """Let the storage copy an object; see ``ObjectStore.copy``."""
        async with self._request(patience):
            return await patience.persist(partial(self._store.copy, bucket, key, source_key, self._fence))

    async def in_parts(
        self, bucket: str, key: str, parts: Sequence[Part], patience: Patience,
        before_complete: Callable[[], Awaitable[None]] | None = None, *, size_bytes: int,
    ) -> StoredObject:  # fmt: skip
        """Make an object of parts.

        Args:
            bucket: Where.
            key: Likewise.
            parts: In their order.
            patience: With a storage that is away.
            before_complete: Awaited when all parts are there; may still object, by raising.
            size_bytes: What the parts come to.

        Raises:
            StorageError: It failed; nothing became visible.
            LeaseLost: The fence says so.
            Exception: What a part raised, or ``before_complete``.
        """
        for _ in range(_BEGINNINGS):
            async with self._request(patience):
                upload_id = await patience.persist(partial(self._store.begin, bucket, key))
            try:
                etags = await self._all_parts(upload_id, parts, patience)
                if before_complete:
                    await before_complete()
                complete = partial(
                    self._store.complete, bucket, key, upload_id, etags, self._fence, size_bytes=size_bytes
                )
                async with self._request(patience):
                    return await patience.persist(partial(_unless_gone, complete))
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

    async def _all_parts(self, upload_id: str, parts: Sequence[Part], patience: Patience) -> list[str]:
        etags = [""] * len(parts)

        async def put(numbered: tuple[int, Part]) -> None:
            number, part = numbered
            async with self._request(patience):
                etags[number - 1] = await patience.persist(partial(_unless_gone, partial(part, upload_id, number)))

        await run_bounded(enumerate(parts, 1), put, PARTS_AT_ONCE)
        return etags

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


class _Begone(Exception):
    """The upload is gone, which patience does not mend."""


async def _unless_gone(operation: Callable[[], Awaitable[T]]) -> T:
    try:
        return await operation()
    except UploadGone:
        raise _Begone from None
