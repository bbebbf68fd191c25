"""Reading manifests from the storage, whole, with the chain that a delta needs.

Limits: what is read is remembered for the life of the object, by key; keys are never written twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from kelpie_celery.checkpoints import layout
from kelpie_celery.checkpoints.manifest import DEEPEST_CHAIN, MAX_BYTES, BadManifest, Manifest, Stored, decode, resolve
from kelpie_celery.errors import StorageSetupError
from kelpie_worker.sync.object_store import ObjectChanged, ObjectStore
from kelpie_worker.sync.threads import in_thread


async def read_whole(store: ObjectStore, bucket: str, key: str, max_bytes: int) -> bytes | None:
    """A small object; None when it does not exist, is larger than that, or is replaced meanwhile.

    Raises:
        StorageError: The storage cannot be asked, or refuses to give it.
    """
    found = await store.head(bucket, key)
    if found is None or found.size_bytes > max_bytes:
        return None
    data = bytearray()
    try:
        await store.fetch(
            bucket, key, data.extend, etag=found.etag, start_byte=0, length_bytes=found.size_bytes
        )  # fmt: skip
    except ObjectChanged:
        return None
    except StorageSetupError:
        if await store.head(bucket, key) is None:
            return None  # deleted meanwhile
        # Access denied, archived, a key that is lost: it is there, and whoever holds it to be gone would go on without.
        raise
    return bytes(data)


class Manifests:
    """The manifests of one bucket."""

    def __init__(self, store: ObjectStore, bucket: str) -> None:
        self._store, self._bucket = store, bucket
        self._read: dict[str, Stored] = {}

    async def load(self, key: str) -> Manifest | None:
        """A whole manifest; None when it, or one of its chain, does not exist.

        Raises:
            BadManifest: It cannot be read.
            StorageError: The storage cannot be asked.
        """
        chain: list[Stored] = []
        wanted: str | None = key
        while wanted is not None:
            if len(chain) >= DEEPEST_CHAIN:
                raise BadManifest(f"{key} is a delta upon too many others")
            stored = await self._one(wanted)
            if stored is None:
                return None
            chain.append(stored)
            wanted = stored.parent
        return await in_thread(lambda: resolve(reversed(chain)))

    async def _one(self, key: str) -> Stored | None:
        if key not in self._read:
            data = await read_whole(self._store, self._bucket, key, MAX_BYTES)
            if data is None:
                return None
            self._read[key] = await in_thread(lambda: decode(key, data))
        return self._read[key]


async def listed(store: ObjectStore, bucket: str, prefix: str) -> list[str]:
    """Ids of the commits whose manifests the storage lists, the newest first.

    Raises:
        StorageError: The storage cannot be asked.
    """
    ids = [layout.id_of_manifest(found.key) async for found in store.list(bucket, layout.commits_prefix(prefix))]
    return sorted((id_ for id_ in ids if id_ is not None), reverse=True)


def highest(ids: Sequence[str]) -> int:
    """The highest generation among commits; 0 without any."""
    names = [layout.parse_id(id_) for id_ in ids]
    return max((name.generation for name in names if name), default=0)
