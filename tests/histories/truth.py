"""What a history knows for certain: the states that were, which of them each commit holds, and what must be restorable.

Content is put together here from the stored bytes, by what manifests say, without the product's restore.
"""

from __future__ import annotations

from collections.abc import Sequence

from kelpie_celery.checkpoints import content, layout
from kelpie_celery.checkpoints.manifest import Manifest, Stored, decode, resolve
from kelpie_celery.ledger.types import CommitEntry, Line
from tests.contract.fakes_s3 import MemoryStore
from tests.histories.disk import State, shown

Moment = tuple[State, ...]
"""What the directories of all lines held at one instant."""


class Torn(AssertionError):
    """A property does not hold."""


class Truth:
    """See the module.

    Args:
        store: The storage.
        bucket: The bucket of all lines.
        prefixes: Of the lines, in their order.
    """

    def __init__(self, store: MemoryStore, bucket: str, prefixes: Sequence[str]) -> None:
        self._store, self._bucket, self._prefixes = store, bucket, list(prefixes)
        self.possible: dict[str, list[Moment]] = {}
        """The moments that a commit may hold, by its id."""
        self._manifests: dict[str, Manifest] = {}
        self.judged: dict[str, Moment] = {}

    # -- reading ------------------------------------------------------------------------------------------------------

    def manifest(self, key: str) -> Manifest:
        """A manifest as it is stored."""
        if key not in self._manifests:
            chain: list[Stored] = []
            wanted: str | None = key
            while wanted is not None:
                chain.append(decode(wanted, self._store.content(self._bucket, wanted)))
                wanted = chain[-1].parent
            self._manifests[key] = resolve(reversed(chain))
        return self._manifests[key]

    def state(self, manifest: Manifest) -> State:
        """The files, links and folders that a manifest names, from the bytes that are stored."""
        found: State = dict.fromkeys(manifest.folders, ("folder",))
        for path, target in manifest.links.items():
            found[path] = "link", target
        for path, entry in manifest.files.items():
            data = b""
            for extent in entry.extents:
                segment = self._store.content(self._bucket, extent.segment)
                stored = segment[extent.at : extent.at + extent.stored]
                data += content.unpack(extent.codec, stored, extent.length, extent.digest)
            found[path] = "file", entry.mode, data
        return found

    # -- judging ------------------------------------------------------------------------------------------------------

    def judge(self, id_: str) -> Moment:
        """What a commit holds, which must be one moment of all its lines.

        Raises:
            Torn: It is none, or cannot be put together.
        """
        if id_ in self.judged:
            return self.judged[id_]
        try:
            manifests = [self.manifest(layout.manifest_key(prefix, id_)) for prefix in self._prefixes]
            moment = tuple(self.state(manifest) for manifest in manifests)
        except Exception as error:
            raise Torn(f"commit {id_} cannot be put together: {type(error).__name__}: {error}") from error
        possible = self.possible.get(id_, [])
        if moment not in possible:
            were = "\n    ".join(" | ".join(map(shown, one)) for one in possible)
            raise Torn(
                f"commit {id_} holds\n    {' | '.join(map(shown, moment))}\n  which never was; there was\n    {were}"
            )
        self.judged[id_] = moment
        return moment

    def whole(self, entry: CommitEntry) -> None:
        """Whether all that a commit refers to is there.

        Raises:
            Torn: It is not.
        """
        there = self._store.objects[self._bucket]
        if entry.manifest not in there:
            raise Torn(f"the manifest of {entry.id} is gone")
        gone = [key for key in self.manifest(entry.manifest).refers_to() if key not in there]
        if gone:
            raise Torn(f"commit {entry.id} refers to what is gone: {gone}")

    def newest_listed(self) -> str | None:
        """The newest commit that is whole on the storage, in all its lines."""
        there = self._store.objects[self._bucket]
        ids = [
            id_
            for key in there
            if key.startswith(layout.commits_prefix(self._prefixes[0])) and (id_ := layout.id_of_manifest(key))
        ]
        for id_ in sorted(ids, reverse=True):
            keys = [layout.manifest_key(prefix, id_) for prefix in self._prefixes]
            if all(key in there for key in keys) and all(self._is_there(key) for key in keys):
                return id_
        return None

    def _is_there(self, key: str) -> bool:
        try:
            return self.manifest(key).refers_to() <= self._store.objects[self._bucket].keys()
        except KeyError:
            return False  # of a chain that is gone

    def newest(self, lines: Sequence[Line]) -> str | None:
        """The commit that a restore has to bring: the head, or without one the newest that is whole.

        Raises:
            Torn: The lines do not stand at one commit, or what it holds never was.
        """
        heads = {line.head.id if line.head else None for line in lines}
        if len(heads) > 1:
            raise Torn(f"the lines stand at different commits: {heads}")
        newest = heads.pop() or self.newest_listed()
        if newest:
            self.judge(newest)
        return newest

    def expected(self, lines: Sequence[Line]) -> Moment:
        """What a restore has to bring."""
        newest = self.newest(lines)
        return self.judge(newest) if newest else tuple({} for _ in self._prefixes)
