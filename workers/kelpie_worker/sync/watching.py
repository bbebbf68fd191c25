"""When to commit, beside the running command: at quiet moments, at the job's word, or when its marker is written.

What the kernel tells of changes (`inotify`) says when to look; a walk over the directories decides what changed. Files
that were closed after writing are read and sent at once, so that at the quiet moment little is left to send.

Limits: nothing is forced inside a burst of writes: a directory that never falls quiet is committed at the end only, and
warned of.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from kelpie_celery.errors import LedgerUnavailable, StorageUnavailable
from kelpie_worker.sync.calm import Calm
from kelpie_worker.sync.commit import CommitReport, Committer, Outcome, Snapshots, freeze, with_stamps
from kelpie_worker.sync.early_outputs import EarlyOutputs
from kelpie_worker.sync.errors import DiskFull, LocalFileError
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.inotify import Inotify
from kelpie_worker.sync.jobs_word import JobsWord, Survey
from kelpie_worker.sync.open_files import open_for_writing
from kelpie_worker.sync.order import UNKNOWN
from kelpie_worker.sync.plan import Placed
from kelpie_worker.sync.progress import Meter, OnProgress
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.threads import in_thread
from kelpie_worker.sync.timing import Rules, Times

log = logging.getLogger(__name__)

Processes = Callable[[], Sequence[int] | None]
"""The pids of the job's processes, None once the command has ended; called in a thread."""

LATE_S = 120.0
"""How long a checkpoint may wait for a quiet moment before that is warned of, seconds."""
_MERGE_S = 0.05
_REARM_S = 60.0
_CATCH_UP_S = 2.0
_STOP_S = 0.5
_EARLY_TRIES = 1
_MOST_TRIED = 100_000
"""Of so many files it is remembered that they were; a job that makes no commit may close new ones for weeks."""


class Watch:
    """Watches the directories of one attempt's ``during`` blocks.

    Args:
        committer: Makes the commits.
        outputs: Sends outputs that settle.
        blocks: The ``during`` blocks.
        calm: Tells quiet moments.
        look: Walks the directories; blocking.
        fence: Of the attempt.
        rules: When to commit.
        after_commit: Awaited in the background after each look at which it may be due; see ``plain_keys``.
        meter: Counts what is sent.
        on_progress: Told every ten seconds of a long transfer.
    """

    def __init__(
        self, committer: Committer, outputs: EarlyOutputs, blocks: Sequence[Placed], calm: Calm,
        look: Callable[[], Snapshots], fence: Fence, rules: Rules, *, after_commit: Callable[[], Awaitable[None]],
        meter: Meter, on_progress: OnProgress | None = None,
    ) -> None:  # fmt: skip
        self._committer, self._outputs, self._calm, self._look, self._fence = committer, outputs, calm, look, fence
        self._rules, self._after_commit, self._meter, self._on_progress = rules, after_commit, meter, on_progress
        self._checkpoints = [block for block in blocks if block.role == "checkpoint"]
        self._paths = list(dict.fromkeys(block.path for block in blocks))
        self._loop = asyncio.get_running_loop()
        self._word = JobsWord(rules, self._checkpoints)
        self._times = Times(rules, self._loop.time(), self._loop.time(), lambda: committer.last_s)
        self._wake, self._asked = asyncio.Event(), asyncio.Event()
        self.busy = asyncio.Lock()
        """Held while something is committed."""
        self._inotify: Inotify | None = None
        self._blind = True
        self._processes: Processes = list
        self._settled: Snapshots | None = None
        self._proven: Snapshots | None = None
        self._early: dict[Path, None] = {}
        self._early_tries: Counter[Path] = Counter()
        self._last_events_s: Mapping[Path, float] = {}
        self._rearmed_s = self._loop.time()
        self._dirty = True
        self._marker_closed = self._stopping = self._stopped_calm = False
        self._late_since_s: float | None = None
        self._complained = ""
        self._winding_down = self._closed = False

    def begin(self, seen: Snapshots) -> None:
        """What a restore brought is no change; to be called before the command starts."""
        self._settled = seen
        self._calm.observe(seen, self._loop.time())
        self._inotify = Inotify(self._paths, self._from_the_thread, now=self._loop.time)
        self._inotify.start()

    def _from_the_thread(self) -> None:
        self._tell_loop(self._wake)

    def _tell_loop(self, event: asyncio.Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
            self._loop.call_soon_threadsafe(event.set)

    def request_commit(self, reported_ns: int | None = None, *, followed: bool = False) -> None:
        """The job says that its checkpoint is whole: commit now, and from now on only when it says so.

        Args:
            reported_ns: When it said so, by the clock of file times: what changed later belongs to the next checkpoint.
            followed: Whether that is the time of a later word, up to which nobody told of a change.
        """
        self._word.report(reported_ns, followed=followed)
        self._asked.set()
        self._wake.set()

    def listen_to(self, report: Path) -> None:
        """See `inotify.Inotify.listen_to`."""
        if self._inotify is not None:
            self._inotify.listen_to(report)

    async def order(self) -> str:
        """In which order the job spoke and changed something until now; see `kelpie_worker.sync.order`."""
        inotify = self._inotify
        if inotify is None or not await self._hear_out(inotify, _CATCH_UP_S):
            return UNKNOWN
        return inotify.order()

    async def _hear_out(self, inotify: Inotify, patience_s: float) -> bool:
        """Wait until all is heard that has happened until now; whether it is."""
        caught_up = asyncio.Event()
        if not inotify.when_caught_up(lambda: self._tell_loop(caught_up)):
            return False
        try:
            async with asyncio.timeout(patience_s):
                await caught_up.wait()
        except TimeoutError:
            return False
        return True

    async def stopping(self) -> None:
        """The command is to be ended: from now on it may die within a burst, and quiet moments prove nothing.

        To be awaited before it is told; takes a fraction of a second at most.
        """
        if self._stopping:
            return
        self._stopping = True
        inotify = self._inotify
        if inotify is not None and await self._hear_out(inotify, _STOP_S):
            self._drain()
            self._stopped_calm = not self._blind and self._times.is_proven

    def wind_down(self) -> None:
        """The command has ended: let `run` end once what it is doing is done."""
        self._stopping = self._winding_down = True
        self._wake.set()

    def close(self) -> None:
        """From now on what the directories hold says nothing. From any thread."""
        self._closed = True
        inotify, self._inotify = self._inotify, None
        if inotify is not None:
            inotify.close()

    # -- the loop -----------------------------------------------------------------------------------------------------

    async def run(self, processes: Processes = list) -> None:
        """Commit what changes, until wound down or cancelled.

        Raises:
            StorageSetupError: The storage refuses for good, or another job holds a prefix.
            LeaseLost: The attempt lost its job.
        """
        self._processes = processes
        failures = 0
        while not self._winding_down and not self._closed:
            await self._pause(failures)
            if self._winding_down or self._closed:
                return
            try:
                async with self.busy:
                    await self._step()
                failures, self._complained = 0, ""
            except (StorageUnavailable, LedgerUnavailable, LocalFileError, DiskFull) as error:
                if self._closed:
                    return
                failures += 1
                self._complain(error)

    def _complain(self, error: Exception) -> None:
        if str(error) != self._complained:
            self._complained = str(error)
            log.warning("a checkpoint could not be stored yet", extra={"action": "commit_delayed", "error": str(error)})

    async def _pause(self, failures: int) -> None:
        """Wait until there is something to do."""
        if failures:
            self._times.back_off(self._loop.time(), failures)
        while not self._winding_down and not self._closed:
            wait_s = self._due_s() - self._loop.time()
            if wait_s <= 0:
                return
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                continue
            self._wake.clear()
            await asyncio.sleep(_MERGE_S)  # a burst of events is one
            self._drain()
            if self._early and self._loop.time() >= self._times.not_before_s:
                return

    def _due_s(self) -> float:
        """When to look, by the loop's time."""
        times = self._times
        if self._asked.is_set() or (self._marker_closed and self._dirty):
            due_s = float("-inf")  # at once: what follows may be the next checkpoint's first write
        elif self._blind:
            due_s = times.blind_due_s
        elif self._dirty or self._outputs.waiting:
            due_s = times.restless_due_s(by_quiet=self._word.by_quiet, outputs_wait=bool(self._outputs.waiting))
        else:
            due_s = times.idle_due_s
        return max(due_s, times.not_before_s)

    def _drain(self) -> None:
        if self._inotify is None:
            return
        events = self._inotify.drain()
        if events.blind and self._loop.time() - self._rearmed_s >= _REARM_S:
            self._rearmed_s = self._loop.time()
            self._inotify.rearm()
        self._blind = events.blind
        self._dirty = self._dirty or events.changed or events.overflowed
        self._last_events_s = {**self._last_events_s, **events.last_events_s}
        self._times.last_event_s = max(self._times.last_event_s, *events.last_events_s.values(), 0.0)
        self._early.update(dict.fromkeys(events.closed))
        self._marker_closed = self._marker_closed or any(self._word.is_marker(path) for path in events.closed)

    async def _step(self) -> None:
        await self._fence.trusted()
        self._drain()
        await self._stage_early()
        if self._loop.time() < self._due_s():
            return
        asked = self._asked.is_set()
        self._asked.clear()
        self._marker_closed = False
        try:
            survey = await self._survey()
        except BaseException:
            if asked:
                self._asked.set()  # looked at again; what changed meanwhile will show
            raise
        if not self._closed:
            await self._decide(survey, asked=asked)
        if survey.outputs and not self._closed:
            async with self._meter.reporting(self._on_progress):
                await self._outputs.send(survey.outputs, Patience(self._rules.give_up_s, "commit_waits"))
        await self._after_commit()

    async def _stage_early(self) -> None:
        """Begin to send what was closed after writing; once a file until the next commit, lest the line be wasted."""
        paths = [path for path in self._early if self._early_tries[path] < _EARLY_TRIES]
        self._early.clear()
        if len(self._early_tries) > _MOST_TRIED:
            self._early_tries.clear()
        self._early_tries.update(paths)
        if paths:
            await self._committer.stage_early(paths, lambda: self._asked.is_set() or self._winding_down)

    # -- looking ------------------------------------------------------------------------------------------------------

    async def _survey(self) -> Survey:
        """Look and compare; once more where that shows streams whose length must be taken first."""
        streams = self._calm.streams()
        survey = await self._look_once(streams)
        found = self._calm.streams()
        return survey if found <= streams else await self._look_once(found)

    async def _look_once(self, streams: frozenset[Path]) -> Survey:
        seen = await in_thread(partial(self._walk, streams))
        self._times.last_look_s = self._loop.time()
        # What the walk saw change may be told a moment later: it must count as having changed then.
        await asyncio.sleep(_MERGE_S)
        self._drain()
        return await in_thread(partial(self._compare, seen, streams))

    def _walk(self, streams: frozenset[Path]) -> Snapshots:
        """The directories as they are; it costs CPU, so that is counted."""
        began_s = time.thread_time()
        # First, and what is open last: what a burst that begins meanwhile appends is not in, or the burst is seen.
        lengths = freeze(streams)
        seen = {directory: with_stamps(found, directory, lengths) for directory, found in self._look().items()}
        self._times.look_cpu_s = time.thread_time() - began_s
        return seen

    def _compare(self, seen: Snapshots, streams: frozenset[Path]) -> Survey:
        now_s = self._times.last_look_s
        pids = self._processes()
        open_files = open_for_writing(self._paths, pids or ())
        told = None if self._blind else self._last_events_s
        self._calm.observe(seen, now_s, last_events_s=told, open_files=open_files)
        if self._inotify is not None:
            self._inotify.exempt(self._calm.streams())
        changed = self._settled is None or any(seen[b.path] != self._settled[b.path] for b in self._checkpoints)
        mapped = self._word.mapped = frozenset(file.path for file in open_files or () if file.mapped)
        still_open = frozenset(file.path for file in open_files or ())
        marker_ns = self._word.marker_ns(self._settled, seen, still_open)
        outputs = self._outputs.observe(seen, now_s)
        still = streams & self._calm.streams()
        appended = still & self._calm.appended()
        return Survey(seen, changed, marker_ns, pids is not None, still, appended, mapped, outputs)

    async def _decide(self, survey: Survey, *, asked: bool) -> None:
        now_s = self._loop.time()
        self._dirty = survey.changed
        quiet = await self._is_proven(survey, now_s)
        why = self._why(survey, now_s, asked=asked, quiet=quiet)
        if why:
            await self._commit(why, survey, now_s)
        self._warn_if_late(now_s)

    async def _is_proven(self, survey: Survey, now_s: float) -> bool:
        """Whether this is a quiet moment of a command that lives: what a dying one had open is closed as well."""
        if self._stopping or not survey.alive or not self._is_quiet(now_s):
            return False
        if await in_thread(self._processes) is None:
            return False
        self._proven, self._times.proven_s = survey.seen, self._times.last_look_s
        return True

    def _why(self, survey: Survey, now_s: float, *, asked: bool, quiet: bool) -> str:
        """The reason to commit now; empty when there is none."""
        why = self._word.why(survey, reported=asked)
        if why or not survey.changed or now_s < self._times.rested_s or not quiet:
            return why
        return "quiet" if self._word.by_quiet else ""

    def _is_quiet(self, now_s: float) -> bool:
        return self._calm.quiet_for_s([block.path for block in self._checkpoints], now_s) >= self._rules.quiet_s

    async def _commit(self, why: str, survey: Survey, now_s: float) -> None:
        before_s, self._times.last_began_s = self._times.last_began_s, now_s
        try:
            async with self._meter.reporting(self._on_progress):
                tried = await self._committer.try_once(
                    why, self._rules.give_up_s, seen=survey.seen, streams=survey.streams, appended=survey.appended,
                    mapped=survey.mapped,
                )  # fmt: skip
        except BaseException:
            self._times.last_began_s = before_s  # what did not succeed is tried again soon
            self._word.owe(why, survey)
            raise
        if tried.outcome is Outcome.DISTURBED:
            self._times.last_began_s = before_s
            self._times.rest(self._loop.time())
            self._dirty = True
            self._word.miss(why)
            return
        self._settled = tried.seen
        self._word.met()
        self._dirty, self._late_since_s = False, None
        self._early_tries.clear()

    def _warn_if_late(self, now_s: float) -> None:
        """A directory that never holds still is never stored: its user must hear of it."""
        if not self._dirty or not self._word.by_quiet:
            self._late_since_s = None
            return
        self._late_since_s = self._late_since_s or now_s
        if now_s - self._late_since_s >= max(LATE_S, 2 * self._rules.min_interval_s):
            self._late_since_s = now_s
            log.warning(
                "no quiet moment for a checkpoint; close files after writing, write less often, or say when it is whole"
                " with KELPIE_REPORT or a marker",
                extra={"action": "commit_late", "waited_s": LATE_S, "quiet_s": self._rules.quiet_s,
                       "disturbed_by": self._calm.disturbed_by()},
            )  # fmt: skip

    # -- after the command --------------------------------------------------------------------------------------------

    async def last(self, why: str, give_up_s: float, *, in_order: bool, obeyed: bool = False) -> CommitReport | None:
        """The last commit of the attempt; the command has ended.

        Args:
            why: The reason.
            give_up_s: How long a storage that gives no sign of life is waited for.
            in_order: Whether the command ended in order. One that was killed, or that failed, may have been in the
                middle of a write: then only what is known to be whole is taken.
            obeyed: Whether it was told to stop, and ended by itself, though with an error.

        Returns:
            None when nothing was committed, since it may not be whole.

        Raises:
            KelpieError: See `Committer.commit`.
        """
        self.wind_down()
        async with self.busy:
            if not in_order and not await self._is_whole(obeyed=obeyed):
                log.warning(
                    "the command may have ended in the middle of a write; the checkpoint before that stays",
                    extra={"action": "commit_skipped", "why": why, "quiet_s": self._rules.quiet_s},
                )
                return None
            async with self._meter.reporting(self._on_progress):
                return await self._committer.commit(why, give_up_s)

    async def _is_whole(self, *, obeyed: bool) -> bool:
        """Whether what the command left is known to be whole.

        No time is of use here: who hears late of a death takes the pause within a burst for quiet.
        """
        seen = await in_thread(self._look)
        said = self._word.holds(self._settled, seen, self._calm.streams(), reported=self._asked.is_set())
        # What it wrote after SIGTERM is its answer to that; unless it was writing already, and broke off.
        if said or (said is None and obeyed and self._stopped_calm):
            return True
        same = seen == self._settled or (self._word.by_quiet and seen == self._proven)
        # As far as stamps tell. What a mapping changed since may be half of what was to come.
        return same and not await self._committer.has_changed_in_silence()
