"""A storage in memory with S3's semantics, and fences that tests hold in their hands."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence

from kelpie_celery.errors import LeaseLost, StorageSetupError, StorageUnavailable
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.object_store import Body, ObjectChanged, Sink, StoredObject


class HandFence:
    """A fence that opens and closes when it is told to."""

    def __init__(self, window_s: float = 60.0) -> None:
        self.window_s = window_s
        self.muted = self.lost = False
        self._news = asyncio.Event()

    def mute(self) -> None:
        self.muted = True

    def unmute(self) -> None:
        self.muted = False
        self._news.set()

    def lose(self) -> None:
        self.lost = True
        self._news.set()

    def remaining_s(self) -> float:
        return 0.0 if self.muted or self.lost else self.window_s

    async def trusted(self, at_least_s: float = 2.0) -> float:
        while not self.lost:
            if not self.muted:
                return self.window_s
            self._news.clear()
            await self._news.wait()
        raise LeaseLost("another attempt owns the job")


class MemoryStore:
    """See ``kelpie_worker.sync.object_store.ObjectStore``.

    Attributes:
        objects: Content by bucket and key.
        calls: How often each operation was asked for.
        written: Keys in the order in which they became visible.
        down: While set, everything answers ``StorageUnavailable``.
    """

    def __init__(self, *buckets: str) -> None:
        self.objects: dict[str, dict[str, tuple[bytes, str]]] = {bucket: {} for bucket in buckets}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.calls: Counter[str] = Counter()
        self.written: list[str] = []
        self.deleted: list[str] = []
        self.down = False
        self.denied: set[str] = set()

    def seed(self, bucket: str, key: str, data: bytes) -> None:
        self.objects[bucket][key] = (data, hashlib.md5(data).hexdigest())

    def keys(self, bucket: str) -> list[str]:
        return sorted(self.objects[bucket])

    def content(self, bucket: str, key: str) -> bytes:
        return self.objects[bucket][key][0]

    def _bucket(self, what: str, bucket: str, key: str = "") -> dict[str, tuple[bytes, str]]:
        self.calls[what] += 1
        if self.down:
            raise StorageUnavailable(f"{bucket} {key}: {what}: away", bucket=bucket, key=key)
        if bucket not in self.objects:
            raise StorageSetupError(f"bucket {bucket!r}: the bucket does not exist", bucket=bucket, key=key)
        if bucket in self.denied:
            raise StorageSetupError(f"bucket {bucket!r}: access is denied", bucket=bucket, key=key)
        return self.objects[bucket]

    async def list(self, bucket: str, prefix: str) -> AsyncIterator[StoredObject]:
        for key, (data, etag) in list(self._bucket("list", bucket).items()):
            if key.startswith(prefix):
                yield StoredObject(key, len(data), etag)

    async def head(self, bucket: str, key: str) -> StoredObject | None:
        found = self._bucket("head", bucket, key).get(key)
        return StoredObject(key, len(found[0]), found[1]) if found else None

    async def fetch(self, bucket: str, key: str, sink: Sink, *, etag: str, start_byte: int, length_bytes: int) -> None:
        found = self._bucket("fetch", bucket, key).get(key)
        if found is None:
            raise StorageSetupError(f"bucket {bucket!r}, object {key!r}: it does not exist", bucket=bucket, key=key)
        if found[1] != etag:
            raise ObjectChanged(f"{key} was replaced", bucket=bucket, key=key)
        data = found[0][start_byte : start_byte + length_bytes]
        if data:
            await sink(data)

    async def _body(self, body: Body, fence: Fence | None) -> bytes:
        data = bytearray()
        async for chunk in body.chunks():
            if fence and fence.remaining_s() <= 0:
                raise StorageUnavailable("muted while sending", bucket="")
            data += chunk
            await asyncio.sleep(0)
        assert hashlib.md5(data).digest() == body.md5
        return bytes(data)

    async def put(self, bucket: str, key: str, body: Body, fence: Fence) -> StoredObject:
        await fence.trusted()
        data = await self._body(body, fence)
        self._bucket("put", bucket, key)[key] = (data, hashlib.md5(data).hexdigest())
        self.written.append(key)
        return StoredObject(key, len(data), hashlib.md5(data).hexdigest())

    async def delete(self, bucket: str, key: str, fence: Fence) -> None:
        await fence.trusted()
        self._bucket("delete", bucket, key).pop(key, None)
        self.deleted.append(key)

    async def begin(self, bucket: str, key: str) -> str:
        self._bucket("begin", bucket, key)
        upload_id = f"upload-{self.calls['begin']}"
        self.uploads[upload_id] = {}
        return upload_id

    async def put_part(self, bucket: str, key: str, upload_id: str, number: int, body: Body) -> str:
        self._bucket("put_part", bucket, key)
        self.uploads[upload_id][number] = await self._body(body, None)
        return hashlib.md5(self.uploads[upload_id][number]).hexdigest()

    async def complete(
        self, bucket: str, key: str, upload_id: str, part_etags: Sequence[str], fence: Fence
    ) -> StoredObject:
        await fence.trusted()
        parts = self.uploads.pop(upload_id)
        data = b"".join(parts[number] for number in sorted(parts))
        digests = b"".join(hashlib.md5(parts[number]).digest() for number in sorted(parts))
        etag = f"{hashlib.md5(digests).hexdigest()}-{len(part_etags)}"
        self._bucket("complete", bucket, key)[key] = (data, etag)
        self.written.append(key)
        return StoredObject(key, len(data), etag)

    async def abort(self, bucket: str, key: str, upload_id: str) -> None:
        self._bucket("abort", bucket, key)
        self.uploads.pop(upload_id, None)
