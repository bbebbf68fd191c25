"""Moves one file at a time between the disk and the storage: small ones in one request, large ones in parallel parts.

Parts go by s3transfer, boto3's own; it repeats what fails, and aborts an upload that it cannot finish.

Limits: what is interrupted begins anew with that file. A kill in the middle of an upload in parts leaves them on the
storage, where nobody sees them; a rule on the bucket should remove unfinished uploads after some days.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from kelpie_celery.checkpoints.storage import REQUESTS, Storage
from kelpie_celery.checkpoints.storage_errors import mapped
from kelpie_celery.errors import DirectoryError, StorageUnavailable
from kelpie_celery.staging import content
from kelpie_celery.staging.content import Stamp, reading, writing
from kelpie_celery.staging.crowd import Crowd, Stopped
from kelpie_celery.staging.tree import shown

if TYPE_CHECKING:
    from s3transfer.manager import TransferManager
    from s3transfer.subscribers import BaseSubscriber

_LOCAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})


_DAMAGED = 3
"""How often a body may arrive damaged."""


class Carrier:
    """Shared by the threads of a crowd.

    Args:
        storage: The storage.
        crowd: Told to stop, what is under way breaks off.
        on_bytes: Called, from any thread, with how many bytes were moved; less than 0 where some are moved again.
    """

    def __init__(self, storage: Storage, crowd: Crowd, on_bytes: Callable[[int], None]) -> None:
        self._storage, self._crowd, self._on_bytes = storage, crowd, on_bytes
        self._made: TransferManager | None = None
        self._making = threading.Lock()

    def send_small(self, path: Path, bucket: str, key: str, stamp: Stamp) -> None:
        """Send a file in one request; the storage compares it with its MD5 before anybody sees it.

        Raises:
            DirectoryError: It cannot be read, or was written to since it had this stamp; then nothing is sent.
            StorageError: It was not stored.
        """
        with reading(path), path.open("rb") as file:
            data = file.read(stamp.size_bytes + 1)
        stamp.check_still(path)
        md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        for _ in range(_DAMAGED):
            if self._put(bucket, key, data, md5):
                self._on_bytes(len(data))
                return
        text = f"s3://{bucket}/{key}: writing failed: what arrives is damaged again and again; try again later"
        raise StorageUnavailable(text, bucket=bucket, key=key)

    def _put(self, bucket: str, key: str, data: bytes, md5: str) -> bool:
        """Whether it arrived as it was."""
        from botocore.exceptions import ClientError  # noqa: PLC0415 -- takes a moment to import

        s3 = self._storage.client()
        self._crowd.check()
        with mapped("writing", bucket, key):
            try:
                s3.put_object(Bucket=bucket, Key=key, Body=data, ContentMD5=md5)
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") == "BadDigest":
                    return False
                raise
        return True

    def send_large(self, path: Path, bucket: str, key: str) -> None:
        """Send a file in parts; nobody sees it before the last one is there.

        Raises:
            DirectoryError: It cannot be read.
            StorageError: It was not stored.
        """
        with self._moving("writing", bucket, key, path):
            self._manager.upload(str(path), bucket, key, subscribers=[_told(self._on_bytes)]).result()

    def fetch(self, bucket: str, key: str, size_bytes: int, path: Path) -> None:
        """Bring an object down to a new file; whether it is the right one is the caller's to see.

        Raises:
            DirectoryError: It cannot be written.
            StorageError: It did not come.
        """
        if size_bytes > content.SINGLE_BYTES:
            with self._moving("reading", bucket, key, path):
                self._manager.download(bucket, key, str(path), subscribers=[_told(self._on_bytes)]).result()
            return
        with writing(path), path.open("wb") as file:
            if size_bytes:

                def take(data: memoryview) -> None:
                    self._crowd.check()
                    with writing(path):
                        file.write(data)
                    self._on_bytes(len(data))

                self._storage.fetch(bucket, key, 0, size_bytes, take, of_bytes=size_bytes)

    def md5_of(self, bucket: str, key: str, size_bytes: int) -> str:
        """MD5 (hex) of what an object holds, read once more; for storages whose ETags are none."""
        digest = hashlib.md5(usedforsecurity=False)

        def take(data: memoryview) -> None:
            self._crowd.check()
            digest.update(data)

        self._storage.fetch(bucket, key, 0, size_bytes, take, of_bytes=size_bytes)
        return digest.hexdigest()

    def cancel(self) -> None:
        """Break off what is under way in parts, and wait until it is."""
        # Its own ``shutdown(cancel=True)`` raises a TypeError.
        self.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._made is not None:
            self._made.__exit__(kind, error, trace)

    @property
    def _manager(self) -> TransferManager:
        from s3transfer.manager import TransferConfig, TransferManager  # noqa: PLC0415 -- loads botocore

        with self._making:
            if self._made is None:
                config = TransferConfig(
                    multipart_threshold=content.SINGLE_BYTES + 1,
                    multipart_chunksize=content.PART_BYTES,
                    max_request_concurrency=REQUESTS,
                )
                self._made = TransferManager(self._storage.client(), config)
            return self._made

    @contextmanager
    def _moving(self, doing: str, bucket: str, key: str, path: Path) -> Iterator[None]:
        """Errors of s3transfer as ours: it passes on the disk's as they are."""
        from s3transfer.exceptions import RetriesExceededError  # noqa: PLC0415 -- as above

        try:
            with mapped(doing, bucket, key):
                try:
                    yield
                except OSError as error:
                    if error.errno in _LOCAL or error.filename is not None:
                        why = error.strerror or type(error).__name__
                        text = f"cannot use {shown(path)}: {why}; check the disk's room, and its owner and mode"
                        raise DirectoryError(text) from error
                    raise
        except CancelledError:
            raise Stopped from None
        except RetriesExceededError:
            text = f"s3://{bucket}/{key}: {doing} failed: the connection breaks off again and again; try again later"
            raise StorageUnavailable(text, bucket=bucket, key=key) from None


def _told(on_bytes: Callable[[int], None]) -> BaseSubscriber:
    """What s3transfer tells of the bytes that it moves."""
    from s3transfer.subscribers import BaseSubscriber  # noqa: PLC0415 -- loads botocore

    class Told(BaseSubscriber):
        def on_progress(self, future: Any, bytes_transferred: int, **_: Any) -> None:  # noqa: ARG002 -- its signature
            on_bytes(bytes_transferred)

    return Told()
