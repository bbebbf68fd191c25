"""What sync needs of an object storage: a seam with two implementations, S3 and the tests' own.

Four operations make something visible: ``put``, ``complete``, ``copy`` and ``delete``. They take the fence, wait while
it is muted, and cannot take effect after the trust that they were sent with has run out.

Bodies and sinks work in a transfer thread, not on the event loop. A call that is cancelled ends promptly, and not
before its thread has let go of them.

Limits: buckets are never made or configured here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kelpie_celery.errors import StorageUnavailable
from kelpie_worker.sync.fence import Fence


@dataclass(frozen=True)
class StoredObject:
    """An object as a listing shows it.

    Attributes:
        key: Its key.
        size_bytes: Its size.
        etag: Without its quotes.
        modified: When it was stored, seconds since the epoch by the storage's clock; 0 where that was not told.
    """

    key: str
    size_bytes: int
    etag: str
    modified: float = field(default=0.0, compare=False)


class ObjectChanged(StorageUnavailable):
    """The object is not the one that was listed any more; look again."""


class UploadGone(StorageUnavailable):
    """The upload in parts is gone: completed before, aborted by somebody, or cleaned away; begin a new one."""


class Body(Protocol):
    """Bytes to send, of known length and digest; they can be read again for another try.

    All of it is asked for in a transfer thread.
    """

    @property
    def size_bytes(self) -> int:
        """How many bytes."""

    def crc32(self) -> int:
        """CRC32 of all of them."""

    def md5(self) -> bytes:
        """MD5 of all of them (16 bytes); asked for only where a storage does not verify a CRC32."""

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The bytes, in pieces of at most 1 MiB, each of which is valid until the next one is asked for.

        Raises:
            FileChanged: They are not what was promised any more.
        """


Sink = Callable[[memoryview], None]
"""Takes what arrives, in order, in a transfer thread. What it is given is valid until it returns."""


class ObjectStore(Protocol):
    """An object storage.

    Every method raises ``StorageSetupError`` (what a user must mend: no such bucket, access denied; for ``fetch`` and
    uploads also no such object) or ``StorageUnavailable`` (what may pass), each with bucket and key.
    """

    def list(self, bucket: str, prefix: str) -> AsyncIterator[StoredObject]:
        """All objects whose keys begin with ``prefix``, in no particular order."""

    async def head(self, bucket: str, key: str) -> StoredObject | None:
        """One object, or None when there is none."""

    async def fetch(self, bucket: str, key: str, sink: Sink, *, etag: str, start_byte: int, length_bytes: int) -> None:
        """Hand ``length_bytes`` of the object, from ``start_byte``, to ``sink``.

        Args:
            bucket: The bucket.
            key: The object.
            sink: Takes the bytes.
            etag: The object's, as it was listed; empty for whatever is there.
            start_byte: Where to begin.
            length_bytes: How much.

        Raises:
            ObjectChanged: Its ETag is not ``etag`` any more.
            StorageUnavailable: Also when fewer bytes arrive; what did arrive has been handed over.
        """

    async def put(self, bucket: str, key: str, body: Body, fence: Fence) -> StoredObject:
        """Store an object in one request; the storage verifies its digest."""

    async def copy(self, bucket: str, key: str, source_key: str, fence: Fence) -> StoredObject:
        """Let the storage copy an object of up to 5 GB within a bucket."""

    async def delete(self, bucket: str, key: str, fence: Fence, *, forever: bool = False) -> None:
        """Delete an object; one that does not exist counts as deleted.

        Args:
            bucket: The bucket.
            key: The object.
            fence: Of the attempt.
            forever: In a bucket that keeps versions, delete the newest version itself instead of hiding it.
        """

    async def begin(self, bucket: str, key: str) -> str:
        """Begin an upload in parts; its id."""

    async def put_part(self, bucket: str, key: str, upload_id: str, number: int, body: Body) -> str:
        """Send part ``number`` (from 1), invisible until ``complete``; its ETag.

        Raises:
            UploadGone: There is no such upload.
        """

    async def copy_part(
        self, bucket: str, key: str, upload_id: str, number: int, source_key: str, start_byte: int, length_bytes: int
    ) -> str:
        """Let the storage copy a range of another object of the bucket as part ``number``; its ETag.

        Raises:
            UploadGone: There is no such upload.
        """

    async def complete(
        self, bucket: str, key: str, upload_id: str, part_etags: Sequence[str], fence: Fence, *, size_bytes: int
    ) -> StoredObject:
        """Make an upload in parts visible.

        Args:
            bucket: The bucket.
            key: The object.
            upload_id: The upload.
            part_etags: In the order of the parts.
            fence: Of the attempt.
            size_bytes: What all parts come to.

        Raises:
            UploadGone: There is no such upload.
            StorageUnavailable: Also when what is on the storage then has another size.
        """

    async def abort(self, bucket: str, key: str, upload_id: str) -> None:
        """Give up an upload in parts; one that is gone already counts as given up."""
