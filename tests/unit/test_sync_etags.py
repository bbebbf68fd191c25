"""Whether a file is what a storage lists."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kelpie_celery.checkpoints import content
from kelpie_celery.checkpoints.content import MIB
from kelpie_celery.checkpoints.manifest import Extent
from kelpie_celery.etags import Etag
from kelpie_worker.sync.etags import is_content_of, part_bytes_of
from kelpie_worker.sync.object_store import StoredObject

MD5 = "d41d8cd98f00b204e9800998ecf8427e"


def etag_of(data: bytes, part_bytes: int) -> str:
    """As S3 defines it."""
    if not part_bytes:
        return hashlib.md5(data).hexdigest()
    parts = [hashlib.md5(data[at : at + part_bytes]).digest() for at in range(0, len(data), part_bytes)]
    return f"{hashlib.md5(b''.join(parts)).hexdigest()}-{len(parts)}"


@pytest.mark.parametrize(
    ("etag", "size", "part_bytes"),
    [
        (MD5, 0, 0),
        (MD5, 100 * MIB, 0),
        (f"{MD5}-1", 5 * MIB, 32 * MIB),
        (f"{MD5}-3", 20 * MIB, 8 * MIB),
        (f"{MD5}-5", 40 * MIB, 8 * MIB),
        (f"{MD5}-2", 40 * MIB, 32 * MIB),
        (f"{MD5}-8000", 80_000 * MIB, None),
        (f"{MD5}-9445", 85_000 * MIB, 9 * MIB),
        (f"{MD5}-7", 40 * MIB, None),
        (f"{MD5}-x", 40 * MIB, None),
        ("encrypted", 40 * MIB, None),
        ("", 0, None),
    ],
)
def test_an_etag_says_how_an_object_was_cut(etag: str, size: int, part_bytes: int | None) -> None:
    assert part_bytes_of(etag, size) == part_bytes


@given(st.binary(min_size=1, max_size=50), st.integers(0, 60), st.lists(st.integers(0, 50), max_size=4))
def test_an_etag_does_not_depend_on_the_pieces(data: bytes, part_bytes: int, cuts: list[int]) -> None:
    etag, at = Etag(part_bytes), 0
    for cut in [*sorted(cuts), len(data)]:
        etag.update(memoryview(data)[at:cut])
        at = max(at, cut)
    assert etag.value() == etag_of(data, part_bytes)


@pytest.mark.parametrize(
    ("size", "part_bytes"), [(0, 0), (1, 0), (3 * MIB, 0), (9 * MIB, 8 * MIB), (33 * MIB, 8 * MIB)]
)
async def test_a_file_is_told_by_size_and_etag(tmp_path: Path, size: int, part_bytes: int) -> None:
    data = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    path = tmp_path / "file"
    path.write_bytes(data)
    found = StoredObject("k", size, etag_of(data, part_bytes))
    assert await is_content_of(path, found)
    assert not await is_content_of(path, StoredObject("k", size + 1, found.etag))
    assert not await is_content_of(path, StoredObject("k", size, etag_of(data + b"x", part_bytes)))
    assert not await is_content_of(tmp_path / "none", found)


async def test_a_file_must_be_made_of_the_extents_besides(tmp_path: Path) -> None:
    data = b"content" * 1000
    path = tmp_path / "file"
    path.write_bytes(data)
    found = StoredObject("k", len(data), etag_of(data, 0))

    def extents(*pieces: bytes) -> list[Extent]:
        return [Extent("s", 0, len(piece), len(piece), "", content.digest(piece)) for piece in pieces]

    assert await is_content_of(path, found, extents(data[:5000], data[5000:]))
    assert not await is_content_of(path, found, extents(data[:5000], bytes(2000)))
    assert not await is_content_of(path, found, extents(data[:5000]))
    assert not await is_content_of(path, found, extents(data, b"more"))
