"""The plain keys of checkpoints: what Kelpie and people read, brought to the state of an accepted commit.

They follow the commit, never precede it. They come one by one: while they follow, they may be a mixture of two commits,
which no restore looks at.

    a file changed -> is it under its key already (from an earlier attempt)? -> else the storage puts it together from
    what the commit holds -> else it is sent, as long as the disk still holds what the commit does

One is deleted only if this attempt placed it, restored it from there or found it to be what a file holds, and the
commit does not hold that file any more: what somebody else put there stays.

Limits: a file whose name is no UTF-8 has no plain key; neither have links and empty folders. A file that is sent counts
as the commit's by its stamp.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from kelpie_celery.checkpoints.content import SMALL_BYTES
from kelpie_celery.checkpoints.manifest import FileEntry, Manifest
from kelpie_celery.errors import StorageUnavailable
from kelpie_worker.sync.assembling import Assembler
from kelpie_worker.sync.assembly_plan import Older, plan
from kelpie_worker.sync.bodies import FileChanged
from kelpie_worker.sync.etags import is_content_of
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.known import Address, Differences, KnownFiles, LocalFile, key_of
from kelpie_worker.sync.lines import LineState
from kelpie_worker.sync.object_store import ObjectStore, StoredObject
from kelpie_worker.sync.plan import Placed
from kelpie_worker.sync.progress import Meter, OnProgress
from kelpie_worker.sync.restore import RestoreReport
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.sending import Sender, in_order
from kelpie_worker.sync.snapshot import Snapshot
from kelpie_worker.sync.threads import in_thread, run_bounded
from kelpie_worker.sync.upload import PARTS_AT_ONCE, Uploader
from kelpie_worker.sync.verify import missing

log = logging.getLogger(__name__)

BESIDE_AT_ONCE = 2
"""How many requests at once beside the command."""
_DELETES_AT_ONCE = 8
_COMPARED_AT_ONCE = 2
_PASSES = 3


@dataclass(frozen=True)
class _Goal:
    """What the plain keys are to be: the state of one commit. A round keeps to the one that it began with."""

    snapshots: Mapping[Path, Snapshot]
    entries: Mapping[Address, tuple[FileEntry, Manifest]] = field(default_factory=dict)

    def entry(self, address: Address) -> FileEntry | None:
        found = self.entries.get(address)
        return found[0] if found else None


class PlainKeys:
    """Keeps the plain keys of an attempt's checkpoint blocks.

    Args:
        store: The storage.
        lines: The attempt's.
        fence: Likewise.
        known: What is known to be under plain keys.
        uploader: Makes requests for plain keys, and for nothing else.
        scratch: For copies.
        pack: Whether what is stored is gzipped.
        interval_s: How long from the end of one round beside the command to the next, seconds.
        meter: Counts what is copied; what ``uploader`` sends has to be counted there as well.
        on_progress: Told every ten seconds of a long round.
    """

    def __init__(
        self, store: ObjectStore, lines: Sequence[LineState], fence: Fence, known: KnownFiles, uploader: Uploader,
        scratch: Path, *, pack: bool, interval_s: float, meter: Meter, on_progress: OnProgress | None = None,
    ) -> None:  # fmt: skip
        self._store, self._lines, self._fence = store, lines, fence
        self._known, self._uploader, self._pack = known, uploader, pack
        self._sender = Sender(uploader, known, scratch, pack=pack)
        self._assembler = Assembler(store, uploader, meter.add)
        self._interval_s, self._meter, self._on_progress = interval_s, meter, on_progress
        self._loop = asyncio.get_running_loop()
        self._last_s = self._loop.time()
        self._goal: _Goal | None = None
        self._placed: dict[Address, FileEntry] = {}
        self._listed: set[tuple[str, str]] = set()
        self._there: dict[Address, StoredObject] = {}
        self._busy = asyncio.Lock()
        self._winding_down = False

    def _blocks(self, *, final: bool) -> list[Placed]:
        modes = {"interval", "end"} if final else {"interval"}
        return [block for line in self._lines for block in line.blocks if block.plain in modes]

    # -- what is there ------------------------------------------------------------------------------------------------

    def begin(self, restored: RestoreReport, snapshots: Mapping[Path, Snapshot]) -> None:
        """Learn what a restore says of the plain keys."""
        blocks = [block for block in self._blocks(final=True) if block.role == "checkpoint"]
        self._known.note_restored(restored, blocks, snapshots)
        if any(line.base for line in self._lines):
            # What an earlier attempt committed at its end may not have got there. And what it placed can be told only
            # while the disk still holds it: so the first round comes at once.
            self.accept(self._lines, snapshots)
            self._last_s = -math.inf

    def accept(self, lines: Sequence[LineState], snapshots: Mapping[Path, Snapshot]) -> None:
        """A commit was accepted: it is what the plain keys are to follow from now on."""
        entries: dict[Address, tuple[FileEntry, Manifest]] = {}
        for line in lines:
            if line.base is not None:
                for block in line.blocks:
                    entries |= self._entries(block, line.base)
        self._goal = _Goal(snapshots, entries)

    def _entries(self, block: Placed, manifest: Manifest) -> dict[Address, tuple[FileEntry, Manifest]]:
        entries: dict[Address, tuple[FileEntry, Manifest]] = {}
        for relative, entry in manifest.files.items():
            key = key_of(block, relative, pack=self._pack)
            if key is not None and block.selects(relative):
                entries[block.bucket, key] = entry, manifest
        return entries

    # -- following ----------------------------------------------------------------------------------------------------

    @property
    def is_due(self) -> bool:
        """Whether it is time for a round beside the command."""
        rested = self._loop.time() - self._last_s >= self._interval_s
        return self._goal is not None and rested and not self._busy.locked() and bool(self._blocks(final=False))

    def wind_down(self) -> None:
        """The command has ended: a round that is under way ends what it began, and begins nothing more."""
        self._winding_down = True
        self._uploader.hurry()

    async def follow(self, patience: Patience, *, final: bool) -> None:
        """Bring the plain keys to the last accepted commit, as far as the files are still what it holds.

        Args:
            patience: With a storage that is away.
            final: Whether the command has ended: then everything is, and it is verified that it is there.

        Raises:
            StorageError: The storage refuses, or stayed away.
            LocalFileError: A file cannot be read.
            LeaseLost: The attempt lost its job.
        """
        if final:
            self.wind_down()
        async with self._busy:
            try:
                async with self._meter.reporting(self._on_progress):
                    await self._follow(patience, final=final)
            finally:
                self._last_s = self._loop.time()

    async def _follow(self, patience: Patience, *, final: bool) -> None:
        goal, blocks = self._goal, self._blocks(final=final)
        if goal is None or not blocks:
            return
        for _ in range(_PASSES):
            changes = await in_thread(partial(self._differences, goal, blocks))
            if changes:
                await self._apply(goal, blocks, changes, patience, final=final)
            if not final or not await patience.persist(partial(self._lost, blocks)):
                return
        raise StorageUnavailable("objects go missing on the storage as fast as they are stored", bucket="")

    def _differences(self, goal: _Goal, blocks: Sequence[Placed]) -> Differences:
        for address, placed in self._placed.items():
            # A stamp may hide what was written through a mapping; the commit does not.
            entry = goal.entry(address)
            if entry and not _is_same(entry, placed) and self._known.get(address):
                self._known.forget_stamp(address)
        return self._known.differences(blocks, goal.snapshots, pack=self._pack)

    async def _apply(
        self, goal: _Goal, blocks: Sequence[Placed], changes: Differences, patience: Patience, *, final: bool
    ) -> None:
        began_bytes, left = self._uploader.sent_bytes, list[LocalFile]()
        self._meter.expect(None)
        await self._list(blocks, changes.changed, patience)
        await run_bounded(changes.changed, partial(self._compare, goal), _COMPARED_AT_ONCE)
        files = [file for file in changes.changed if self._is_missing(file)]
        self._meter.expect(sum(file.stamp.size_bytes for file in files))

        async def one(file: LocalFile) -> None:
            begins = final or not self._winding_down
            if not begins or not await self._place(goal, file, patience):
                left.append(file)

        await in_order(files, one, PARTS_AT_ONCE if final else BESIDE_AT_ONCE)
        # What was not placed may be what takes the place of a deleted file: until it is there the old one stays. And a
        # file that this attempt never saw, since a pattern kept it from being restored, the commit holds on to.
        gone = [] if left else [address for address in changes.gone if goal.entry(address) is None]
        await run_bounded(gone, self._delete, _DELETES_AT_ONCE)
        log.info(
            "plain keys follow the checkpoint",
            extra={"action": "plain_keys", "files": len(changes.changed) - len(left), "left": len(left),
                   "deleted": len(gone), "sent_bytes": self._uploader.sent_bytes - began_bytes},
        )  # fmt: skip

    # -- what an earlier attempt placed -------------------------------------------------------------------------------

    async def _list(self, blocks: Sequence[Placed], files: Sequence[LocalFile], patience: Patience) -> None:
        """Look once what is under the plain keys of files that are to be placed."""
        wanted = {file.address for file in files}
        for place in dict.fromkeys((block.bucket, block.prefix) for block in blocks):
            if place not in self._listed:
                await patience.persist(partial(self._list_one, *place, wanted))
                self._listed.add(place)

    async def _list_one(self, bucket: str, prefix: str, wanted: set[Address]) -> None:
        async for found in self._store.list(bucket, prefix):
            if (bucket, found.key) in wanted:
                self._there[bucket, found.key] = found

    async def _compare(self, goal: _Goal, file: LocalFile) -> None:
        """Note a file that is under its key already; of a packed one that shows only when it is packed."""
        there, entry = self._there.get(file.address), goal.entry(file.address)
        if self._pack or there is None:
            return
        del self._there[file.address]
        if entry and there.size_bytes == entry.size and await is_content_of(file.path, there, entry.extents):
            self._known.note_placed(file, there)
            self._placed[file.address] = entry

    def _is_missing(self, file: LocalFile) -> bool:
        known = self._known.get(file.address)
        return known is None or known.stamp != file.stamp

    # -- one file -----------------------------------------------------------------------------------------------------

    async def _place(self, goal: _Goal, file: LocalFile, patience: Patience) -> bool:
        """Bring one plain key to the goal; whether that was possible."""
        try:
            assembled = await self._assemble(goal, file, patience)
        except FileChanged:
            return False
        if assembled:
            self._known.note_placed(file, assembled)
        elif not await self._sender.send_one(file, patience, there=self._there.pop(file.address, None)):
            return False
        entry = goal.entry(file.address)
        if entry:
            self._placed[file.address] = entry
        return True

    async def _assemble(self, goal: _Goal, file: LocalFile, patience: Patience) -> StoredObject | None:
        found = goal.entries.get(file.address)
        if self._pack or found is None or not self._assembler.may(file.block.bucket):
            return None
        entry, manifest = found
        if entry.size < SMALL_BYTES:
            return None
        known, placed = self._known.get(file.address), self._placed.get(file.address)
        older = Older(known.object, placed) if known and placed and known.object.etag else None
        how = await in_thread(partial(plan, entry, manifest.segment_bytes, older))
        return await self._assembler.assemble(file.address, file.path, how, patience, older) if how else None

    async def _delete(self, address: Address) -> None:
        await self._store.delete(*address, self._fence)
        self._known.forget(address)
        self._placed.pop(address, None)

    async def _lost(self, blocks: Sequence[Placed]) -> bool:
        """Whether the storage lacks something that was placed; then it will be placed again."""
        expected = [
            (address[0], known.block.prefix, known.object)
            for address, known in self._known.items()
            if known.block in blocks and known.stamp is not None
        ]
        lost = await missing(self._store, expected)
        for address in lost:
            self._known.forget(address)
            self._placed.pop(address, None)
        return bool(lost)


def _is_same(one: FileEntry, other: FileEntry) -> bool:
    return one is other or [e.digest for e in one.extents] == [e.digest for e in other.extents]
