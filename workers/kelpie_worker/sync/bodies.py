"""Bodies of uploads: bytes in memory, files of our own, and ranges of files that prove that they are what was captured.

Limits: a file is read through one buffer a thread, in pieces of `CHUNK_BYTES`, whatever its size.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3
from zlib_ng.zlib_ng import crc32

from kelpie_worker.sync.errors import LocalFileError
from kelpie_worker.sync.threads import buffer

CHUNK_BYTES = 512 * 1024


class FileChanged(LocalFileError):
    """A file is not what was captured any more; capture it again."""


class PartDigest(NamedTuple):
    """What a range of a file is: its CRC32, and its BLAKE3 (16 bytes)."""

    crc32: int
    blake3: bytes


def blake3_of(digest: blake3) -> bytes:
    """As much of a BLAKE3 as tells contents apart."""
    return digest.digest(length=16)


class BytesBody:
    """A few bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size_bytes(self) -> int:
        """How many bytes."""
        return len(self._data)

    def crc32(self) -> int:
        """CRC32 of them."""
        return crc32(self._data)

    def md5(self) -> bytes:
        """MD5 of them."""
        return hashlib.md5(self._data, usedforsecurity=False).digest()

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The bytes, in pieces."""
        view = memoryview(self._data)
        for start in range(0, len(view), CHUNK_BYTES):
            yield view[start : start + CHUNK_BYTES]


def _nobody(_: int) -> None:
    pass


@dataclass(frozen=True)
class ScratchBody:
    """A file of our own, or a range of one, which nobody else writes to; it is opened for each try.

    Attributes:
        path: The file.
        size_bytes: Its size, or how long the range is.
        crc: CRC32 of that.
        start_byte: Where the range begins.
        on_sent: Called, in the transfer thread, with the number of bytes of each piece that was taken.
    """

    path: Path
    size_bytes: int
    crc: int
    start_byte: int = 0
    on_sent: Callable[[int], None] = field(default=_nobody, repr=False)

    def crc32(self) -> int:
        """As it was given."""
        return self.crc

    def md5(self) -> bytes:
        """MD5 of it, which is read for that."""
        digest = hashlib.md5(usedforsecurity=False)
        for piece in self._pieces():
            digest.update(piece)
        return digest.digest()

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The bytes, in pieces.

        Raises:
            FileChanged: The file is gone, or shorter.
            LocalFileError: It cannot be read.
        """
        for piece in self._pieces():
            yield piece
            self.on_sent(len(piece))

    def _pieces(self) -> Iterator[memoryview]:
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise FileChanged(f"cannot read {self.path}: {error.strerror}") from error
        try:
            yield from pieces(self.path, fd, self.start_byte, self.size_bytes)
        finally:
            os.close(fd)


@dataclass(frozen=True)
class FileBody:
    """A range of an open file of somebody else's.

    It holds back its last piece until all have been read and their digest is the one that was captured: content that
    changed since is never sent whole, whether or not the storage checks digests.

    Attributes:
        path: For messages.
        fd: The open file.
        start_byte: Where the range begins.
        size_bytes: How long it is.
        digest: What it is, as captured.
        on_sent: Called, in the transfer thread, with the number of bytes of each piece that was taken.
    """

    path: Path
    fd: int
    start_byte: int
    size_bytes: int
    digest: PartDigest
    on_sent: Callable[[int], None] = field(default=_nobody, repr=False)

    def crc32(self) -> int:
        """As it was captured."""
        return self.digest.crc32

    def md5(self) -> bytes:
        """MD5 of the range, which is read for it.

        Raises:
            FileChanged: It is not what was captured.
        """
        digest = hashlib.md5(usedforsecurity=False)
        for piece in self._proven():
            digest.update(piece)
        return digest.digest()

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The bytes, in pieces.

        Raises:
            FileChanged: They are not what was captured.
        """
        for piece in self._proven():
            yield piece
            self.on_sent(len(piece))

    def _proven(self) -> Iterator[memoryview]:
        digest, read = blake3(), 0
        for piece in pieces(self.path, self.fd, self.start_byte, self.size_bytes):
            digest.update(piece)
            read += len(piece)
            if read == self.size_bytes and blake3_of(digest) != self.digest.blake3:
                raise FileChanged(f"{self.path} changed while it was being sent")
            yield piece


def pieces(path: Path, fd: int, start_byte: int, size_bytes: int) -> Iterator[memoryview]:
    """A range of an open file, through this thread's buffer.

    Raises:
        FileChanged: The file ends before the range does.
        LocalFileError: It cannot be read.
    """
    view, at, end = buffer()[:CHUNK_BYTES], start_byte, start_byte + size_bytes
    while at < end:
        try:
            count = os.preadv(fd, [view[: end - at]], at)
        except OSError as error:
            raise LocalFileError(f"cannot read {path}: {error.strerror}") from error
        if not count:
            raise FileChanged(f"{path} became shorter while it was being sent")
        at += count
        yield view[:count]
