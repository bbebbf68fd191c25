"""What sync needs of an object storage: a seam with two implementations, S3 and the tests' own.

Three operations make something visible: ``put``, ``complete`` and ``delete``. They take the fence, wait while it is
muted, and cannot take effect after the trust that they were sent with has run out.

Limits: buckets are never made or configured here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kelpie_celery.errors import StorageUnavailable
from kelpie_worker.sync.fence import Fence


@dataclass(frozen=True)
class StoredObject:
    """An object as a listing shows it; ``etag`` is without its quotes."""

    key: str
    size_bytes: int
    etag: str


class ObjectChanged(StorageUnavailable):
    """The object is not the one that was listed any more; look again."""


class UploadGone(StorageUnavailable):
    """The upload in parts is gone: completed before, aborted by somebody, or cleaned away; begin a new one."""


class Body(Protocol):
    """Bytes to send, of known length and digest; they can be read again for another try."""

    @property
    def size_bytes(self) -> int:
        """How many bytes."""

    @property
    def md5(self) -> bytes:
        """MD5 of all of them (16 bytes)."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The bytes, in pieces of at most 1 MiB."""


Sink = Callable[[bytes], Awaitable[None]]


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

        Raises:
            ObjectChanged: Its ETag is not ``etag`` any more.
            StorageUnavailable: Also when fewer bytes arrive; what did arrive has been handed over.
        """

    async def put(self, bucket: str, key: str, body: Body, fence: Fence) -> StoredObject:
        """Store an object in one request; the storage verifies its digest."""

    async def delete(self, bucket: str, key: str, fence: Fence) -> None:
        """Delete an object; one that does not exist counts as deleted."""

    async def begin(self, bucket: str, key: str) -> str:
        """Begin an upload in parts; its id."""

    async def put_part(self, bucket: str, key: str, upload_id: str, number: int, body: Body) -> str:
        """Send part ``number`` (from 1), invisible until ``complete``; its ETag.

        Raises:
            UploadGone: There is no such upload.
        """

    async def complete(
        self, bucket: str, key: str, upload_id: str, part_etags: Sequence[str], fence: Fence
    ) -> StoredObject:
        """Make an upload in parts visible.

        Raises:
            UploadGone: There is no such upload.
        """

    async def abort(self, bucket: str, key: str, upload_id: str) -> None:
        """Give up an upload in parts; one that is gone already counts as given up."""
