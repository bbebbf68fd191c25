"""Whether an object that a storage lists is what a local file holds, by its size and ETag.

S3's ETag is the MD5 of the content, or for an object made of parts the MD5 of their MD5s and their number. So a file is
read once, cut as that number says; at low priority, since it only saves sending and the job's command needs the CPU.

Limits: a storage whose ETags are no MD5 (some ways of encryption) always says no, and the file is stored once more.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from blake3 import blake3

from kelpie_celery.checkpoints.content import SEGMENT_BYTES, WINDOW_BYTES
from kelpie_celery.checkpoints.manifest import Extent
from kelpie_celery.etags import Etag, looks_like_md5, looks_like_parts
from kelpie_worker.sync.bodies import blake3_of, pieces
from kelpie_worker.sync.errors import LocalFileError
from kelpie_worker.sync.object_store import StoredObject
from kelpie_worker.sync.stable_read import open_for_reading, part_size
from kelpie_worker.sync.threads import idle_threads, in_thread

_STEP_BYTES = 8 * 1024 * 1024


def part_bytes_of(etag: str, size_bytes: int) -> int | None:
    """How an object's ETag says that it was cut.

    Returns:
        The size of its parts, if it is one that we make; 0 when it was stored in one request; None when the ETag says
        nothing.
    """
    if looks_like_md5(etag):
        return 0
    if looks_like_parts(etag):
        count = int(etag.partition("-")[2])
        for part_bytes in (part_size(size_bytes), WINDOW_BYTES, SEGMENT_BYTES):
            if count == max(1, -(-size_bytes // part_bytes)):
                return part_bytes
    return None


async def is_content_of(path: Path, found: StoredObject, extents: Iterable[Extent] | None = None) -> bool:
    """Whether an object is what a file holds.

    Args:
        path: The file.
        found: The object.
        extents: What the file must be made of, besides; None for whatever it holds.
    """
    try:
        fd = await in_thread(partial(open_for_reading, path))
    except LocalFileError:
        return False
    try:
        size_bytes = os.fstat(fd).st_size
        part_bytes = part_bytes_of(found.etag, size_bytes)
        if part_bytes is None or found.size_bytes != size_bytes:
            return False
        etag, at = Etag(part_bytes), 0
        for length, digest in _steps(size_bytes, extents):
            feed = partial(_feed, etag, path, fd, at, length, digest)
            if not await in_thread(feed, idle_threads()):
                return False
            at += length
        return at == size_bytes and etag.value() == found.etag
    except LocalFileError:
        return False
    finally:
        os.close(fd)


def _steps(size_bytes: int, extents: Iterable[Extent] | None) -> Iterable[tuple[int, str]]:
    """How much to read at a time, and what digest it must have, if any."""
    if extents is not None:
        return [(extent.length, extent.digest) for extent in extents]
    return [(min(_STEP_BYTES, size_bytes - at), "") for at in range(0, size_bytes, _STEP_BYTES)]


def _feed(etag: Etag, path: Path, fd: int, at: int, length: int, digest: str) -> bool:
    content = blake3()
    for piece in pieces(path, fd, at, length):
        etag.update(piece)
        if digest:
            content.update(piece)
    return not digest or blake3_of(content).hex() == digest
