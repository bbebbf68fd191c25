"""Keeping what a job writes on the storage: checkpoints as they settle, outputs as they appear, the last state whole.

A walk over the directories decides what changed, so nothing can be missed: not what was written before the first look,
nor during an upload. `watch` runs beside the command, `commit` after it.

Limits: plain keys only. A checkpoint of several files is sent file by file (see ``sending`` for the order), so a death
in the middle of a commit leaves some of them new and some old.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from kelpie_celery.clock import Clock
from kelpie_celery.errors import StorageUnavailable
from kelpie_worker.sync.errors import DiskFull, LocalFileError
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.known import Address, Differences, KnownFiles, LocalFile
from kelpie_worker.sync.notices import Notices
from kelpie_worker.sync.object_store import ObjectStore
from kelpie_worker.sync.plan import Placed
from kelpie_worker.sync.progress import Meter, OnProgress
from kelpie_worker.sync.restore import RestoreReport
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.sending import Sender
from kelpie_worker.sync.settling import Settling
from kelpie_worker.sync.snapshot import Snapshot, take
from kelpie_worker.sync.stable_read import digest
from kelpie_worker.sync.threads import in_thread, run_bounded
from kelpie_worker.sync.upload import Uploader
from kelpie_worker.sync.verify import missing

log = logging.getLogger(__name__)

POLL_S = 0.5
WATCH_GIVE_UP_S = 60.0
"""How long a checkpoint is tried beside the command before a newer one takes its place, seconds."""
LATE_S = 120.0
"""How long a checkpoint may wait for a quiet moment before that is warned of, seconds."""
_LONGEST_POLL_S = 60.0
_SHARE_OF_A_CORE = 0.01
_LONGEST_BACKOFF_S = 30.0
_PASSES = 5
_DELETES_AT_ONCE = 8


@dataclass(frozen=True)
class CommitReport:
    """One commit.

    Attributes:
        why: ``quiet``, ``report``, or what the caller of `Commit.commit` said.
        files: Files sent.
        bytes: Their bytes, as on the disk.
        deleted: Objects deleted.
        seconds: How long it took.
        time: When it was durable, seconds since the epoch.
    """

    why: str
    files: int
    bytes: int
    deleted: int
    seconds: float
    time: float


OnCommit = Callable[[CommitReport], Awaitable[None]]


class Commit(Protocol):
    """The seam: keeps the directories of ``during`` blocks on the storage."""

    async def prime(self, restored: RestoreReport) -> None:
        """Learn what a restore brought; to be called before the command starts."""

    async def watch(self) -> None:
        """Store what changes, until cancelled.

        Raises:
            StorageSetupError: The storage refuses for good.
            LeaseLost: The attempt lost its job.
        """

    def request_commit(self) -> None:
        """Commit now; from the first request on, only requests and `commit` do."""

    def wind_down(self) -> None:
        """Let `watch` end once what it is sending is sent; `commit` waits for that, instead of sending it again."""

    def close(self) -> None:
        """From now on what the directories hold says nothing: no look sends or deletes by it. From any thread."""

    async def commit(self, why: str) -> CommitReport:
        """Bring the storage to the state of the disk, whole and verified; the command has ended.

        Raises:
            StorageSetupError: The storage refuses for good.
            StorageUnavailable: It stayed away.
            LocalFileError: A file cannot be read, or somebody still writes to it.
            LeaseLost: The attempt lost its job.
        """


@dataclass
class _Tally:
    """What a commit has done so far."""

    files: int = 0
    bytes: int = 0
    deleted: int = 0
    left: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.files or self.deleted)


@dataclass(frozen=True)
class _Due:
    """What is to be stored now: a checkpoint if there is a reason (``why``), and these outputs."""

    why: str
    checkpoint: Differences = field(default_factory=Differences)
    outputs: list[LocalFile] = field(default_factory=list)


class PlainCommit:
    """See `Commit`; stores under plain keys.

    Args:
        store: The storage.
        blocks: The ``during`` blocks.
        fence: Of the attempt.
        scratch: A folder of our own for copies.
        clock: For the time in reports.
        compression: Whether files are gzipped.
        quiet_s: A checkpoint is taken when nothing has changed for so long.
        min_interval_s: At least so long from the start of one checkpoint to the next.
        poll_s: How often is looked, at most; less often where a look costs more than 1 % of a core.
        give_up_s: How long `commit` waits for a storage that gives no sign of life.
        meter: Counts what is sent.
        on_commit: Told of each commit that changed something.
        on_progress: Told every ten seconds of a long one.
    """

    def __init__(
        self, store: ObjectStore, blocks: Sequence[Placed], fence: Fence, scratch: Path, clock: Clock, *,
        compression: bool = False, quiet_s: float = 2.0, min_interval_s: float = 15.0, poll_s: float = POLL_S,
        give_up_s: float = 3600.0, meter: Meter | None = None, on_commit: OnCommit | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:  # fmt: skip
        self._store, self._fence, self._clock = store, fence, clock
        self._checkpoints = [block for block in blocks if block.role == "checkpoint"]
        self._outputs = [block for block in blocks if block.role == "output"]
        self._paths = list(dict.fromkeys(block.path for block in blocks))
        self._pack, self._quiet_s, self._min_interval_s = compression, quiet_s, min_interval_s
        self._poll_s, self._give_up_s = poll_s, give_up_s
        self._meter = Meter("commit", parent=meter)
        self._on_commit, self._on_progress = on_commit, on_progress
        self.known = KnownFiles()
        self.notices = Notices()
        self.commits = 0
        self._sender = Sender(Uploader(store, fence, self._meter.add), self.known, scratch, pack=compression)
        self._settling = Settling()
        self._busy = asyncio.Lock()
        self._asked = asyncio.Event()
        self._only_on_request = False
        self._last_began_s: float | None = None
        self._output_sent_s: dict[Address, float] = {}
        self._survey_cpu_s = 0.0
        self._up_to_date: dict[Path, Snapshot] = {}
        self._waiting_since_s: float | None = None
        self._complained = ""
        self._winding_down = self._closed = False

    async def prime(self, restored: RestoreReport) -> None:
        """See `Commit.prime`."""
        snapshots = await in_thread(self._take_all)
        self.known.note_restored(restored, self._checkpoints, snapshots)
        self._settling.observe(snapshots, _now())

    def request_commit(self) -> None:
        """See `Commit.request_commit`."""
        self._only_on_request = True
        self._asked.set()

    # -- beside the command ---------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """See `Commit.watch`."""
        failures = 0
        while True:
            await self._pause(failures)
            if self._winding_down or self._closed:
                return
            try:
                async with self._busy:
                    await self._look()
                failures, self._complained = 0, ""
            except (StorageUnavailable, LocalFileError, DiskFull) as error:
                if self._closed:
                    return
                failures += 1
                self._complain(error)

    def wind_down(self) -> None:
        """See `Commit.wind_down`."""
        self._winding_down = True

    def close(self) -> None:
        """See `Commit.close`."""
        self._closed = True

    def _ensure_open(self) -> None:
        """Emptied directories look like deletions, so every step after a wait asks whether it may still be taken."""
        if self._closed:
            raise LocalFileError("the job's directories are given back; what they hold now is not the job's to store")

    async def _pause(self, failures: int) -> None:
        if failures:
            longest_s = min(_LONGEST_BACKOFF_S, self._poll_s * 2.0**failures)
            await asyncio.sleep(longest_s * random.uniform(0.5, 1.0))  # noqa: S311 -- jitter, no secret
            return
        poll_s = min(_LONGEST_POLL_S, max(self._poll_s, self._survey_cpu_s / _SHARE_OF_A_CORE))
        try:
            async with asyncio.timeout(poll_s):
                await self._asked.wait()
        except TimeoutError:
            pass

    def _complain(self, error: Exception) -> None:
        if str(error) != self._complained:
            self._complained = str(error)
            log.warning("a checkpoint could not be stored yet", extra={"action": "commit_delayed", "error": str(error)})

    async def _look(self) -> None:
        await self._fence.trusted()
        self._ensure_open()
        now_s, asked = _now(), self._asked.is_set()
        self._asked.clear()
        try:
            due = await in_thread(partial(self._survey, now_s, asked))
            self._ensure_open()
            if due.why:
                await self._checkpoint(due.why, due.checkpoint, now_s)
        except BaseException:
            if asked:
                self._asked.set()
            raise
        if due.outputs:
            self._ensure_open()
            self._output_sent_s.update((file.address, now_s) for file in due.outputs)
            async with self._meter.reporting(self._on_progress):
                await self._sender.send(due.outputs, self._watch_patience(), copy_first=True)
        self._warn_if_late(due, now_s)

    def _watch_patience(self) -> Patience:
        # Not for long: when the storage is back, what is newest by then is what it should get.
        return Patience(min(WATCH_GIVE_UP_S, self._give_up_s), "commit_waits")

    def _survey(self, now_s: float, asked: bool) -> _Due:
        """Look, compare, and decide; all that costs CPU, so that it can be counted."""
        began_s = time.thread_time()
        snapshots = self._take_all()
        self._settling.observe(snapshots, now_s)
        due = _Due("")
        if asked:
            due = _Due("report", self._changes(self._checkpoints, snapshots))
        elif snapshots != self._up_to_date:
            due = self._compare(snapshots, now_s)
        self._survey_cpu_s = time.thread_time() - began_s
        return due

    def _compare(self, snapshots: dict[Path, Snapshot], now_s: float) -> _Due:
        checkpoint = self._changes(self._checkpoints, snapshots)
        outputs = self._changes(self._outputs, snapshots).changed
        if not outputs and not checkpoint:
            self._up_to_date = snapshots
        settled = [file for file in outputs if self._is_due(file, now_s)]
        quiet = self._settling.quiet_s(self._checkpoints, now_s) >= self._quiet_s
        rested = self._last_began_s is None or now_s - self._last_began_s >= self._min_interval_s
        why = "quiet" if checkpoint and quiet and rested and not self._only_on_request else ""
        return _Due(why, checkpoint, settled)

    def _is_due(self, output: LocalFile, now_s: float) -> bool:
        last_s = self._output_sent_s.get(output.address)
        rested = last_s is None or now_s - last_s >= self._min_interval_s
        return rested and self._settling.settled_s(output, now_s) >= self._quiet_s

    async def _checkpoint(self, why: str, changes: Differences, now_s: float) -> None:
        tally, before_s = _Tally(), self._last_began_s
        self._last_began_s = now_s
        try:
            async with self._meter.reporting(self._on_progress):
                await self._apply(changes, tally, self._watch_patience(), copy_first=True)
        except BaseException:
            self._last_began_s = before_s  # what did not succeed is tried again soon
            raise
        if why == "report" and tally.left:
            # The job said that its files are whole; what could not be taken then is asked for again.
            self._asked.set()
        await self._report(why, tally, now_s)

    def _warn_if_late(self, due: _Due, now_s: float) -> None:
        """A directory that never holds still is never stored: its user must hear of it."""
        if due.why or not due.checkpoint or self._only_on_request:
            self._waiting_since_s = None
            return
        self._waiting_since_s = self._waiting_since_s or now_s
        if now_s - self._waiting_since_s >= LATE_S:
            self._waiting_since_s = now_s
            log.warning(
                "no quiet moment for a checkpoint; write less often, or ask for commits with KELPIE_REPORT",
                extra={"action": "commit_late", "waited_s": LATE_S, "quiet_s": self._quiet_s},
            )

    # -- after the command ----------------------------------------------------------------------------------------

    async def commit(self, why: str) -> CommitReport:
        """See `Commit.commit`."""
        began_s, tally = _now(), _Tally()
        async with self._busy, self._meter.reporting(self._on_progress):
            await self._recheck()
            patience = Patience(self._give_up_s, "commit_waits")
            await patience.persist(partial(self._bring_up_to_date, tally, patience))
        return await self._report(why, tally, began_s)

    async def _recheck(self) -> None:
        """Read again what was sent: a program that wrote through a mapping may have changed it without a trace."""
        for address, known in self.known.items():
            if known.source_sha256 and known.block.role == "checkpoint":
                path = known.block.path / known.relative
                try:
                    same = (await digest(path)).sha256 == known.source_sha256
                except LocalFileError:
                    same = True  # gone or unreadable: the comparison to come says so
                if not same:
                    self.known.forget_stamp(address)

    async def _bring_up_to_date(self, tally: _Tally, patience: Patience) -> None:
        for _ in range(_PASSES):
            changes = await in_thread(lambda: self._changes(self._checkpoints, self._take_all()))
            if changes:
                await self._apply(changes, tally, patience, copy_first=False)
            elif not await self._lost():
                return
        left = ", ".join(tally.left[:3])
        if left:
            raise LocalFileError(f"files change although the command has ended: {left}; stop whatever writes them")
        raise StorageUnavailable("objects go missing on the storage as fast as they are stored", bucket="")

    async def _lost(self) -> bool:
        """Whether the storage lacks something that was stored; then it will be sent again."""
        expected = [
            (address[0], known.block.prefix, known.object)
            for address, known in self.known.items()
            if known.block in self._checkpoints
        ]
        lost = await missing(self._store, expected)
        for address in lost:
            self.known.forget(address)
        return bool(lost)

    # -- both -----------------------------------------------------------------------------------------------------

    def _take_all(self) -> dict[Path, Snapshot]:
        snapshots = {path: take(path) for path in self._paths}
        for path, snapshot in snapshots.items():
            self.notices.look(path, snapshot)
        return snapshots

    def _changes(self, blocks: Sequence[Placed], snapshots: dict[Path, Snapshot]) -> Differences:
        return self.known.differences(blocks, snapshots, pack=self._pack)

    async def _apply(self, changes: Differences, tally: _Tally, patience: Patience, *, copy_first: bool) -> None:
        self._ensure_open()
        left = await self._sender.send(changes.changed, patience, copy_first=copy_first)
        tally.left = [str(file.path) for file in left]
        skipped = {file.address for file in left}
        sent = [file for file in changes.changed if file.address not in skipped]
        tally.files += len(sent)
        tally.bytes += sum(file.stamp.size_bytes for file in sent)
        # What was not sent may be what takes the place of a deleted file: until it is there the old one stays, and the
        # next look finds it again.
        if not left:
            await run_bounded(changes.gone, partial(self._delete, tally), _DELETES_AT_ONCE)

    async def _delete(self, tally: _Tally, address: Address) -> None:
        self._ensure_open()
        await self._store.delete(*address, self._fence)
        self.known.forget(address)
        tally.deleted += 1

    async def _report(self, why: str, tally: _Tally, began_s: float) -> CommitReport:
        seconds = _now() - began_s
        report = CommitReport(why, tally.files, tally.bytes, tally.deleted, seconds, self._clock.now())
        if tally:
            self.commits += 1
            log.info(
                "checkpoint stored",
                extra={"action": "committed", "why": why, "files": tally.files, "bytes": tally.bytes,
                       "deleted": tally.deleted, "duration_s": round(seconds, 3)},
            )  # fmt: skip
            if self._on_commit:
                await self._on_commit(report)
        return report


def _now() -> float:
    return asyncio.get_running_loop().time()
