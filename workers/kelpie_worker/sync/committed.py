"""Restoring ``before`` blocks from a commit: exactly its files, links and folders, as far as the pattern selects them.

Limits: into directories that have been emptied; of two blocks that bring one file, the later one counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from kelpie_celery.checkpoints.manifest import FileEntry, Manifest
from kelpie_celery.errors import StorageSetupError
from kelpie_worker.sync.cached_inputs import CachedInputs
from kelpie_worker.sync.download import check_room
from kelpie_worker.sync.errors import disk_errors
from kelpie_worker.sync.fetching import Fetcher, Target, make_folders, make_links
from kelpie_worker.sync.object_store import ObjectStore
from kelpie_worker.sync.paths import conflict, relative_path
from kelpie_worker.sync.plan import Placed
from kelpie_worker.sync.progress import Meter, OnProgress
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.threads import in_thread

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CommittedBlock:
    """What came out of a commit into one block's directory.

    Attributes:
        block: The ``before`` block.
        manifest: Of the commit.
        files: What was brought, by relative path.
        names: Links and folders that were.
    """

    block: Placed
    manifest: Manifest
    files: dict[str, FileEntry] = field(default_factory=dict)
    names: Set[str] = frozenset()

    @property
    def total_bytes(self) -> int:
        """The size of all files."""
        return sum(entry.size for entry in self.files.values())


class CommittedRestore:
    """Restores from commits.

    Args:
        store: The storage.
        patience: With a storage that is away.
        meter: Counts what arrives.
        on_progress: Told every ten seconds.
        cache: The machine's, which gives way where the disk has no room for both.
    """

    def __init__(
        self, store: ObjectStore, patience: Patience, meter: Meter, on_progress: OnProgress | None = None, *,
        cache: CachedInputs | None = None,
    ) -> None:  # fmt: skip
        self._store, self._patience, self._meter, self._on_progress = store, patience, meter, on_progress
        self._cache = cache

    async def restore(
        self, blocks: Sequence[tuple[Placed, Manifest]], taken: Mapping[Path, int]
    ) -> list[CommittedBlock]:
        """Fill the blocks' directories.

        Args:
            blocks: With the commit of each.
            taken: Files that other blocks have brought, with the index of the block: those of later blocks stay.

        Raises:
            StorageSetupError: A path has no place in its directory, or content is gone or damaged.
            StorageUnavailable: The storage stayed away.
            DiskFull: No room.
        """
        selected = await in_thread(partial(_select_all, blocks, taken))
        for one in selected:
            await in_thread(partial(_prepare, one))
        await self._check_room(selected)
        async with self._meter.reporting(self._on_progress):
            for restored in selected:
                await self._one(restored)
        return selected

    async def _check_room(self, selected: Sequence[CommittedBlock]) -> None:
        needed_bytes: dict[Path, int] = {}
        for one in selected:
            needed_bytes[one.block.path] = needed_bytes.get(one.block.path, 0) + one.total_bytes
        if self._cache is not None and needed_bytes:
            await self._cache.make_room(needed_bytes)
        await in_thread(partial(check_room, needed_bytes))

    async def _one(self, restored: CommittedBlock) -> None:
        began_s = asyncio.get_running_loop().time()
        block = restored.block
        targets = [Target(block.path / relative, entry) for relative, entry in restored.files.items()]
        await Fetcher(self._store, block.bucket, self._patience, self._meter).fetch(targets)
        await in_thread(partial(_link, restored))
        log.info(
            "checkpoint restored",
            extra={"action": "restored", "commit": restored.manifest.header.id, "files": len(restored.files),
                   "bytes": restored.total_bytes,
                   "duration_s": round(asyncio.get_running_loop().time() - began_s, 3)},
        )  # fmt: skip


def sizes_of(blocks: Sequence[tuple[Placed, Manifest]]) -> dict[Path, tuple[Path, int]]:
    """What commits would bring, if nothing else did: by file the directory of its block and its size in bytes."""
    return {
        one.block.path / relative: (one.block.path, entry.size)
        for one in _select_all(blocks, {})
        for relative, entry in one.files.items()
    }


def _select_all(blocks: Sequence[tuple[Placed, Manifest]], taken: Mapping[Path, int]) -> list[CommittedBlock]:
    selected = [_select(block, manifest, taken) for block, manifest in blocks]
    # What a later block brings is not this one's: what is there afterwards is not what this one's commit says.
    last = {one.block.path / relative: one.block.index for one in selected for relative in one.files}
    return [
        replace(one, files={r: e for r, e in one.files.items() if last[one.block.path / r] == one.block.index})
        for one in selected
    ]


def _select(block: Placed, manifest: Manifest, taken: Mapping[Path, int]) -> CommittedBlock:
    def wanted(relative: str) -> bool:
        # The pattern of a ``before`` block is matched against the whole key.
        return block.selects(block.prefix + relative) and taken.get(block.path / relative, -1) <= block.index

    files = {relative: entry for relative, entry in manifest.files.items() if wanted(relative)}
    names = {link for link in manifest.links if wanted(link)}
    if block.pattern is None:
        names |= set(manifest.folders)
    for relative in (*files, *names):
        if relative_path(block.bucket, block.prefix, block.prefix + relative) in {"", f"{relative.rstrip('/')}/"}:
            raise _no_checkpoint(manifest, block, f"something without a name: {relative!r}")
    return CommittedBlock(block, manifest, files, names)


def _prepare(restored: CommittedBlock) -> None:
    block = restored.block
    links = restored.manifest.links.keys() & restored.names
    folders = [name for name in restored.manifest.folders if name in restored.names]
    # Nothing is ever stored from below a link.
    clash = conflict([*restored.files, *links, *(f"{folder}/." for folder in folders)])
    if clash:
        raise _no_checkpoint(restored.manifest, block, f"{clash[0]!r} both as a folder and as something else")
    with disk_errors(block.path):
        block.path.mkdir(parents=True, exist_ok=True)
    make_folders(block.path, block.bucket, block.prefix, folders, restored.files)


def _no_checkpoint(manifest: Manifest, block: Placed, what: str) -> StorageSetupError:
    return StorageSetupError(
        f"bucket {block.bucket!r}, object {manifest.key!r}: checkpoint {manifest.header.id} holds {what};"
        " roll the job back to an earlier one with 'kelpie checkpoints rollback'",
        bucket=block.bucket, key=manifest.key,
    )  # fmt: skip


def _link(restored: CommittedBlock) -> None:
    block = restored.block
    links = {path: target for path, target in restored.manifest.links.items() if path in restored.names}
    for relative in make_links(block.path, block.bucket, block.prefix, links):
        log.warning(
            "a link of the checkpoint leads out of its directory and was left out",
            extra={"action": "link_refused", "path": str(block.path / relative)},
        )
