"""The checkpoints of one attempt: what is brought down before the command, committed beside it, and at its end.

This puts the parts together; each of them is a module of its own:

    finding -> committed, restore        which commit, and its files
    watching -> commit -> lines, staging, segments      when, and how a commit is made
    plain_keys, early_outputs, collecting               what follows it

Limits: one attempt, one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kelpie_celery.checkpoints.address import endpoint_of
from kelpie_celery.checkpoints.manifest import Manifest
from kelpie_celery.clock import Clock
from kelpie_celery.errors import KelpieError, PrefixHeld
from kelpie_celery.globs import marker_of
from kelpie_celery.ledger.types import FencingToken, Line, LineAddress
from kelpie_celery.settings import Settings
from kelpie_worker.sync.cached_inputs import open_cached_inputs
from kelpie_worker.sync.calm import Calm
from kelpie_worker.sync.collecting import Collector
from kelpie_worker.sync.commit import CommitReport, Committer, OnCommit, Snapshots
from kelpie_worker.sync.committed import CommittedBlock, CommittedRestore, sizes_of
from kelpie_worker.sync.early_outputs import EarlyOutputs
from kelpie_worker.sync.errors import LocalFileError
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.finding import Finder, FoundLine
from kelpie_worker.sync.journal import Journal
from kelpie_worker.sync.known import KnownFiles
from kelpie_worker.sync.lines import LineState
from kelpie_worker.sync.notices import Notices
from kelpie_worker.sync.object_store import ObjectStore
from kelpie_worker.sync.plain_keys import BESIDE_AT_ONCE, PlainKeys
from kelpie_worker.sync.plan import Placed, Plan
from kelpie_worker.sync.progress import Meter, OnProgress
from kelpie_worker.sync.restore import GIVE_UP_S, PlainRestore, RestoreReport
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.segments import Spool
from kelpie_worker.sync.sending import Sender
from kelpie_worker.sync.snapshot import take
from kelpie_worker.sync.threads import in_thread
from kelpie_worker.sync.timing import WATCH_GIVE_UP_S, Rules
from kelpie_worker.sync.traffic import Traffic
from kelpie_worker.sync.upload import Uploader
from kelpie_worker.sync.watching import Processes, Watch

log = logging.getLogger(__name__)


class Checkpoints:
    """See the module.

    Args:
        store: The storage.
        plan: The attempt's transfers.
        settings: The worker's.
        token: Of the attempt.
        fence: Its lease.
        journal: The ledger.
        scratch: A folder of our own for copies.
        clock: For times in manifests and reports.
        compression: Whether plain keys are gzipped.
        meter: Counts what is sent.
        on_commit: Told of each commit that the ledger accepted.
        on_progress: Told every ten seconds of a long transfer.
        traffic: Told which files are on their way up.
    """

    def __init__(
        self, store: ObjectStore, plan: Plan, settings: Settings, token: FencingToken, fence: Fence, journal: Journal,
        scratch: Path, clock: Clock, *, compression: bool, meter: Meter, on_commit: OnCommit | None = None,
        on_progress: OnProgress | None = None, traffic: Traffic | None = None,
    ) -> None:  # fmt: skip
        self._store, self._plan, self._settings, self._token = store, plan, settings, token
        self._fence, self._journal, self._compression = fence, journal, compression
        self._on_progress, self._meter = on_progress, meter
        self.known, self.notices = KnownFiles(), Notices()
        self._paths = list(dict.fromkeys(block.path for block in plan.during))
        meter = Meter("commit", parent=meter)
        self.lines = _lines(plan.during, endpoint_of(settings.aws_endpoint_url))
        self._spool = Spool(store, fence, scratch, meter.add)
        self._committer = Committer(
            store, self.lines, journal, token, fence, self._spool, clock, self._look, pack=self._packs, meter=meter,
            on_garbage=self._discard, on_accepted=self._accepted, on_settled=self._settled,
            on_commit=on_commit, traffic=traffic,
        )  # fmt: skip
        self._collector = Collector(
            store, journal, fence, token.job_id, self._committer.is_own, grace_s=settings.gc_grace_s
        )  # fmt: skip
        sender = Sender(Uploader(store, fence, meter.add), self.known, scratch, pack=compression, traffic=traffic)
        self._plain_meter = Meter("plain")
        # Commits go first: what nobody waits for is sent while nothing of them is.
        uploader = Uploader(store, fence, self._sent_plain, at_once=BESIDE_AT_ONCE, turn=self._spool.idle)
        self._plain = PlainKeys(
            store, self.lines, fence, self.known, uploader, scratch, pack=compression,
            interval_s=settings.plain_interval_s, meter=self._plain_meter, on_progress=on_progress,
        )  # fmt: skip
        self._following: asyncio.Task[None] | None = None
        outputs = EarlyOutputs(
            [block for block in plan.during if block.role == "output"], self.known, sender, pack=compression,
            quiet_s=settings.settle_s, min_interval_s=settings.commit_interval_s,
        )  # fmt: skip
        self._outputs = outputs
        self._watch = Watch(
            self._committer, outputs, plan.during, Calm(settings.settle_s, settings.stream_after_s), self._look, fence,
            _rules(plan, settings), after_commit=self._after_look, meter=meter, on_progress=on_progress,
        )  # fmt: skip
        self._background: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def commits(self) -> int:
        """Commits that this attempt made durable."""
        return self._committer.commits

    def _sent_plain(self, count: int) -> None:
        # What the storage copies counts as progress, not as sent.
        self._plain_meter.add(count)
        self._meter.add(count)

    def _packs(self, line: LineState) -> bool:
        """Whether content is compressed: where the storage need not put plain keys together from it."""
        return self._compression or all(block.plain == "never" for block in line.blocks)

    def _look(self) -> Snapshots:
        seen = {path: take(path) for path in self._paths}
        for path, snapshot in seen.items():
            self.notices.look(path, snapshot)
        return seen

    def _discard(self, bucket: str, keys: list[str]) -> None:
        self._collector.discard(bucket, keys)

    def _accepted(self, accepted: Sequence[tuple[LineState, Line]], seen: Snapshots) -> None:
        self._collector.note(accepted)
        self._plain.accept(self.lines, seen)

    def _settled(self, seen: Snapshots) -> None:
        self._plain.accept(self.lines, seen)

    # -- before the command -------------------------------------------------------------------------------------------

    async def restore(self) -> RestoreReport:
        """Fill the directories of the ``before`` blocks, which are empty.

        Raises:
            StorageError: See `kelpie_worker.sync.restore.Restore`.
            PrefixHeld: Another live job commits to a prefix of this one's.
            DiskFull: No room.
        """
        patience = Patience(GIVE_UP_S, "restore_waits")
        found = await self._find(patience)
        committed, plain = self._sources(found)
        cache = await in_thread(partial(open_cached_inputs, self._settings))
        report = await PlainRestore(
            self._store, compression=self._compression, on_progress=self._on_progress, cache=cache
        ).restore(plain, await in_thread(partial(sizes_of, committed)))
        taken = {file.block.path / file.relative: file.block.index for file in report.files}
        blocks = await CommittedRestore(
            self._store, patience, Meter("restore"), self._on_progress, cache=cache
        ).restore(committed, taken)
        await self._begin(found, report, blocks)
        return RestoreReport(
            report.files, report.bytes + sum(block.total_bytes for block in blocks), report.seconds,
            tuple(block.manifest.header.id for block in blocks),
        )  # fmt: skip

    async def _find(self, patience: Patience) -> dict[LineAddress, FoundLine]:
        endpoint = endpoint_of(self._settings.aws_endpoint_url)
        restored = [
            LineAddress(endpoint, block.bucket, block.prefix)
            for block in self._plan.before
            if block.role == "checkpoint"
        ]
        mine = [line.address for line in self.lines]
        found = await Finder(self._store, self._journal, patience).find(list(dict.fromkeys([*mine, *restored])))
        for address in mine:
            line = found[address].line
            if line.holder_lives and line.holder != self._token.job_id:
                raise PrefixHeld(line.holder or "?", address.bucket, address.prefix)
        return found

    def _sources(self, found: dict[LineAddress, FoundLine]) -> tuple[list[tuple[Placed, Manifest]], list[Placed]]:
        by_place = {(address.bucket, address.prefix): one.manifest for address, one in found.items()}
        committed: list[tuple[Placed, Manifest]] = []
        plain: list[Placed] = []
        for block in self._plan.before:
            manifest = by_place.get((block.bucket, block.prefix)) if block.role == "checkpoint" else None
            if manifest is None:
                plain.append(block)
            else:
                committed.append((block, manifest))
        return committed, plain

    async def _begin(
        self, found: dict[LineAddress, FoundLine], report: RestoreReport, blocks: Sequence[CommittedBlock]
    ) -> None:
        seen = await in_thread(self._look)
        for line in self.lines:
            line.begin(found[line.address].manifest)
            head = found[line.address].line.head
            line.head = head.id if head else ""
            for block in blocks:
                self._note(line, block, seen)
        self._committer.begin(max((one.generation for one in found.values()), default=0))
        self._plain.begin(report, seen)
        await self._outputs.prime(seen)
        self._watch.begin(seen)

    @staticmethod
    def _note(line: LineState, restored: CommittedBlock, seen: Snapshots) -> None:
        place = restored.block
        here = (place.bucket, place.prefix) == (line.address.bucket, line.address.prefix)
        if not here or all(block.path != place.path for block in line.blocks):
            return
        files = seen[place.path].files
        for relative, entry in restored.files.items():
            if relative in files:
                line.note_restored(relative, files[relative], entry)
        line.note_seen(restored.names)

    # -- beside the command -------------------------------------------------------------------------------------------

    async def watch(self, processes: Processes) -> None:
        """Commit what changes, until wound down or cancelled; see `kelpie_worker.sync.watching.Watch.run`."""
        self._in_background(self._collector.run())
        await self._watch.run(processes)

    async def _after_look(self) -> None:
        if self._plain.is_due:
            follow = self._plain.follow(Patience(WATCH_GIVE_UP_S, "plain_waits"), final=False)
            self._following = self._in_background(follow)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(_quietly(work))
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def listen_to(self, report: Path) -> None:
        """See `kelpie_worker.sync.watching.Watch.listen_to`."""
        self._watch.listen_to(report)

    async def order(self) -> str:
        """See `kelpie_worker.sync.watching.Watch.order`."""
        return await self._watch.order()

    def request_commit(self, reported_ns: int | None = None, *, followed: bool = False) -> None:
        """See `kelpie_worker.sync.watching.Watch.request_commit`."""
        self._watch.request_commit(reported_ns, followed=followed)

    async def stopping(self) -> None:
        """See `kelpie_worker.sync.watching.Watch.stopping`."""
        await self._watch.stopping()

    def wind_down(self) -> None:
        """See `kelpie_worker.sync.watching.Watch.wind_down`."""
        self._watch.wind_down()

    def close(self) -> None:
        """From now on what the directories hold says nothing. From any thread."""
        self._closed = True
        self._watch.close()

    async def end(self) -> None:
        """End everything that is under way."""
        await self._end_background()
        await self._spool.close()

    async def _end_background(self, *, but: asyncio.Task[None] | None = None) -> None:
        tasks = self._background - {but}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- after the command --------------------------------------------------------------------------------------------

    async def commit(self, why: str, *, in_order: bool, plain: bool, obeyed: bool = False) -> CommitReport | None:
        """The last commit; see `SyncSession.commit`."""
        if self._closed:
            raise LocalFileError("the job's directories were given back: what they hold is no checkpoint of its")
        give_up_s = self._settings.storage_retry_s
        if plain:
            # A large file that is half sent is not thrown away.
            self._plain.wind_down()
        await self._end_background(but=self._following if plain else None)
        report = await self._watch.last(why, give_up_s, in_order=in_order, obeyed=obeyed)
        if plain:
            await self._plain.follow(Patience(give_up_s, "plain_waits"), final=True)
        return report


async def _quietly(work: Coroutine[Any, Any, None]) -> None:
    """What fails in the background is met again in the foreground."""
    try:
        await work
    except KelpieError as error:
        log.warning("postponed", extra={"action": "background_failed", "error": str(error)})


def _rules(plan: Plan, settings: Settings) -> Rules:
    return Rules(
        quiet_s=settings.settle_s, min_interval_s=settings.commit_interval_s, marker=marker_of(plan.commit),
        on_request_only=plan.commit == "report", give_up_s=min(WATCH_GIVE_UP_S, settings.storage_retry_s),
    )  # fmt: skip


def _lines(blocks: Sequence[Placed], endpoint: str) -> list[LineState]:
    """The lines that blocks store to, in the order of the definition."""
    lines: dict[LineAddress, LineState] = {}
    for block in blocks:
        if block.role == "checkpoint":
            address = LineAddress(endpoint, block.bucket, block.prefix)
            lines.setdefault(address, LineState(address, [])).blocks.append(block)
    return list(lines.values())
