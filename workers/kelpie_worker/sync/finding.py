"""Which commit a restore brings back.

The ledger's head of a line is the truth. A head whose manifest is gone, or a ledger that knows nothing of the line (it
was lost, or the line has expired): then the newest commit that is whole, said loudly; of those that the ledger keeps
first, else of those in the listing. Without any, the plain keys, as Kelpie or a person filled them.

Lines that a commit moved together come back together: where one of them lacks its head, another that has the same one
goes back with it, to a commit that both have. Lines whose heads were made apart stay apart.

Limits: that the content of a commit from the listing is there is looked up; that of a head is taken for granted, and
missed when it is fetched. Where there is no such commit, a line that has its head keeps it; the others have nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from kelpie_celery.checkpoints import layout
from kelpie_celery.checkpoints.manifest import BadManifest, Manifest, check_places
from kelpie_celery.errors import StorageSetupError
from kelpie_celery.ledger.types import Line, LineAddress
from kelpie_worker.sync.journal import Journal
from kelpie_worker.sync.manifests import Manifests, highest, listed
from kelpie_worker.sync.object_store import ObjectStore
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.threads import in_thread

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoundLine:
    """Where a line stands.

    Attributes:
        line: As the ledger knows it.
        manifest: The commit to bring back; None: the plain keys.
        generation: The highest that the ledger or the listing knows.
        trusted: Whether it is the ledger's head.
    """

    line: Line
    manifest: Manifest | None
    generation: int
    trusted: bool = True


_Place = tuple[str, str]
"""Bucket and prefix, as a commit names its lines; all that an attempt has are on one endpoint."""


@dataclass(frozen=True)
class _Looked:
    """A line as it was met: the commits that the storage lists, the newest first, and the ledger's head if it is there.

    The generation is the highest of the ledger and the listing.
    """

    line: Line
    ids: tuple[str, ...]
    generation: int
    head: Manifest | None

    @property
    def place(self) -> _Place:
        return self.line.address.bucket, self.line.address.prefix

    @property
    def accepted(self) -> set[str]:
        return {commit.id for commit in self.line.kept}

    def goes_with(self, lost: _Looked) -> bool:
        """Whether its head is the one that another line has lost, as far as anybody knows."""
        if self.line.head is None or self.head is None:
            return False
        if lost.line.head is None:
            return lost.place in self.head.header.lines
        return lost.line.head.id == self.line.head.id


class Finder:
    """Looks lines up in the ledger and on the storage."""

    def __init__(self, store: ObjectStore, journal: Journal, patience: Patience) -> None:
        self._store, self._journal, self._patience = store, journal, patience
        self._manifests: dict[str, Manifests] = {}
        self._sizes: dict[_Place, dict[str, int]] = {}

    async def find(self, addresses: Sequence[LineAddress]) -> dict[LineAddress, FoundLine]:
        """Look at all of them.

        Raises:
            StorageSetupError: The head of a line cannot be read, or the storage refuses.
            StorageUnavailable: It stayed away.
            LeaseLost: The attempt lost its job.
        """
        lines = await self._journal.lines(addresses) if addresses else []
        looked = [await self._patience.persist(partial(self._look, line)) for line in lines]
        lost = [one for one in looked if one.head is None]
        astray = [one for one in looked if one in lost or any(one.goes_with(other) for other in lost)]
        chosen = await self._patience.persist(partial(self._choose, astray))
        _tell(lost, chosen)
        return {
            one.line.address: FoundLine(one.line, chosen.get(one.place, one.head), one.generation, one not in astray)
            for one in looked
        }

    async def _look(self, line: Line) -> _Looked:
        address = line.address
        ids = await listed(self._store, address.bucket, address.prefix)
        generation = max(line.generation, highest(ids))
        head = await self._load(address, line.head.manifest) if line.head else None
        return _Looked(line, tuple(ids), generation, head)

    def _manifests_of(self, bucket: str) -> Manifests:
        return self._manifests.setdefault(bucket, Manifests(self._store, bucket))

    async def _load(self, address: LineAddress, key: str) -> Manifest | None:
        bucket = address.bucket
        try:
            return await self._read(bucket, address.prefix, key)
        except BadManifest as error:
            raise StorageSetupError(
                f"bucket {bucket!r}: the checkpoint's manifest {error}; roll the job back to an earlier one with"
                " 'kelpie checkpoints rollback'", bucket=bucket, key=key,
            ) from error  # fmt: skip

    async def _read(self, bucket: str, prefix: str, key: str) -> Manifest | None:
        manifest = await self._manifests_of(bucket).load(key)
        if manifest is not None:
            await in_thread(partial(check_places, manifest, prefix))
        return manifest

    async def _choose(self, astray: Sequence[_Looked]) -> dict[_Place, Manifest]:
        """The commits to take instead of heads; nothing for a line without any that is whole."""
        left, chosen = {one.place: one for one in astray}, dict[_Place, Manifest]()
        # What the ledger accepted goes before what it may have refused: a stale attempt's commit may be whole, too.
        accepted = {id_ for one in astray for id_ in one.accepted}
        others = {id_ for one in astray for id_ in one.ids} - accepted
        for id_ in (*sorted(accepted, reverse=True), *sorted(others, reverse=True)):
            chosen |= await self._together(id_, left)
            left = {place: one for place, one in left.items() if place not in chosen}
        return chosen

    async def _together(self, id_: str, left: Mapping[_Place, _Looked]) -> dict[_Place, Manifest]:
        """The manifests of one commit in all of these lines that it moved; nothing when it is not whole."""
        found: dict[_Place, Manifest] = {}
        for place, one in left.items():
            if id_ not in one.accepted and id_ not in one.ids:
                continue
            manifest = await self._candidate(place, id_)
            if manifest is None:
                return {}
            found[place] = manifest
        moved = {place for manifest in found.values() for place in manifest.header.lines} - found.keys()
        if moved & left.keys():
            return {}
        if not any(id_ in left[place].accepted for place in found):
            # What the ledger accepted was whole once, and other lines may have moved on.
            for bucket, prefix in moved:
                if await self._store.head(bucket, layout.manifest_key(prefix, id_)) is None:
                    return {}
        return found

    async def _candidate(self, place: _Place, id_: str) -> Manifest | None:
        """A commit's manifest in one line; None when that or its content is not whole."""
        bucket, prefix = place
        try:
            manifest = await self._read(bucket, prefix, layout.manifest_key(prefix, id_))
        except BadManifest:
            return None
        if manifest is None:
            return None
        if place not in self._sizes:
            listing = self._store.list(bucket, layout.data_prefix(prefix))
            self._sizes[place] = {found.key: found.size_bytes async for found in listing}
        sizes = self._sizes[place]
        return manifest if all(sizes.get(key) == size for key, size in manifest.segment_bytes.items()) else None


def _tell(lost: Sequence[_Looked], chosen: Mapping[_Place, Manifest]) -> None:
    """Say what is taken instead of heads, once for all lines that take the same commit."""
    told: set[str | None] = set()
    for one in lost:
        manifest, head = chosen.get(one.place), one.line.head
        taken = manifest.header.id if manifest else None
        if (head is None and taken is None) or taken in told:
            continue
        told.add(taken)
        address = one.line.address
        log.error(
            "the ledger's checkpoint is not to be had; taking the newest whole one of the storage",
            extra={"action": "head_missing", "bucket": address.bucket, "prefix": address.prefix,
                   "head": head.id if head else None, "taken": taken},
        )  # fmt: skip
