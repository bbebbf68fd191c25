"""Segments: the objects that hold the content of commits, from the first byte to the storage.

A segment is filled in a file of our own, so that a slow line cannot be overtaken by the job's next write, and is sent
from there in one request as soon as it is full. Where the disk has no room, it is filled in memory, a few at a time.

Sending goes on in the background until it succeeds; who needs segments waits for them (`Spool.stored`), and says how
long.

Limits: one attempt, one event loop. A key is written once: what is sent again after a lost answer is the same bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import os
import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from zlib_ng.zlib_ng import crc32

from kelpie_celery.checkpoints.content import SEGMENT_BYTES
from kelpie_celery.errors import StorageUnavailable
from kelpie_worker.sync.errors import disk_errors
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.object_store import ObjectStore
from kelpie_worker.sync.stable_read import space_for_copies
from kelpie_worker.sync.threads import in_thread

log = logging.getLogger(__name__)

SENT_AT_ONCE = 6
_IN_MEMORY = 2
_PIECE_BYTES = 512 * 1024
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0
_LOOK_EVERY_S = 1.0
_IDLE_S = 30.0


class Segment:
    """One object in the making; filled by one thread at a time.

    Args:
        bucket: Where it goes.
        key: Likewise.
        path: The file that it is filled in; None fills it in memory.
        on_sent: Called with the number of bytes of each piece that is sent, and whether no earlier try came so far.
    """

    def __init__(self, bucket: str, key: str, path: Path | None, on_sent: Callable[[int, bool], None]) -> None:
        self.bucket, self.key = bucket, key
        self.size_bytes = 0
        self._path, self._on_sent = path, on_sent
        self._memory = bytearray() if path is None else None
        self._fd = -1
        if path is not None:
            with disk_errors(path):
                self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self._crc = 0
        self._handed_bytes = self._farthest_bytes = 0

    @property
    def left_bytes(self) -> int:
        """How many bytes the try to send it that is under way, or comes next, has still to hand out."""
        return self.size_bytes - self._handed_bytes

    @property
    def in_memory(self) -> bool:
        """Whether it takes memory instead of disk."""
        return self._memory is not None

    def has_room(self, count: int) -> bool:
        """Whether ``count`` more bytes fit; anything fits into an empty one."""
        return not self.size_bytes or self.size_bytes + count <= SEGMENT_BYTES

    def append(self, data: bytes | memoryview) -> int:
        """Add bytes; where they begin.

        Raises:
            DiskFull: No room; the segment is as it was.
        """
        at = self.size_bytes
        if self._memory is not None:
            self._memory += data
        elif self._path is not None:
            with disk_errors(self._path, len(data)):
                view = memoryview(data)
                done = 0
                while done < len(view):
                    done += os.pwrite(self._fd, view[done:], at + done)
        self._crc = crc32(data, self._crc)
        self.size_bytes += len(data)
        return at

    def close(self) -> None:
        """Let go of memory or file; safe to call more than once.

        A file that cannot be deleted stays until its folder goes: what it held is on the storage, or in vain.
        """
        self._memory = None
        fd, self._fd = self._fd, -1
        try:
            if fd >= 0:
                os.close(fd)
            if self._path is not None:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            extra = {"action": "segment_stays", "path": str(self._path), "error": str(error)}
            log.warning("a file of our own cannot be deleted", extra=extra)

    # -- as a body; see ``object_store.Body`` -----------------------------------------------------------------------

    def crc32(self) -> int:
        """CRC32 of all bytes, known from the filling."""
        return self._crc

    def md5(self) -> bytes:
        """MD5 of all bytes (16 bytes)."""
        whole = hashlib.md5(usedforsecurity=False)
        for piece in self._pieces():
            whole.update(piece)
        return whole.digest()

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The bytes, in pieces, counted as they are handed out."""
        self._handed_bytes = 0
        for piece in self._pieces():
            yield piece
            self._handed_bytes += len(piece)
            farther = self._handed_bytes > self._farthest_bytes
            self._farthest_bytes = max(self._farthest_bytes, self._handed_bytes)
            self._on_sent(len(piece), farther)

    def _pieces(self) -> Iterator[bytes | memoryview]:
        for at in range(0, self.size_bytes, _PIECE_BYTES):
            count = min(_PIECE_BYTES, self.size_bytes - at)
            yield os.pread(self._fd, count, at) if self._memory is None else memoryview(self._memory)[at : at + count]


class Spool:
    """Makes segments, sends them, and keeps what waits within bounds: half of the disk's room, or two in memory.

    Args:
        store: The storage.
        fence: Of the attempt.
        scratch: A folder of our own.
        on_sent: Called with the number of bytes of each piece that is sent.
    """

    def __init__(self, store: ObjectStore, fence: Fence, scratch: Path, on_sent: Callable[[int], None]) -> None:
        self._store, self._fence, self._scratch, self._on_sent = store, fence, scratch, on_sent
        self._counter = itertools.count(1)
        self._free = asyncio.Semaphore(SENT_AT_ONCE)
        self._open: set[Segment] = set()
        self._sending: dict[Segment, asyncio.Task[None]] = {}
        self._refused: dict[Segment, Exception] = {}
        self._away: StorageUnavailable | None = None
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._stood_still_s = self._counted_s = 0.0
        self._alive_s = self._now_s()
        self.patience_s = 60.0
        """How long a storage that neither stores a segment nor takes a byte it had not been sent is waited for, s."""

    # -- filling ----------------------------------------------------------------------------------------------------

    async def new(self, bucket: str, folder: str) -> Segment:
        """An empty segment whose key no other has; waits for room.

        Args:
            bucket: Where it is to go.
            folder: What its key begins with; of this attempt alone.

        Raises:
            KelpieError: There is no room, and what should make it cannot be sent.
        """
        number, began_s = next(self._counter), self._now_s()
        while (on_disk := await self._has_room()) is None:
            if self._refused:
                raise next(iter(self._refused.values()))
            self._ensure_alive(began_s, bucket)
            await self._hear()
        path = self._scratch / f"segment-{number}" if on_disk else None
        segment = await in_thread(partial(Segment, bucket, f"{folder}{number:06d}", path, self._sent))
        self._open.add(segment)
        return segment

    async def _has_room(self) -> bool | None:
        """Whether the next segment goes to the disk, or to memory; None: it has to wait."""
        held = len(self._open) + len(self._sending)
        free_bytes = 2 * await in_thread(partial(space_for_copies, self._scratch))
        if free_bytes >= SEGMENT_BYTES * max(2, held + 1):
            return True
        in_memory = sum(segment.in_memory for segment in (*self._open, *self._sending))
        return False if in_memory < _IN_MEMORY and (free_bytes < 2 * SEGMENT_BYTES or not self._sending) else None

    async def has_room_for(self, count: int) -> bool:
        """Whether so many bytes can be filled at once, without waiting for others to be sent."""
        held = len(self._open) + len(self._sending)
        free_bytes = 2 * await in_thread(partial(space_for_copies, self._scratch))
        return free_bytes >= SEGMENT_BYTES * (held + 2) + 2 * count

    def discard(self, segment: Segment) -> None:
        """Let go of a segment that was never given to `send`."""
        self._open.discard(segment)
        segment.close()
        self._news.set()

    # -- sending ----------------------------------------------------------------------------------------------------

    def send(self, segment: Segment) -> None:
        """Begin to send a segment that is full; that goes on until it succeeds or is given up."""
        self._open.discard(segment)
        self._refused.pop(segment, None)
        self._sending[segment] = asyncio.create_task(self._send(segment))

    async def _send(self, segment: Segment) -> None:
        pause_s = _PAUSE_S
        while True:
            try:
                async with self._free:
                    with disk_errors(self._scratch):  # the only files that are read in there
                        await self._store.put(segment.bucket, segment.key, segment, self._fence)
                break
            except StorageUnavailable as error:
                self._away = error
                log.warning(
                    "the storage is away; trying again",
                    extra={"action": "commit_waits", "error": str(error), "pause_s": round(pause_s, 1)},
                )
            except Exception as error:  # whatever it is: who waits must hear of it
                self._refused[segment] = error
                self._news.set()
                return
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 -- jitter, no secret
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
        self._alive_s = self._now_s()
        await in_thread(segment.close)
        self._forget(segment)

    def _sent(self, count: int, farther: bool) -> None:
        # From a transfer thread: a float is set, nothing else. What is only sent again is no sign of life: a storage
        # may take every byte and refuse in the end, again and again.
        if farther:
            self._alive_s = self._now_s()
        self._on_sent(count)

    def _forget(self, segment: Segment) -> None:
        self._sending.pop(segment, None)
        self._refused.pop(segment, None)
        self._news.set()

    async def stored(self, segments: Iterable[Segment]) -> None:
        """Wait until these segments, each of which was given to `send`, are on the storage.

        Raises:
            StorageUnavailable: Patience ran out; sending goes on, so that the next try finds more done.
            StorageSetupError: The storage refuses; asked again, it is tried again.
            LeaseLost: The attempt lost its job.
        """
        wanted, began_s = list(segments), self._now_s()
        for segment in wanted:
            if segment in self._refused:  # perhaps its user has mended it since
                self.send(segment)
        while missing := [segment for segment in wanted if segment in self._sending]:
            refused = next((self._refused[segment] for segment in missing if segment in self._refused), None)
            if refused is not None:
                raise refused
            self._ensure_alive(began_s, missing[0].bucket)
            await self._hear()

    def left_bytes(self, segments: Iterable[Segment]) -> int:
        """How many bytes of these segments are still to be sent."""
        return sum(segment.left_bytes for segment in segments if segment in self._sending)

    async def idle(self, patience_s: float = _IDLE_S) -> None:
        """Wait until nothing is being sent, or nothing gets through for ``patience_s``."""
        began_s = self._now_s()
        while self._sending.keys() - self._refused.keys():
            if self._now_s() - max(self._alive_s, began_s) > patience_s:
                return
            await self._hear()

    def _ensure_alive(self, began_s: float, bucket: str) -> None:
        if self._now_s() - max(self._alive_s, began_s) > self.patience_s:
            raise self._away or StorageUnavailable(f"bucket {bucket!r}: the storage takes nothing", bucket=bucket)

    async def _hear(self) -> None:
        """Wait for news of any segment, for a moment."""
        self._news.clear()
        began_s = self._loop.time()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_EVERY_S):
                await self._news.wait()
        # Each moment once, however many wait.
        now_s = self._loop.time()
        self._stood_still_s += max(0.0, now_s - max(began_s + _LOOK_EVERY_S, self._counted_s))
        self._counted_s = now_s
        # A sign of life from a thread, while the loop stood still, was stamped by the clock before it was set back.
        if self._alive_s > (corrected_s := self._now_s()):
            self._alive_s = corrected_s

    def _now_s(self) -> float:
        # Without the time in which this process stood still, where it was met: nothing could get through then.
        return self._loop.time() - self._stood_still_s

    async def give_up(self, segments: Iterable[Segment]) -> None:
        """Stop sending segments that nobody wants any more; what of them is on the storage is not deleted here."""
        tasks = {segment: self._sending[segment] for segment in segments if segment in self._sending}
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        for segment in tasks:
            self._forget(segment)
            segment.close()

    async def close(self) -> None:
        """Give up everything."""
        await self.give_up(list(self._sending))
        for segment in list(self._open):
            self.discard(segment)
