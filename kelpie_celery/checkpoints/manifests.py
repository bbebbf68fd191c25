"""Reading the manifests of a storage for a person's commands, and telling whether what they refer to is there.

Limits: what is read is remembered for the life of the object, by bucket and key; keys are never written twice.
"""

from __future__ import annotations

from collections.abc import Mapping

from kelpie_celery.checkpoints import layout
from kelpie_celery.checkpoints.manifest import DEEPEST_CHAIN, MAX_BYTES, BadManifest, Manifest, Stored, decode, resolve
from kelpie_celery.checkpoints.storage import Storage


class Manifests:
    """The manifests, and the listings of content, of one storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._read: dict[tuple[str, str], Stored] = {}
        self._sizes: dict[tuple[str, str], Mapping[str, int]] = {}

    def load(self, bucket: str, key: str) -> Manifest | None:
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
            stored = self._one(bucket, wanted)
            if stored is None:
                return None
            chain.append(stored)
            wanted = stored.parent
        return resolve(reversed(chain))

    def _one(self, bucket: str, key: str) -> Stored | None:
        if (bucket, key) not in self._read:
            data = self._storage.read(bucket, key, MAX_BYTES)
            if data is None:
                return None
            self._read[bucket, key] = decode(key, data)
        return self._read[bucket, key]

    def ids(self, bucket: str, prefix: str) -> list[str]:
        """The commits whose manifests the storage lists, the newest first.

        Raises:
            StorageError: The storage cannot be asked.
        """
        listed = self._storage.list(bucket, layout.commits_prefix(prefix))
        ids = (layout.id_of_manifest(found.key) for found in listed)
        return sorted((id_ for id_ in ids if id_ is not None), reverse=True)

    def missing(self, bucket: str, prefix: str, manifest: Manifest) -> list[str]:
        """Keys of the content that a manifest refers to and the storage does not list, or not with its size.

        Raises:
            StorageError: The storage cannot be asked.
        """
        sizes = self._sizes_of(bucket, prefix)
        return sorted(key for key in manifest.segments() if sizes.get(key) != manifest.segment_bytes.get(key))

    def _sizes_of(self, bucket: str, prefix: str) -> Mapping[str, int]:
        if (bucket, prefix) not in self._sizes:
            listed = self._storage.list(bucket, layout.data_prefix(prefix))
            self._sizes[bucket, prefix] = {found.key: found.size_bytes for found in listed}
        return self._sizes[bucket, prefix]

    def is_whole(self, bucket: str, prefix: str, manifest: Manifest) -> bool:
        """Whether all that a commit consists of is there, in all the lines that it moved.

        Raises:
            BadManifest: The manifest of another line cannot be read.
            StorageError: The storage cannot be asked.
        """
        others = [place for place in manifest.header.lines if place != (bucket, prefix)]
        if self.missing(bucket, prefix, manifest):
            return False
        for other_bucket, other_prefix in others:
            other = self.load(other_bucket, layout.manifest_key(other_prefix, manifest.header.id))
            if other is None or self.missing(other_bucket, other_prefix, other):
                return False
        return True


def highest(ids: list[str]) -> int:
    """The highest generation among commits; 0 without any."""
    names = [layout.parse_id(id_) for id_ in ids]
    return max((name.generation for name in names if name), default=0)
