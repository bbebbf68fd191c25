"""Looking whether what was sent is on the storage: by HEAD for a few objects, by listing for many.

Limits: compares size and ETag with what the storage answered to the upload, whose content it verified by digest. Memory
goes by what is expected, not by what else lies under a prefix.
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
    wanted: dict[tuple[str, str], StoredObject] = {}
    prefixes: dict[tuple[str, str], None] = {}
    for bucket, prefix, item in expected:
        wanted[bucket, item.key] = item
        prefixes[bucket, prefix] = None

    def note(bucket: str, present: StoredObject) -> None:
        address = bucket, present.key
        if address in wanted and _same(present, wanted[address]):
            del wanted[address]

    async def look(address: tuple[str, str]) -> None:
        present = await store.head(*address)
        if present:
            note(address[0], present)

    if len(wanted) <= _FEW:
        await run_bounded(list(wanted), look, _AT_ONCE)
    else:
        for bucket, prefix in prefixes:
            async for present in store.list(bucket, prefix):
                note(bucket, present)
    return list(wanted)


def _same(present: StoredObject, wanted: StoredObject) -> bool:
    if present.size_bytes != wanted.size_bytes:
        return False
    return not wanted.etag or present.etag == wanted.etag
