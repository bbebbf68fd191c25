"""Looking whether what was sent is on the storage: by HEAD for a few objects, by listing for many.

Limits: compares size and ETag with what the storage answered to the upload, whose content it verified by digest.
"""

from __future__ import annotations

from collections.abc import Iterable

from kelpie_worker.sync.object_store import ObjectStore, StoredObject
from kelpie_worker.sync.threads import run_bounded

_FEW = 32
_AT_ONCE = 8

Expected = tuple[str, str, StoredObject]
"""Bucket, the prefix to list, and the object."""


async def missing(store: ObjectStore, expected: Iterable[Expected]) -> list[tuple[str, str]]:
    """Which of the objects are not there as expected.

    Returns:
        Buckets and keys.

    Raises:
        StorageError: The storage cannot be asked.
    """
    expected = list(expected)
    found: dict[tuple[str, str], StoredObject] = {}

    async def look(item: Expected) -> None:
        bucket, _, wanted = item
        present = await store.head(bucket, wanted.key)
        if present:
            found[bucket, wanted.key] = present

    if len(expected) <= _FEW:
        await run_bounded(expected, look, _AT_ONCE)
    else:
        for bucket, prefix in dict.fromkeys((bucket, prefix) for bucket, prefix, _ in expected):
            async for present in store.list(bucket, prefix):
                found[bucket, present.key] = present
    addressed = [((bucket, wanted.key), wanted) for bucket, _, wanted in expected]
    return [address for address, wanted in addressed if not _same(found.get(address), wanted)]


def _same(present: StoredObject | None, wanted: StoredObject) -> bool:
    if present is None or present.size_bytes != wanted.size_bytes:
        return False
    return not wanted.etag or present.etag == wanted.etag
