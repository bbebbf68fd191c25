"""Bodies of uploads: bytes in memory, and ranges of files that prove that they are still what was captured.

Limits: a file's range is read in pieces of `CHUNK_BYTES`, so a body holds that much, whatever its size.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from kelpie_worker.sync.errors import LocalFileError
from kelpie_worker.sync.threads import in_thread

CHUNK_BYTES = 512 * 1024


class FileChanged(LocalFileError):
    """A file is not what was captured any more; capture it again."""


class BytesBody:
    """A few bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.md5 = hashlib.md5(data, usedforsecurity=False).digest()

    @property
    def size_bytes(self) -> int:
        """How many bytes."""
        return len(self._data)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes, in pieces."""
        for start in range(0, len(self._data), CHUNK_BYTES):
            yield self._data[start : start + CHUNK_BYTES]


@dataclass(frozen=True)
class FileBody:
    """A range of an open file.

    It holds back its last piece until all have been read and their digest is the one that was captured: content that
    changed since is never sent whole, whether or not the storage checks digests.

    Attributes:
        path: For messages.
        fd: The open file.
        start_byte: Where the range begins.
        size_bytes: How long it is.
        md5: Its digest (16 bytes), as captured.
        on_sent: Called with the number of bytes of each piece that was taken.
    """

    path: Path
    fd: int
    start_byte: int
    size_bytes: int
    md5: bytes
    on_sent: Callable[[int], None] = field(default=lambda _: None, repr=False)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes, in pieces.

        Raises:
            FileChanged: They are not what was captured.
        """
        digest = hashlib.md5(usedforsecurity=False)
        at, end = self.start_byte, self.start_byte + self.size_bytes
        while at < end:
            chunk = await in_thread(partial(self._read, at, min(CHUNK_BYTES, end - at), digest.update))
            at += len(chunk)
            if not chunk or (at == end and digest.digest() != self.md5):
                raise FileChanged(f"{self.path} changed while it was being sent")
            yield chunk
            self.on_sent(len(chunk))

    def _read(self, at: int, size: int, update: Callable[[bytes], None]) -> bytes:
        chunk = os.pread(self.fd, size, at)
        update(chunk)
        return chunk
