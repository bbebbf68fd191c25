"""A storage in memory with S3's semantics, and fences that tests hold in their hands."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import threading
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from kelpie_celery.errors import LeaseLost, StorageSetupError, StorageUnavailable
from kelpie_worker.sync.batches import Work
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.object_store import Body, ObjectChanged, Sink, StoredObject, UploadGone
from kelpie_worker.sync.threads import in_thread


class HandFence:
    """A fence that opens and closes when it is told to, from any thread."""

    def __init__(self, window_s: float = 60.0) -> None:
        self.window_s = window_s
        self.muted = self.lost = False
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def mute(self) -> None:
        self.muted = True

    def unmute(self) -> None:
        self.muted = False
        self._tell()

    def lose(self) -> None:
        self.lost = True
        self._tell()

    def _tell(self) -> None:
        for loop, news in list(self._waiting):
            loop.call_soon_threadsafe(news.set)

    def remaining_s(self) -> float:
        return 0.0 if self.muted or self.lost else self.window_s

    async def trusted(self, at_least_s: float = 2.0) -> float:
        while not self.lost:
            if not self.muted:
                return self.window_s
            waiting = asyncio.get_running_loop(), asyncio.Event()
            self._waiting.add(waiting)
            try:
                if self.muted and not self.lost:
                    await waiting[1].wait()
            finally:
                self._waiting.discard(waiting)
        raise LeaseLost("another attempt owns the job")


class Kept(NamedTuple):
    """An object."""

    data: bytes
    etag: str
    modified: float = 0.0


class MemoryStore:
    """See ``kelpie_worker.sync.object_store.ObjectStore``.

    Attributes:
        objects: What is there, by bucket and key.
        versions: What was there before and is hidden, by bucket and key; kept only for the buckets in ``versioned``.
        versioned: Buckets that keep versions.
        calls: How often each operation was asked for.
        written: Keys in the order in which they became visible.
        down: While set, everything answers ``StorageUnavailable``.
    """

    def __init__(self, *buckets: str) -> None:
        self.objects: dict[str, dict[str, Kept]] = {bucket: {} for bucket in buckets}
        self.versions: dict[str, dict[str, list[Kept]]] = {bucket: {} for bucket in buckets}
        self.versioned: set[str] = set()
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.calls: Counter[str] = Counter()
        self.written: list[str] = []
        self.deleted: list[str] = []
        self.down = False
        self.denied: set[str] = set()
        self._times = itertools.count(1_000_000)

    def seed(self, bucket: str, key: str, data: bytes, etag: str = "") -> None:
        self._hide(bucket, key)
        self.objects[bucket][key] = Kept(data, etag or hashlib.md5(data).hexdigest(), float(next(self._times)))

    def keys(self, bucket: str) -> list[str]:
        return sorted(self.objects[bucket])

    def content(self, bucket: str, key: str) -> bytes:
        return self.objects[bucket][key].data

    def _hide(self, bucket: str, key: str) -> None:
        before = self.objects[bucket].pop(key, None)
        if before and bucket in self.versioned:
            self.versions[bucket].setdefault(key, []).append(before)

    def _bucket(self, what: str, bucket: str, key: str = "") -> dict[str, Kept]:
        self.calls[what] += 1
        if self.down:
            raise StorageUnavailable(f"{bucket} {key}: {what}: away", bucket=bucket, key=key)
        if bucket not in self.objects:
            raise StorageSetupError(f"bucket {bucket!r}: the bucket does not exist", bucket=bucket, key=key)
        if bucket in self.denied:
            raise StorageSetupError(f"bucket {bucket!r}: access is denied", bucket=bucket, key=key)
        return self.objects[bucket]

    def _found(self, what: str, bucket: str, key: str) -> Kept:
        found = self._bucket(what, bucket, key).get(key)
        if found is None:
            raise StorageSetupError(f"bucket {bucket!r}, object {key!r}: it does not exist", bucket=bucket, key=key)
        return found

    def _store(self, bucket: str, key: str, data: bytes, etag: str = "") -> StoredObject:
        self.seed(bucket, key, data, etag)
        self.written.append(key)
        return self._told(key, self.objects[bucket][key])

    @staticmethod
    def _told(key: str, kept: Kept) -> StoredObject:
        return StoredObject(key, len(kept.data), kept.etag, kept.modified)

    async def list(self, bucket: str, prefix: str) -> AsyncIterator[StoredObject]:
        for key, kept in list(self._bucket("list", bucket).items()):
            if key.startswith(prefix):
                yield self._told(key, kept)

    async def head(self, bucket: str, key: str) -> StoredObject | None:
        found = self._bucket("head", bucket, key).get(key)
        return self._told(key, found) if found else None

    async def fetch(self, bucket: str, key: str, sink: Sink, *, etag: str, start_byte: int, length_bytes: int) -> None:
        found = self._found("fetch", bucket, key)
        if etag and found.etag != etag:
            raise ObjectChanged(f"{key} was replaced", bucket=bucket, key=key)
        data = found.data[start_byte : start_byte + length_bytes]
        if data:
            await in_thread(partial(sink, memoryview(data)))
        if len(data) != length_bytes:
            raise StorageUnavailable(f"{len(data)} of {length_bytes} bytes arrived", bucket=bucket, key=key)

    async def _body(self, body: Body, fence: Fence | None) -> bytes:
        return await in_thread(partial(_read, body, fence))

    async def put(self, bucket: str, key: str, body: Body, fence: Fence) -> StoredObject:
        await fence.trusted()
        data = await self._body(body, fence)
        self._bucket("put", bucket, key)
        return self._store(bucket, key, data)

    async def copy(self, bucket: str, key: str, source_key: str, fence: Fence) -> StoredObject:
        await fence.trusted()
        return self._store(bucket, key, self._found("copy", bucket, source_key).data)

    async def delete(self, bucket: str, key: str, fence: Fence, *, forever: bool = False) -> None:
        await fence.trusted()
        there = self._bucket("delete", bucket, key)
        if forever:
            there.pop(key, None)
            older = self.versions[bucket].get(key)
            if older:
                there[key] = older.pop()
        else:
            self._hide(bucket, key)
        self.deleted.append(key)

    async def begin(self, bucket: str, key: str) -> str:
        self._bucket("begin", bucket, key)
        upload_id = f"upload-{self.calls['begin']}"
        self.uploads[upload_id] = {}
        return upload_id

    def _parts(self, bucket: str, key: str, upload_id: str) -> dict[int, bytes]:
        if upload_id not in self.uploads:
            raise UploadGone(f"{key}: the upload is gone", bucket=bucket, key=key)
        return self.uploads[upload_id]

    async def put_part(self, bucket: str, key: str, upload_id: str, number: int, body: Body) -> str:
        self._bucket("put_part", bucket, key)
        data = await self._body(body, None)
        self._parts(bucket, key, upload_id)[number] = data
        return hashlib.md5(data).hexdigest()

    async def copy_part(
        self, bucket: str, key: str, upload_id: str, number: int, source_key: str, start_byte: int, length_bytes: int
    ) -> str:
        source = self._found("copy_part", bucket, source_key).data
        data = source[start_byte : start_byte + length_bytes]
        self._parts(bucket, key, upload_id)[number] = data
        return hashlib.md5(data).hexdigest()

    async def complete(
        self, bucket: str, key: str, upload_id: str, part_etags: Sequence[str], fence: Fence, *, size_bytes: int
    ) -> StoredObject:
        await fence.trusted()
        self._bucket("complete", bucket, key)
        parts = self._parts(bucket, key, upload_id)
        data = b"".join(parts[number] for number in sorted(parts))
        digests = b"".join(hashlib.md5(parts[number]).digest() for number in sorted(parts))
        del self.uploads[upload_id]
        if len(data) != size_bytes:
            raise StorageUnavailable(f"{key}: {len(data)} bytes came of {size_bytes}", bucket=bucket, key=key)
        return self._store(bucket, key, data, f"{hashlib.md5(digests).hexdigest()}-{len(part_etags)}")

    async def abort(self, bucket: str, key: str, upload_id: str) -> None:
        self._bucket("abort", bucket, key)
        self.uploads.pop(upload_id, None)


def _read(body: Body, fence: Fence | None) -> bytes:
    data, announced = bytearray(), body.crc32()
    for chunk in body.chunks():
        assert len(chunk) <= 1024 * 1024
        if fence and fence.remaining_s() <= 0:
            raise StorageUnavailable("muted while sending", bucket="")
        data += chunk
    assert (len(data), zlib.crc32(data)) == (body.size_bytes, announced)
    return bytes(data)


class BatchingMemory(MemoryStore):
    """One that takes batches, too; see ``kelpie_worker.sync.batches.Batching``."""

    async def batch(self, buckets: Iterable[str], work: Work, fence: Fence | None) -> None:
        if fence:
            await fence.trusted()
        stopped = threading.Event()

        def stop() -> bool:
            stopped.set()
            return True

        await in_thread(partial(work, _Direct(self, fence, stopped)), stop=stop)


class _Stopped(Exception):
    """The batch was cancelled."""


class _Direct:
    """A storage in memory as a batch has it."""

    def __init__(self, store: MemoryStore, fence: Fence | None, stopped: threading.Event) -> None:
        self._store, self._fence, self._stopped = store, fence, stopped

    def fetch_each(
        self, bucket: str, wanted: Sequence[StoredObject], arrived: Callable[[int], None]
    ) -> Generator[memoryview, None, None]:
        for one in wanted:
            self._look()
            found = self._store._found("fetch", bucket, one.key)
            if found.etag != one.etag or len(found.data) != one.size_bytes:
                raise ObjectChanged(f"{one.key} was replaced", bucket=bucket, key=one.key)
            arrived(len(found.data))
            yield memoryview(found.data)

    def put(self, bucket: str, key: str, body: Body) -> StoredObject:
        self._look()
        data = _read(body, self._fence)
        if self._fence is None or self._fence.remaining_s() <= 0:
            raise StorageUnavailable("the trust is over", bucket=bucket, key=key)
        self._store._bucket("put", bucket, key)
        return self._store._store(bucket, key, data)

    def _look(self) -> None:
        if self._stopped.is_set():
            raise _Stopped
