"""Bringing down what a job needs before it starts: all of it, verified, or an error that names what is missing.

Limits: files as they are under the plain keys; a checkpoint of several files is as consistent as the keys are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from kelpie_celery.errors import StorageSetupError
from kelpie_worker.sync.cache import READ_ONLY_MODE
from kelpie_worker.sync.cached_inputs import AT_ONCE, CachedInputs
from kelpie_worker.sync.dirs import prepare
from kelpie_worker.sync.download import Downloader, Wanted, check_room
from kelpie_worker.sync.errors import disk_errors
from kelpie_worker.sync.object_store import ObjectStore, StoredObject
from kelpie_worker.sync.paths import check_parents, conflict, is_reserved, relative_path
from kelpie_worker.sync.plan import Placed
from kelpie_worker.sync.progress import Meter, OnProgress
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.threads import in_thread, run_bounded

log = logging.getLogger(__name__)

GIVE_UP_S = 300.0
"""How long a restore waits for a storage that gives no sign of life, seconds."""


@dataclass(frozen=True)
class RestoredFile:
    """One file that was brought down: from which block, under which relative path, out of which object."""

    block: Placed
    relative: str
    object: StoredObject


@dataclass(frozen=True)
class RestoreReport:
    """What a restore did: files that came from plain keys, and the commits that others came from."""

    files: tuple[RestoredFile, ...] = ()
    bytes: int = 0
    seconds: float = 0.0
    commits: tuple[str, ...] = ()


class Restore(Protocol):
    """The seam: brings the directories of ``before`` blocks to the state that the storage holds."""

    async def restore(self, blocks: Sequence[Placed]) -> RestoreReport:
        """Empty the blocks' directories and fill them.

        Raises:
            StorageSetupError: An input prefix is empty, a bucket or object is missing, or access is denied.
            UnsafeKey: A key has no place in its directory.
            StorageUnavailable: The storage stayed away.
            DiskFull: No room.
        """


@dataclass
class _Contents:
    """What one block's prefix holds: files by relative path, and folders that exist by a marker."""

    files: dict[str, StoredObject] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)


class PlainRestore:
    """Restores what lies under the plain keys.

    Args:
        store: The storage.
        compression: Whether keys that end in ``.gz`` are unpacked.
        give_up_s: Patience with a storage that gives no sign of life, seconds.
        meter: Counts what arrives.
        on_progress: Told every ten seconds.
        cache: The machine's, for inputs.
    """

    def __init__(
        self, store: ObjectStore, *, compression: bool = False, give_up_s: float = GIVE_UP_S,
        meter: Meter | None = None, on_progress: OnProgress | None = None, cache: CachedInputs | None = None,
    ) -> None:  # fmt: skip
        self._store, self._compression, self._give_up_s = store, compression, give_up_s
        self._meter, self._on_progress = meter or Meter("restore"), on_progress
        self._cache = cache

    async def restore(
        self, blocks: Sequence[Placed], beside: Mapping[Path, tuple[Path, int]] | None = None
    ) -> RestoreReport:
        """See `Restore`.

        Args:
            blocks: What to fill.
            beside: What will be brought after this and has to have room as well: by file its directory and size, bytes.
        """
        began = asyncio.get_running_loop().time()
        patience = Patience(self._give_up_s, "restore_waits")
        contents = [await patience.persist(partial(self._list, block)) for block in blocks]
        restored = [
            RestoredFile(block, relative, found)
            for block, content in zip(blocks, contents, strict=True)
            for relative, found in content.files.items()
        ]
        await in_thread(partial(_prepare, blocks, contents))
        wanted = _by_path(restored)
        fetched = await self._take_cached(wanted, beside or {})
        await in_thread(partial(check_room, _sizes(wanted, beside or {})))
        self._meter.total_bytes += sum(file.object.size_bytes for file in wanted.values())
        async with self._meter.reporting(self._on_progress):
            fetched += await self._fetch(wanted, patience)
        seconds = asyncio.get_running_loop().time() - began
        report = RestoreReport(tuple(fetched), sum(file.object.size_bytes for file in fetched), seconds)
        log.info(
            "restored",
            extra={"action": "restored", "files": len(fetched), "bytes": report.bytes, "duration_s": round(seconds, 3)},
        )
        return report

    async def _list(self, block: Placed) -> _Contents:
        contents = _Contents()
        async for found in self._store.list(block.bucket, block.prefix):
            # The pattern is asked first: it may be what leaves an impossible key out.
            if block.selects(found.key) and not is_reserved(found.key[len(block.prefix) :]):
                self._note(block, found, contents)
        if not contents.files and block.role == "input":
            raise StorageSetupError(
                f"{block} holds no object, but the job needs it as its input; put the input there, or correct the job",
                bucket=block.bucket, key=block.prefix,
            )  # fmt: skip
        clash = conflict(contents.files)
        if clash:
            first, second = (contents.files[relative].key for relative in clash)
            raise _clash(block, first, second, "one is a file where the other needs a folder")
        return contents

    def _note(self, block: Placed, found: StoredObject, contents: _Contents) -> None:
        relative = relative_path(block.bucket, block.prefix, found.key)
        if not relative or relative.endswith("/"):
            contents.folders.append(relative)
            return
        if self._packed(relative):
            relative = relative.removesuffix(".gz")
        other = contents.files.get(relative)
        if other is None:
            contents.files[relative] = found
        elif block.role == "checkpoint":
            # A commit stores `x.gz` before it deletes an `x` that was there before; a death in between leaves both.
            contents.files[relative] = found if self._packed(found.key) else other
        else:
            raise _clash(block, other.key, found.key, f"both become {relative!r}")

    def _packed(self, name: str) -> bool:
        return self._compression and name.endswith(".gz") and not name.endswith("/.gz") and name != ".gz"

    async def _take_cached(
        self, wanted: dict[Path, RestoredFile], beside: Mapping[Path, tuple[Path, int]]
    ) -> list[RestoredFile]:
        """Take out of ``wanted`` what the machine's cache has, and let the cache make room for the rest."""
        taken: list[RestoredFile] = []
        cache = self._cache
        if cache is None:
            return taken

        async def one(item: tuple[Path, RestoredFile]) -> None:
            path, file = item
            check_parents(file.block.path, file.relative, bucket=file.block.bucket, key=file.object.key)
            if await cache.take(self._wanted(path, file), read_only=file.block.read_only):
                del wanted[path]
                taken.append(file)

        inputs = [item for item in wanted.items() if item[1].block.role == "input"]
        await run_bounded(inputs, one, AT_ONCE)
        await cache.make_room(_sizes(wanted, beside))
        if taken:
            log.info(
                "inputs taken from the cache",
                extra={"action": "cache_hit", "files": cache.hits, "bytes": cache.hit_bytes},
            )
        return taken

    def _wanted(self, path: Path, file: RestoredFile) -> Wanted:
        return Wanted(file.block.bucket, file.object, path, self._packed(file.object.key))

    async def _fetch(self, wanted: dict[Path, RestoredFile], patience: Patience) -> list[RestoredFile]:
        downloader = Downloader(self._store, patience, self._meter.add)
        fetched: list[RestoredFile] = []

        def check(what: Wanted) -> None:
            file = wanted[what.path]
            check_parents(file.block.path, file.relative, bucket=file.block.bucket, key=file.object.key)

        async def done(what: Wanted, found: StoredObject) -> None:
            file = wanted[what.path]
            if file.block.read_only:
                await in_thread(partial(what.path.chmod, READ_ONLY_MODE))
            if self._cache and file.block.role == "input":
                await self._cache.keep(replace(what, object=found), read_only=file.block.read_only)
            fetched.append(RestoredFile(file.block, file.relative, found))

        await downloader.download_all(
            (self._wanted(path, file) for path, file in wanted.items()), check=check, done=done
        )
        return fetched


def _clash(block: Placed, first: str, second: str, why: str) -> StorageSetupError:
    return StorageSetupError(
        f"{block}: objects {first!r} and {second!r} cannot both be brought down: {why}; delete or rename one",
        bucket=block.bucket, key=second,
    )  # fmt: skip


def _by_path(restored: list[RestoredFile]) -> dict[Path, RestoredFile]:
    """By where they go; of two blocks that bring the same file the later one counts."""
    return {file.block.path / file.relative: file for file in restored}


def _sizes(wanted: Mapping[Path, RestoredFile], beside: Mapping[Path, tuple[Path, int]]) -> dict[Path, int]:
    """Bytes by directory; a file that both bring counts once."""
    files = {**beside, **{path: (file.block.path, file.object.size_bytes) for path, file in wanted.items()}}
    sizes: dict[Path, int] = {}
    for directory, size_bytes in files.values():
        sizes[directory] = sizes.get(directory, 0) + size_bytes
    return sizes


def _prepare(blocks: Sequence[Placed], contents: list[_Contents]) -> None:
    """Empty all directories before the first is filled: one may lie within another."""
    for block in blocks:
        prepare(block.path)
    for block, content in zip(blocks, contents, strict=True):
        with disk_errors(block.path):
            _make_folders(block, content)


def _make_folders(block: Placed, content: _Contents) -> None:
    block.path.mkdir(parents=True, exist_ok=True)
    folders = {*content.folders, *(relative.rpartition("/")[0] for relative in content.files)}
    for folder in sorted(folders):
        check_parents(block.path, f"{folder}/", bucket=block.bucket, key=block.prefix)
        (block.path / folder).mkdir(parents=True, exist_ok=True)
