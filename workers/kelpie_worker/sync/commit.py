"""One commit: everything that the disk holds, at one instant, or nothing.

    read what is pending into segments -> look again: has anything moved? -> wait for the segments
    -> store one manifest a line -> move the heads of all lines in the ledger, in one call

What is visible before the last step is objects that nobody refers to. From the last step on the ledger's word is the
truth: a restore follows it, and an attempt that lost its job is refused there.

Limits: when to commit is for `kelpie_worker.sync.watching` to decide; plain keys come after (`plain_keys`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path

from kelpie_celery.checkpoints import layout
from kelpie_celery.checkpoints.content import MIB
from kelpie_celery.checkpoints.manifest import Header, Manifest, encode
from kelpie_celery.clock import Clock
from kelpie_celery.errors import StorageUnavailable
from kelpie_celery.ledger.types import FencingToken, Line, NewCommit
from kelpie_worker.sync.bodies import BytesBody
from kelpie_worker.sync.doubting import doubt_what_changed_in_silence
from kelpie_worker.sync.errors import LocalFileError
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.journal import Journal
from kelpie_worker.sync.lines import LineState, Pending
from kelpie_worker.sync.object_store import ObjectStore, StoredObject
from kelpie_worker.sync.progress import Meter
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.segments import Segment, Spool
from kelpie_worker.sync.snapshot import Snapshot, Stamp
from kelpie_worker.sync.staging import Stager
from kelpie_worker.sync.threads import in_thread
from kelpie_worker.sync.traffic import Traffic, UnderWay
from kelpie_worker.sync.verify import missing

log = logging.getLogger(__name__)

_PASSES = 5
_MOST_EARLY_BYTES = 8 * 1024 * MIB
"""So much is sent early between two commits: more may be what nobody ever commits."""
_FREEZES = 50

Snapshots = dict[Path, Snapshot]
Look = Callable[[], Snapshots]


@dataclass(frozen=True)
class CommitReport:
    """One commit.

    Attributes:
        why: ``quiet``, ``report``, ``marker``, ``exit`` or ``sigterm``.
        files: Files that it holds.
        bytes: Their size.
        sent_bytes: What was new of it, as sent.
        seconds: How long it took.
        time: When it was durable, seconds since the epoch.
        id: Of the commit; empty when there was nothing to commit.
        generation: Likewise; 0.
    """

    why: str
    files: int
    bytes: int
    sent_bytes: int
    seconds: float
    time: float
    id: str = ""
    generation: int = 0


OnCommit = Callable[[CommitReport], Awaitable[None]]
OnGarbage = Callable[[str, list[str]], None]
"""Told of a bucket and keys."""
OnAccepted = Callable[[Sequence[tuple[LineState, Line]], Snapshots], None]
OnSettled = Callable[[Snapshots], None]


class Outcome(Enum):
    """How trying to commit ended, if not with an error."""

    MADE = "made"
    NOTHING_NEW = "nothing new"
    DISTURBED = "disturbed"


@dataclass(frozen=True)
class Tried:
    """A try to commit; ``seen`` is what it was made of, ``left`` names files that did not hold still."""

    outcome: Outcome
    seen: Snapshots
    report: CommitReport | None = None
    left: tuple[str, ...] = ()


class Committer:
    """Makes the commits of one attempt, one at a time.

    Args:
        store: The storage.
        lines: What is committed to; the order of the definition.
        journal: The ledger.
        token: Of the attempt.
        fence: Likewise.
        spool: For segments.
        clock: For the time in manifests and reports.
        look: Walks the directories of all lines; blocking.
        pack: Whether a line's content is compressed where it pays.
        meter: Counts what is sent.
        on_garbage: Told of keys that nothing refers to; must not wait.
        on_accepted: Told of each commit that the ledger accepted, at once; must not wait.
        on_settled: Told, likewise, when the disk is found to be as the last commit says, with other stamps perhaps.
        on_commit: Told likewise; may wait.
        traffic: Told which files have content that is on its way.
    """

    def __init__(
        self, store: ObjectStore, lines: Sequence[LineState], journal: Journal, token: FencingToken, fence: Fence,
        spool: Spool, clock: Clock, look: Look, *, pack: Callable[[LineState], bool], meter: Meter,
        on_garbage: OnGarbage | None = None, on_accepted: OnAccepted | None = None,
        on_settled: OnSettled | None = None, on_commit: OnCommit | None = None, traffic: Traffic | None = None,
    ) -> None:  # fmt: skip
        self.lines = list(lines)
        self._store, self._journal, self._token, self._fence = store, journal, token, fence
        self._spool, self._clock, self._look, self._meter = spool, clock, look, meter
        self._on_garbage, self._on_accepted = on_garbage, on_accepted
        self._on_settled, self._on_commit = on_settled, on_commit
        self._traffic = traffic or Traffic()
        self._stager = Stager(spool, self._folder, pack)
        self._generation = 0
        self._spoken_for: set[str] = set()
        self._is_doubted = False
        self.commits = 0
        self.last_s = 0.0
        """How long reading took in the last try, seconds."""

    def begin(self, generation: int) -> None:
        """Number the next commit higher than ``generation``."""
        self._generation = max(self._generation, generation)

    def _folder(self, line: LineState) -> str:
        token = self._token
        return layout.segments_of(line.address.prefix, token.job_id, token.attempt, token.nonce)

    def is_own(self, key: str) -> bool:
        """Whether a key is a segment or a manifest of this attempt's."""
        name = layout.parse_id(layout.id_of_manifest(key) or "")
        if name is not None:
            return (name.attempt, name.nonce) == (self._token.attempt, self._token.nonce[: len(name.nonce)])
        return any(key.startswith(self._folder(line)) for line in self.lines)

    # -- one try ------------------------------------------------------------------------------------------------------

    async def stage_early(self, paths: Iterable[Path], stop: Callable[[], bool] = lambda: False) -> None:
        """Read large files before it is time, so that their content is on its way already when it is.

        Nothing is waited for: what has no room beside what is under way stays for the commit.

        Args:
            paths: Files that were closed after writing.
            stop: Asked before each file.

        Raises:
            LocalFileError: One cannot be read.
            DiskFull: No room for copies.
            KelpieError: What should make room cannot be sent.
        """
        for line in self.lines:
            for file in await in_thread(partial(line.large_of, list(paths))):
                waiting = sum(segment.size_bytes for segment in line.fresh())
                if stop() or waiting > _MOST_EARLY_BYTES or not await self._spool.has_room_for(file.stamp.size_bytes):
                    return
                try:
                    await self._stager.stage(line, [file])
                finally:
                    await self._drop(self._stager.take_in_vain())

    async def try_once(
        self, why: str, patience_s: float, *, seen: Snapshots | None = None, streams: Set[Path] = frozenset(),
        appended: Set[Path] = frozenset(), mapped: Set[Path] = frozenset(), force: bool = False,
    ) -> Tried:  # fmt: skip
        """Commit what the disk holds, if it holds still meanwhile.

        Args:
            why: The reason, as told to users.
            patience_s: How long a storage that gives no sign of life is waited for.
            seen: The state to commit: whoever decided that it is whole has seen it. By default what a look shows.
            streams: Files that only grow: taken with the length that ``seen`` has; see `freeze`.
            appended: Those of them that can only be appended to.
            mapped: Files that are mapped for writing: read, whatever their stamps say.
            force: Commit also what is the same as before.

        Raises:
            StorageError: The storage refuses, or stayed away.
            LocalFileError: A file cannot be read.
            DiskFull: No room for copies.
            LeaseLost: The attempt lost its job.
            PrefixHeld: Another live job commits to the same prefix.
        """
        with self._traffic.uploading() as under_way:
            return await self._try(why, patience_s, seen, (streams, appended, mapped), under_way, force=force)

    async def _try(
        self, why: str, patience_s: float, seen: Snapshots | None, kinds: tuple[Set[Path], Set[Path], Set[Path]],
        under_way: UnderWay, *, force: bool,
    ) -> Tried:  # fmt: skip
        streams = kinds[0]
        loop = asyncio.get_running_loop()
        self._spool.patience_s = patience_s
        began_s = loop.time()
        self._meter.expect(None)  # before everything is read nobody knows what of it is new
        seen = await in_thread(self._look) if seen is None else seen
        left = [file for line in self.lines for file in await self._stage(line, seen, kinds, under_way)]
        now = await in_thread(self._look)
        self.last_s = loop.time() - began_s
        changed = moved(seen, now, streams)
        if left or changed:
            return Tried(Outcome.DISTURBED, seen, left=(*(str(file.path) for file in left), *changed))
        manifests, same = await in_thread(partial(self._compose, why, seen))
        if same and not force:
            await self._settle(seen)
            return Tried(Outcome.NOTHING_NEW, seen)
        stored, sent = await self._store_all(manifests, patience_s)
        report = self._report(why, stored, sent, loop.time() - began_s)
        await self._accept(stored, seen, report)
        report = replace(report, seconds=loop.time() - began_s, time=self._clock.now())
        await self._tell(report)
        return Tried(Outcome.MADE, seen, report)

    async def _stage(
        self, line: LineState, seen: Snapshots, kinds: tuple[Set[Path], Set[Path], Set[Path]], under_way: UnderWay
    ) -> list[Pending]:
        streams, appended, mapped = kinds
        files = await in_thread(partial(line.pending, seen, streams, mapped))
        under_way.add(file.path for file in files)
        try:
            return await self._stager.stage(line, files, streams, appended)
        finally:
            await self._drop(self._stager.take_in_vain())

    def _compose(self, why: str, seen: Snapshots) -> tuple[list[tuple[LineState, Manifest]], bool]:
        """The manifests of what was seen, and whether they say what the bases say."""
        self._generation += 1
        token = self._token
        id_ = layout.commit_id(self._generation, token.attempt, token.nonce)
        places = tuple((line.address.bucket, line.address.prefix) for line in self.lines)
        header = Header(id_, self._generation, token.job_id, token.attempt, why, self._clock.now(), places)
        manifests = [
            (line, line.compose(header, layout.manifest_key(line.address.prefix, id_), seen)) for line in self.lines
        ]
        return manifests, all(line.holds(manifest) for line, manifest in manifests)

    async def _settle(self, seen: Snapshots) -> None:
        for line in self.lines:
            in_vain = line.fresh()
            await in_thread(partial(line.settle, seen))
            await self._drop(in_vain)
        if self._on_settled:
            self._on_settled(seen)

    async def _store_all(
        self, manifests: list[tuple[LineState, Manifest]], patience_s: float
    ) -> tuple[list[tuple[LineState, Manifest]], int]:
        """Store content and manifests; the manifests as they are stored, and how many bytes were new."""
        needed = {segment for line, manifest in manifests for segment in line.needed(manifest)}
        sent_bytes = sum(segment.size_bytes for segment in needed)
        self._meter.expect(self._spool.left_bytes(needed))
        # While content is on its way, which takes longer.
        encoded = [(line, *await in_thread(partial(encode, manifest, line.base))) for line, manifest in manifests]
        await self._spool.stored(needed)
        # From here on a manifest names them, which the ledger may accept although its answer never gets here.
        self._spoken_for |= {segment.key for segment in needed}
        patience = Patience(patience_s, "commit_waits")
        stored = []
        for line, whole, data in encoded:
            put = partial(self._store.put, line.address.bucket, whole.key, BytesBody(data), self._fence)
            await patience.persist(put)
            self._meter.add(len(data))
            sent_bytes += len(data)
            stored.append((line, whole))
        return stored, sent_bytes

    def _report(
        self, why: str, stored: list[tuple[LineState, Manifest]], sent_bytes: int, seconds: float
    ) -> CommitReport:
        header = stored[0][1].header
        return CommitReport(
            why, sum(len(manifest.files) for _, manifest in stored), sum(m.total_bytes for _, m in stored), sent_bytes,
            seconds, self._clock.now(), header.id, header.generation,
        )  # fmt: skip

    async def _accept(self, stored: list[tuple[LineState, Manifest]], seen: Snapshots, report: CommitReport) -> None:
        commits = [
            NewCommit(
                line.address, report.id, report.generation, manifest.key, report.why, len(manifest.files),
                manifest.total_bytes, report.sent_bytes, line.head,
            )
            for line, manifest in stored
        ]  # fmt: skip
        facts = {
            "id": report.id, "generation": report.generation, "why": report.why, "files": report.files,
            "bytes": report.bytes, "sent_bytes": report.sent_bytes, "seconds": round(report.seconds, 3),
        }  # fmt: skip
        lines = await self._journal.commit(commits, facts)
        self.commits += 1
        for line, manifest in stored:
            in_vain = line.fresh() - line.needed(manifest)
            await in_thread(partial(line.accept, manifest, seen))
            await self._drop(in_vain)
        self._spoken_for.clear()  # all of them are committed or let go of
        if self._on_accepted:
            self._on_accepted(list(zip(self.lines, lines, strict=True)), seen)

    async def _tell(self, report: CommitReport) -> None:
        log.info(
            "checkpoint stored",
            extra={"action": "committed", "commit": report.id, "why": report.why, "files": report.files,
                   "bytes": report.bytes, "sent_bytes": report.sent_bytes, "duration_s": round(report.seconds, 3)},
        )  # fmt: skip
        if self._on_commit:
            await self._on_commit(report)

    async def _drop(self, segments: Set[Segment]) -> None:
        """Let go of segments that were filled in vain: no manifest names them, and none ever will."""
        in_vain = [segment for segment in segments if segment.key not in self._spoken_for]
        await self._spool.give_up(in_vain)
        if self._on_garbage:
            for segment in in_vain:
                self._on_garbage(segment.bucket, [segment.key])

    # -- the last one -------------------------------------------------------------------------------------------------

    async def has_changed_in_silence(self) -> bool:
        """Whether a file holds something else than its stamp says; `commit` would take it as it is. Reads everything.

        Raises:
            LocalFileError: A file cannot be read.
        """
        self._is_doubted = True
        return await doubt_what_changed_in_silence(self.lines)

    async def commit(self, why: str, patience_s: float) -> CommitReport:
        """Commit what the disk holds, whole, and look whether all of it is on the storage; the command has ended.

        Raises:
            LocalFileError: Somebody still writes to a file, or it cannot be read.
            StorageUnavailable: It stayed away, or loses what it is given.
            KelpieError: As for `try_once`.
        """
        began_s = asyncio.get_running_loop().time()
        if not self._is_doubted:
            await doubt_what_changed_in_silence(self.lines)
        self._is_doubted = False
        report: CommitReport | None = None
        left: tuple[str, ...] = ()
        forgotten = False
        for _ in range(_PASSES):
            tried = await self.try_once(why, patience_s, force=forgotten)
            left, report = tried.left, tried.report or report
            if tried.outcome is Outcome.DISTURBED or await self._lost(patience_s):
                continue
            forgotten = await self._is_forgotten()
            if not forgotten:
                seconds = asyncio.get_running_loop().time() - began_s
                return report or CommitReport(why, 0, 0, 0, seconds, self._clock.now())
        if left:
            names = ", ".join(left[:3])
            raise LocalFileError(f"files change although the command has ended: {names}; stop whatever writes them")
        raise StorageUnavailable("objects go missing on the storage as fast as they are stored", bucket="")

    async def _is_forgotten(self) -> bool:
        """Whether the ledger names something else than what is committed: it lost its last writes."""
        based = [line for line in self.lines if line.base is not None]
        states = await self._journal.lines([line.address for line in based]) if based else []
        heads = [state.head.id if state.head else None for state in states]
        return any(
            line.base is not None and line.base.header.id != head for line, head in zip(based, heads, strict=True)
        )

    async def _lost(self, patience_s: float) -> bool:
        """Whether the storage lacks content of the head that the disk has; then the next try sends it anew."""
        expected = [
            (line.address.bucket, layout.data_prefix(line.address.prefix), StoredObject(key, size, ""))
            for line in self.lines
            for key, size in line.on_disk().items()
        ]
        lost = await Patience(patience_s, "commit_waits").persist(partial(missing, self._store, expected))
        for bucket, key in lost:
            log.error(
                "content of a checkpoint is gone from the storage; sending it anew",
                extra={"action": "content_lost", "bucket": bucket, "key": key},
            )
        for line in self.lines:
            line.lost |= {key for _, key in lost}
        return bool(lost)


def moved(before: Snapshots, now: Snapshots, streams: Set[Path]) -> list[str]:
    """Files, links and folders that are not as they were; a stream may have grown."""
    found: list[str] = []
    for directory, snapshot in before.items():
        later = now[directory]
        if snapshot == later:
            continue
        for relative in snapshot.files.keys() | later.files.keys():
            one, other = snapshot.files.get(relative), later.files.get(relative)
            if one != other and not (directory / relative in streams and _grew(one, other)):
                found.append(str(directory / relative))
        if snapshot.links != later.links or snapshot.folders != later.folders or snapshot.exists != later.exists:
            found.append(str(directory))
    return found


def _grew(before: Stamp | None, now: Stamp | None) -> bool:
    if before is None or now is None:
        return False
    return before[:2] == now[:2] and before.size_bytes <= now.size_bytes


def freeze(paths: Set[Path]) -> dict[Path, Stamp]:
    """Stamps that all these files had at one instant: read twice, without a change in between, where that can be."""
    stamps = _stat_all(paths)
    for _ in range(_FREEZES):
        again = _stat_all(paths)
        if again == stamps:
            break
        stamps = again
    return stamps


def _stat_all(paths: Set[Path]) -> dict[Path, Stamp]:
    found: dict[Path, Stamp] = {}
    for path in paths:
        with contextlib.suppress(OSError):
            found[path] = Stamp.of(path.lstat())
    return found


def with_stamps(snapshot: Snapshot, directory: Path, stamps: Mapping[Path, Stamp]) -> Snapshot:
    """A look at a directory, with other stamps for some of its files."""
    here = {relative: stamps[directory / relative] for relative in snapshot.files if directory / relative in stamps}
    return replace(snapshot, files=snapshot.files | here) if here else snapshot
