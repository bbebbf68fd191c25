"""How content is cut, named and packed.

A file is cut at multiples of its window. A window is one extent or, after appends, a few. The digest of an extent is
the first 16 bytes of BLAKE3 of its raw bytes: it tells what changed, and what arrived damaged.

Limits: an extent is held in memory as a whole.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import zstandard
from blake3 import blake3

MIB = 1024 * 1024
WINDOW_BYTES = 8 * MIB
SEGMENT_BYTES = 32 * MIB
"""The largest object that a commit makes; each is sent in one request."""
SMALL_BYTES = MIB
"""Files below share segments with others."""
_LARGE_FILE_BYTES = 64 * 1024 * MIB
_DIGEST_BYTES = 16
_PROBE_BYTES = 8 * 1024
_LEVEL = 3
_PAYS = 0.85
"""What is packed must become at most this much of itself."""
RAW, ZSTD = "", "zstd"
_UNKNOWN = -1
"""What zstandard says of a frame that does not tell its content's size."""
_local = threading.local()


class Packed(NamedTuple):
    """Bytes as they are stored."""

    codec: str
    data: bytes | memoryview


class Damaged(ValueError):
    """Stored bytes are not what their digest says."""


def window_bytes(size_bytes: int) -> int:
    """How large the windows of a file are: 8 MiB; of files over 64 GiB 32 MiB, to keep manifests small."""
    return SEGMENT_BYTES if size_bytes > _LARGE_FILE_BYTES else WINDOW_BYTES


def digest(data: bytes | memoryview) -> str:
    """The digest of some raw bytes (hex); lets other threads run meanwhile."""
    return blake3(data).hexdigest(length=_DIGEST_BYTES)


def pack(data: bytes | memoryview) -> Packed:
    """Compress where one of three probes says that it may pay, and it does."""
    if len(data) < 64 or not _seems_to_pay(data):  # noqa: PLR2004 -- a frame's own bytes
        return Packed(RAW, data)
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(data)
    return Packed(ZSTD, packed) if len(packed) <= _PAYS * len(data) else Packed(RAW, data)


def _seems_to_pay(data: bytes | memoryview) -> bool:
    if len(data) <= 2 * _PROBE_BYTES:
        return True
    packer = _prober()
    for at in (len(data) // 8, len(data) // 2, len(data) - _PROBE_BYTES):
        probe = data[at : at + _PROBE_BYTES]
        if len(packer.compress(probe)) <= _PAYS * len(probe):
            return True
    return False


def _prober() -> zstandard.ZstdCompressor:
    """This thread's compressor for probes: to make one takes as long as to use it."""
    packer: zstandard.ZstdCompressor | None = getattr(_local, "prober", None)
    if packer is None:
        packer = _local.prober = zstandard.ZstdCompressor(level=1)
    return packer


def unpack(codec: str, data: bytes | memoryview, length: int, expected: str) -> bytes | memoryview:
    """The raw bytes of an extent, verified.

    Args:
        codec: How it is stored.
        data: Its stored bytes.
        length: Of the raw ones.
        expected: Their digest.

    Raises:
        Damaged: They are not what they should be.
    """
    raw: bytes | memoryview = data
    if codec == ZSTD:
        try:
            # Memory for what the frame itself says would be taken before a byte is looked at.
            if zstandard.frame_content_size(data) not in {length, _UNKNOWN}:
                raise Damaged("is packed with another length than it is said to have")
            raw = zstandard.ZstdDecompressor().decompress(data, max_output_size=length)
        except zstandard.ZstdError as error:
            raise Damaged(f"cannot be unpacked: {error}") from error
    elif codec != RAW:
        raise Damaged(f"is packed in a way that this version does not know: {codec!r}")
    if len(raw) != length or digest(raw) != expected:
        raise Damaged("is not what its digest says")
    return raw
