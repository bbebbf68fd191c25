"""Many small files at once: several of them go one after the other in one transfer thread, instead of a thread each.

A small file takes a fifth of a millisecond; to hand it from the event loop to a thread and back takes more, since the
threads and the loop contend for the interpreter. What happens to go wrong in a batch is none of its business: it ends
before the file that failed, which then goes the ordinary way, with all its patience and its errors, and the rest of the
batch begins anew behind it.

Limits: order within a batch is kept, between batches not.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from kelpie_celery.errors import KelpieError, StorageUnavailable
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.object_store import Body, StoredObject
from kelpie_worker.sync.pace import Pace

log = logging.getLogger(__name__)

T = TypeVar("T")

SMALL_BYTES = 1024 * 1024
"""Larger files gain nothing."""
TINY_BYTES, TINY_AT_ONCE = 64 * 1024, 4
"""Of objects of this size a thread asks for so many at a time: they wait for their turn in the kernel's buffers."""
_MOST, _MOST_BYTES = 64, 4 * 1024 * 1024
"""Of one batch: with a slow line it is not long until somebody else's turn."""


class Direct(Protocol):
    """A storage as a batch has it: blocking, in the thread that it was given to, and nothing is tried twice.

    Every method raises what the same one of ``ObjectStore`` does, and ``StorageUnavailable`` when there is not enough
    trust left.
    """

    def fetch_each(
        self, bucket: str, wanted: Sequence[StoredObject], arrived: Callable[[int], None]
    ) -> Generator[memoryview, None, None]:
        """Whole objects, in order, each valid until the next one is asked for; close it to end early.

        Args:
            bucket: The bucket.
            wanted: The objects as they were listed, with their ETags; none is empty, nor larger than `SMALL_BYTES`.
            arrived: Called with the number of bytes as they arrive.

        Raises:
            NotPlain: This storage's answers do not fit.
            StorageError: As ``ObjectStore.fetch``, in less detail.
        """

    def put(self, bucket: str, key: str, body: Body) -> StoredObject:
        """See ``ObjectStore.put``; the fence is that of the batch."""


class NotPlain(StorageUnavailable):
    """What the storage answers is for ``ObjectStore.fetch``, which takes all kinds; a batch hardly does better."""


Work = Callable[[Direct], None]


@runtime_checkable
class Batching(Protocol):
    """What an ``ObjectStore`` may be besides."""

    async def batch(self, buckets: Iterable[str], work: Work, fence: Fence | None) -> None:
        """Run ``work`` in a transfer thread.

        A call that is cancelled ends promptly: whatever ``work`` waits for fails, and so does what it asks for next.

        Args:
            buckets: All that it is going to ask for.
            work: What to do; to be left by whatever a ``Direct`` raises that is no ``KelpieError``.
            fence: Of the attempt, where something becomes visible; asked before the first byte and all along.

        Raises:
            LeaseLost: The fence says so.
            Exception: What ``work`` raised.
        """


def divided(items: Iterable[T], size_bytes: Callable[[T], int | None], streams: int) -> Iterator[Sequence[T]]:
    """Divide items into batches: the large ones first, each alone, then the small ones; the last batches are short.

    Args:
        items: What is to be moved.
        size_bytes: How large one is; None for what has to go alone.
        streams: How many batches at once there will be.
    """
    alone, small = list[tuple[int, T]](), list[tuple[int, T]]()
    for item in items:
        size = size_bytes(item)
        (alone if size is None or size > SMALL_BYTES else small).append((size or 0, item))
    # The large ones first, so that none of them is what everybody waits for at the end.
    for _, item in sorted(alone, key=lambda one: -one[0]):
        yield [item]
    at = 0
    while at < len(small):
        most, taken, batch = max(1, min(_MOST, (len(small) - at) // (2 * streams))), 0, list[T]()
        while at < len(small) and len(batch) < most and (not batch or taken + small[at][0] <= _MOST_BYTES):
            taken += small[at][0]
            batch.append(small[at][1])
            at += 1
        yield batch


class Done:
    """How far a batch came; its context ends it quietly where something failed that is met again the ordinary way.

    Args:
        pace: Told what the thread that enters the context uses.
    """

    def __init__(self, pace: Pace) -> None:
        self.count, self._pace = 0, pace

    def __enter__(self) -> Done:
        self._pace.begin()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        self._pace.end()
        if not isinstance(error, KelpieError):
            return False
        log.debug("a batch ended early", extra={"action": "batch_ended", "done": self.count, "error": str(error)})
        return True


async def in_batches(
    batches: Iterable[Sequence[T]], together: Callable[[Sequence[T], Done], Awaitable[None]] | None,
    alone: Callable[[T], Awaitable[None]], streams: int,
) -> None:  # fmt: skip
    """Move everything.

    Args:
        batches: See `divided`.
        together: Moves a batch as far as nothing goes wrong, and counts. None: there is no such way.
        alone: Moves one.
        streams: How many batches at once, at most; see ``pace``.

    Raises:
        Exception: What ``alone`` raised first.
    """
    pace, queue = Pace(), iter(batches)

    async def one(batch: Sequence[T]) -> None:
        while batch:
            if together and len(batch) > 1:
                done = Done(pace)
                await together(batch, done)
                batch = batch[done.count :]
            if batch:
                await alone(batch[0])
                batch = batch[1:]

    async def stream() -> None:
        for batch in queue:
            await one(batch)

    await pace.run(stream, streams)
