"""Whether a file that was written again only grew, by a few pieces of what it held before.

Limits: a change between the pieces is taken for none; of a file that grew by a rewrite of the same bytes nobody would
notice anything either.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

_PIECE_BYTES = 64 * 1024


@dataclass(frozen=True)
class Sample:
    """A file's size, and a digest of its beginning, middle and end."""

    size_bytes: int
    digest: bytes


def sample_of(path: Path, size_bytes: int | None = None) -> Sample | None:
    """The sample of a file, or of its first ``size_bytes``; None when it cannot be read, or is shorter."""
    try:
        with path.open("rb") as file:
            there = file.seek(0, 2)
            size = there if size_bytes is None else size_bytes
            if there < size:
                return None
            digest = hashlib.sha256()
            for at in (0, max(0, size // 2 - _PIECE_BYTES // 2), max(0, size - _PIECE_BYTES)):
                file.seek(at)
                digest.update(file.read(min(_PIECE_BYTES, size - at)))
    except OSError:
        return None
    return Sample(size, digest.digest())


def grew(path: Path, before: Sample) -> bool:
    """Whether a file still begins with what it held, and has more now."""
    return (now := sample_of(path, before.size_bytes)) == before and now is not None and _size(path) > before.size_bytes


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
