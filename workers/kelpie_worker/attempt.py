"""One attempt of a job: claim -> restore -> launch -> supervise -> final sync -> report.

The claim was made and the report will be sent by the Celery task; this is what lies between, in one TaskGroup with the
heartbeat. Whatever ends it, nothing of it is left running. Limits: one asyncio loop, in a pool thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kelpie_celery.app import KelpieApp
from kelpie_celery.clock import Clock
from kelpie_celery.definition import JobDefinition, from_json
from kelpie_celery.errors import KelpieError, LeaseLost, LedgerUnavailable, StorageUnavailable
from kelpie_celery.ledger.types import Ending, Granted
from kelpie_celery.lifecycle import Outcome, Phase, Reason
from kelpie_celery.meters import Stage
from kelpie_celery.retry_rules import ruled
from kelpie_celery.running import RunningJob, Stop
from kelpie_worker import endings
from kelpie_worker.attempt_log import AttemptLog
from kelpie_worker.command import Command, CommandExit, CommandSpec, ReportFile
from kelpie_worker.command.budget import OutputBudget
from kelpie_worker.command.recent import RecentOutput
from kelpie_worker.command.words import Words
from kelpie_worker.environment import JobFiles, job_environment
from kelpie_worker.evidence import gather, temporary_places
from kelpie_worker.journal import LedgerJournal
from kelpie_worker.lease import Lease, LedgerOutOfReach
from kelpie_worker.limits import Limits
from kelpie_worker.memory import MemoryWatch, own_group, watching_memory
from kelpie_worker.places import Place, Places
from kelpie_worker.scratch import Scratch
from kelpie_worker.state_file import JobState, StateFile
from kelpie_worker.stopping import Stopped, StopWatch, cancel_and_wait
from kelpie_worker.sync import CommitReport, Dirs, Progress, SyncSession
from kelpie_worker.sync.threads import in_thread

log = logging.getLogger(__name__)
job_log = logging.getLogger("kelpie_worker.job")

LAST_COMMIT_S = 600.0
"""How long the last checkpoint of an attempt that did not succeed may take, seconds, or the grace period if longer."""

CANCELED_COMMIT_S = 60.0
"""The same for a canceled job, which nobody will resume."""

PREEMPTION_S = 2.0
"""How long after a command was ended by a signal its worker may be told to end, seconds, for both to have one cause."""

_REPORT_EVERY_S = 0.2
_TAIL_LINES, _TAIL_BYTES = 20, 2048


@dataclass(frozen=True)
class Runtime:
    """What all attempts of a worker process share."""

    app: KelpieApp
    places: Places
    scratch: Scratch
    clock: Clock
    environ: Mapping[str, str]
    state: StateFile
    on_news: Callable[[], None] = lambda: None
    """Called in the attempt's loop when what it does has changed; must not wait."""


class Attempt:
    """Runs one attempt; use it once."""

    def __init__(self, runtime: Runtime, granted: Granted, job: RunningJob) -> None:
        settings = runtime.app.settings
        self._runtime, self._granted, self._job = runtime, granted, job
        self._settings = settings
        self._definition: JobDefinition = from_json(granted.definition)
        self._delay_s = endings.retry_delay_s(granted.num_failures, settings)
        self._stop = StopWatch(job)
        self._recent = RecentOutput(runtime.app.redactor, runtime.clock.boottime)
        self._log: AttemptLog | None = None
        self._lease = Lease(
            granted.token, runtime.app.ledger, lease_s=granted.lease_s, margin_s=settings.margin_s(granted.lease_s),
            blind_s=settings.blind_s, heartbeat_s=self._definition.heartbeat_interval, granted=job.asked_at,
            clock=runtime.clock, on_cancel=lambda: job.ask_to_stop(Stop.CANCEL),
            on_news=self._told, on_renewal=runtime.app.meters.renewal, output=self._recent,
        )  # fmt: skip
        job.trusted = lambda: self._lease.remaining_s() > 0
        self._limits = Limits(self._definition, granted.ran_s, self._delay_s, runtime.clock)
        self._facts: dict[str, Any] = {}
        self._evidence = endings.NO_EVIDENCE
        self._budget = OutputBudget(runtime.clock.boottime)
        self._state: JobState = runtime.state.begin(granted.token.job_id)
        self._began = runtime.clock.boottime()

    @property
    def _fields(self) -> dict[str, Any]:
        token = self._granted.token
        return {"job_id": token.job_id, "attempt": token.attempt, "machine_id": self._settings.machine_id,
                "container_group": self._definition.container_group_id}  # fmt: skip

    async def run(self) -> Ending:
        """Run to the end.

        Raises:
            LeaseLost: Another attempt owns the job.
        """
        ending = None
        try:
            with self._runtime.app.redactor.hiding(self._definition.environment.values()):
                ending = await self._run()
            return ending
        finally:
            self._runtime.state.end(self._state, ending)

    async def _run(self) -> Ending:
        log.info("attempt starts", extra={"action": "attempt_started", **self._fields})
        try:
            async with asyncio.TaskGroup() as group:
                heartbeat = group.create_task(self._lease.keep())
                ending = await self._life()
                heartbeat.cancel()
        except* LeaseLost as lost:
            raise _first(lost) from None
        except* LedgerOutOfReach as e:
            ending = endings.interruption(Reason.BROKER_UNAVAILABLE, str(_first(e)))
        except* Exception as e:
            error = _first(e)
            log.exception(
                "attempt failed in the worker",
                exc_info=error,
                extra={"action": "worker_error", **self._fields},
            )
            ending = endings.of_error(error, self._delay_s)
        seconds = round(self._runtime.clock.boottime() - self._began, 3)
        log.info(
            "attempt ended",
            extra={"action": "attempt_ended", "outcome": ending.outcome, "reason": ending.reason, "duration_s": seconds,
                   "why": ending.message or None, **self._fields},
        )  # fmt: skip
        facts = {"seconds": seconds, **self._facts, **ending.facts}
        return replace(ending, facts=facts, output=self._recent.news(last=True))

    async def _life(self) -> Ending:
        try:
            async with self._runtime.places.slot() as place:
                with self._runtime.scratch.folder() as scratch:
                    async with self._open_sync(scratch, place) as sync:
                        return await self._pipeline(sync, JobFiles(scratch), place)
        except Stopped as stopped:
            return self._stopped(stopped.why)
        except LeaseLost:
            raise
        except KelpieError as e:
            return endings.of_error(e, self._delay_s)

    def _directories(self, place: Place) -> dict[str, Path]:
        s = self._settings
        named = {"INPUT_DIR": s.input_dir, "OUTPUT_DIR": s.output_dir, "CHECKPOINT_DIR": s.checkpoint_dir}
        return {name: place.directory(s.workdir / path) for name, path in named.items()}

    def _open_sync(self, scratch: Path, place: Place) -> SyncSession:
        s, token, named = self._settings, self._granted.token, self._directories(place)
        dirs = Dirs(
            workdir=s.workdir,
            input=named["INPUT_DIR"],
            output=named["OUTPUT_DIR"],
            checkpoint=named["CHECKPOINT_DIR"],
        )
        return SyncSession.open(
            s, self._definition, token=token, fence=self._lease, dirs=dirs, scratch=scratch,
            journal=LedgerJournal(self._runtime.app.ledger, token), on_commit=self._committed,
            on_progress=self._transferred, traffic=self._state.traffic,
        )  # fmt: skip

    def _stopped(self, why: Stop) -> Ending:
        if why is Stop.CANCEL:
            return endings.canceled()
        return endings.interruption(Reason.WORKER_SHUTDOWN, "the worker was told to end")

    # -- the pipeline ---------------------------------------------------------------------------------------------

    async def _pipeline(self, sync: SyncSession, files: JobFiles, place: Place) -> Ending:
        adopted = await self._adopt(sync)
        if adopted:
            return adopted
        await self._stop.unless_stopped(place.take(sync.local_paths, self._waits))
        try:
            ending = await self._work(sync, files, place)
        except LeaseLost:
            raise
        except Exception:
            await self._store_log(sync, place)
            raise
        else:
            await self._store_log(sync, place, ending)
            return ending
        finally:
            if self._log:
                self._log.close()

    async def _work(self, sync: SyncSession, files: JobFiles, place: Place) -> Ending:
        try:
            await self._stop.unless_stopped(self._restore(sync))
            with self._runtime.state.unless_within(self._state, sync.local_paths):
                exit_, ending = await self._execute(sync, files, place)
            return ending or self._of_exit(exit_, new_commit=sync.commits > 0) or await self._final_sync(sync, place)
        finally:
            try:
                # A look that is still under way must not take the emptied directories for the job's doing.
                await sync.end_watch()
            finally:
                # To its end, whatever happens: after this the directories may be the next job's.
                await in_thread(sync.clean)

    async def _store_log(self, sync: SyncSession, place: Place, ending: Ending | None = None) -> None:
        """Store what the command wrote, if it was started; no GPU waits for that, and no work is done twice for it."""
        if self._log is None or not self._log.is_wanted:
            return
        self._lease.enter(Phase.UPLOADING)
        place.leave()
        self._job.free_slot()
        if ending and ending.outcome is Outcome.COMPLETED and not sync.has_marker:
            try:
                await asyncio.to_thread(self._runtime.app.ledger.finished, self._granted.token, ending.result)
            except LedgerUnavailable as e:
                # The report waits for Redis anyway; a log is not worth that the job runs again should this worker die.
                self._facts["log_failed"] = f"Redis was away: {e}"
                return
        self._facts |= await self._log.store(sync, self._stop, self._runtime.app.redactor, self._fields)

    async def _adopt(self, sync: SyncSession) -> Ending | None:
        """An earlier attempt that finished all but its report left a marker: its work is not done again."""
        if self._granted.token.attempt == 1:
            return None
        if self._granted.finished:
            return self._adopted(json.loads(self._granted.finished))
        marker = await self._stop.unless_stopped(sync.find_marker())
        return None if marker is None else self._adopted(marker["result"])

    def _adopted(self, result: Any) -> Ending:
        log.info("an earlier attempt had finished", extra={"action": "completion_adopted", **self._fields})
        return Ending(Outcome.COMPLETED, Reason.ADOPTED, result=result)

    async def _restore(self, sync: SyncSession) -> None:
        began = self._runtime.clock.boottime()
        with self._state.traffic.downloading(sync.local_paths):
            report = await sync.restore()
        self._add_transfer("restore", report.bytes, self._runtime.clock.boottime() - began)

    def _add_transfer(self, stage: Stage, count_bytes: int, seconds: float) -> None:
        """For history and metrics, and for how fast the machine's network is: only what moved bytes counts."""
        kind = "received" if stage == "restore" else "sent"
        if count_bytes > 0:
            self._runtime.app.meters.transfer(stage, count_bytes, seconds)
            self._facts[f"{kind}_bytes"] = self._facts.get(f"{kind}_bytes", 0) + count_bytes
            self._facts[f"{kind}_s"] = round(self._facts.get(f"{kind}_s", 0.0) + seconds, 3)

    async def _execute(self, sync: SyncSession, files: JobFiles, place: Place) -> tuple[CommandExit, Ending | None]:
        """Run the command; its exit, and the ending that something else than the exit decided."""
        files.parents.write_text(self._granted.parents)
        spec = self._spec(files, place)
        await self._lease.launch()
        self._limits.launched()
        launched = self._runtime.clock.boottime()
        # As the ledger takes the attempt's time apart; nothing was executed where the command cannot be started.
        self._facts["execute_s"] = 0.0
        sync.listen_to(files.report)
        alone = len(self._runtime.places.slots) == 1
        with watching_memory(own_group(), self._runtime.clock, alone=alone) as memory:
            self._log = AttemptLog(self._settings, self._definition, self._granted.token, files.folder)
            command = await Command.start(
                spec, self._on_line, budget=self._budget, enter=memory.enter, pen=self._log.pen
            )
            self._log.started = True
            words = Words(ReportFile(files.report, self._fields), sync.order)
            try:
                exit_, ending = await self._supervise(command, sync, words, memory)
            finally:
                await command.stop(0)
                self._facts["execute_s"] = round(self._runtime.clock.boottime() - launched, 3)
            memory.look()
        self._state.exited(exit_.code if exit_.signal is None else None)
        self._facts |= endings.exit_facts(exit_)
        if self._budget.left_out_bytes:
            self._facts["output_left_out_bytes"] = self._budget.left_out_bytes
        if exit_.ok and ending is None:
            return exit_, None
        tail = command.last_lines(_TAIL_LINES, _TAIL_BYTES)
        if tail:
            mask = self._runtime.app.redactor.mask
            self._facts["output_tail"] = [mask(line) for line in tail]
        told = ending
        if ending is None:
            places = [*sync.local_paths, spec.cwd, files.folder, *temporary_places(spec.env)]
            self._evidence = await gather(memory, places, tail)
            told = endings.preempted(exit_) if await self._machine_ends(exit_) else None
        last = self._is_last_try(told or self._of_exit(exit_, new_commit=True))
        await self._last_commit(sync, exit_, ending, last=last)
        return exit_, told

    def _of_exit(self, exit_: CommandExit, *, new_commit: bool) -> Ending | None:
        return endings.of_exit(exit_, new_commit=new_commit, delay_s=self._delay_s, evidence=self._evidence)

    async def _machine_ends(self, exit_: CommandExit) -> bool:
        """Whether the worker is told to end at the same moment: a machine that stops signals all of its processes."""
        if exit_.code == endings.RUN_ME_AGAIN or self._evidence.memory_kills:
            return False
        if self._stop.why is None and endings.by_the_machine(exit_):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PREEMPTION_S):
                    await self._stop.asked()
        return self._stop.why is Stop.SHUTDOWN

    def _spec(self, files: JobFiles, place: Place) -> CommandSpec:
        s, d = self._settings, self._definition
        env = job_environment(s, self._runtime.environ, d, self._granted, files, self._directories(place), place.gpus)
        return CommandSpec(argv=(d.command, *d.arguments), env=env, cwd=s.workdir)

    async def _supervise(
        self, command: Command, sync: SyncSession, words: Words, memory: MemoryWatch
    ) -> tuple[CommandExit, Ending | None]:
        exited = asyncio.ensure_future(command.wait())
        watched = asyncio.ensure_future(sync.watch(command.processes))
        limited = asyncio.ensure_future(self._limits.exceeded())
        asked = asyncio.ensure_future(self._stop.asked())
        reported = asyncio.ensure_future(self._follow(words, sync, memory))
        try:
            await asyncio.wait({exited, watched, limited, asked, reported}, return_when=asyncio.FIRST_COMPLETED)
            if exited.done() or command.has_ended:
                # By itself: what is left is to collect its output and what it started.
                return await exited, None
            await sync.stopping()
            canceled = asked.done() and asked.result() is Stop.CANCEL
            exit_ = await self._end(command, canceled=canceled)
            if asked.done():
                return exit_, self._stopped(asked.result())
            if limited.done():
                return exit_, limited.result()
            error = (watched if watched.done() else reported).exception()
            return exit_, self._of_lost_helper(error)
        finally:
            await cancel_and_wait(exited, watched, limited, asked, reported)
            await self._take_reports(words, sync)

    async def _end(self, command: Command, *, canceled: bool) -> CommandExit:
        """End the command within its grace period; a canceled one by SIGINT first, where that is wanted."""
        grace_s = float(self._definition.grace_period)
        if canceled and self._settings.cancel_signal == "INT" and grace_s > 0:
            began = self._runtime.clock.boottime()
            command.send_signal(signal.SIGINT)
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(command.wait(), grace_s / 2)
            grace_s = max(0.0, grace_s - (self._runtime.clock.boottime() - began))
        return await command.stop(grace_s)

    def _of_lost_helper(self, error: BaseException | None) -> Ending:
        if isinstance(error, LeaseLost):
            raise error
        if isinstance(error, Exception):
            return endings.of_error(error, self._delay_s)
        return endings.failure(Reason.WORKER_ERROR, "the watch over the job's files ended early", self._delay_s)

    async def _last_commit(self, sync: SyncSession, exit_: CommandExit, ending: Ending | None, *, last: bool) -> None:
        """The checkpoint that an attempt without success leaves to the next one."""
        # Killed, failed by itself, or gone at our SIGTERM with an error, it may have been in the middle of a write.
        in_order = exit_.signal is None and exit_.code in (0, endings.RUN_ME_AGAIN)
        obeyed = exit_.signal is None and ending is not None
        if ending is None and exit_.code == endings.RUN_ME_AGAIN:
            # This checkpoint is what the attempt was for: a storage that is away interrupts, and never fails it. The
            # command has ended: that wait is none of its running time.
            self._lease.enter(Phase.UPLOADING)
            commit = sync.commit("exit", plain=False)
            await self._stop.unless_stopped(commit, shutdown_grace_s=self._definition.grace_period)
            return
        canceled = ending is not None and ending.outcome is Outcome.CANCELED
        patience_s = max(CANCELED_COMMIT_S if canceled else LAST_COMMIT_S, self._definition.grace_period)
        try:
            async with asyncio.timeout(patience_s):
                plain = canceled or last
                await sync.commit("sigterm" if ending else "exit", in_order=in_order, plain=plain, obeyed=obeyed)
        except LeaseLost:
            raise
        except (KelpieError, OSError, TimeoutError) as e:
            log.warning(
                "the last checkpoint was not stored; the one before it stays",
                extra={"action": "last_commit_failed", "error": str(e), **self._fields},
            )

    def _is_last_try(self, ending: Ending | None) -> bool:
        """Whether nobody will go on from here: then people may want to find the checkpoint under its plain keys."""
        if ending is None:
            return False
        judged = ruled(self._definition.retry, ending)
        last = self._granted.num_failures + 1 >= self._definition.max_failures or judged.final
        return judged.outcome is Outcome.FAILURE and last

    async def _final_sync(self, sync: SyncSession, place: Place) -> Ending:
        self._lease.enter(Phase.UPLOADING)
        return await self._stop.unless_stopped(
            self._upload(sync, place), shutdown_grace_s=self._definition.grace_period
        )

    async def _upload(self, sync: SyncSession, place: Place) -> Ending:
        await sync.commit("exit")
        if await in_thread(sync.move_outputs_aside):
            # The outputs are out of the next job's way: it may start while they go up.
            place.leave()
            self._job.free_slot()
        began, before = self._runtime.clock.boottime(), sync.bytes_sent
        with self._state.traffic.uploading(sync.local_paths):
            listing = await sync.upload_outputs()
        self._add_transfer("outputs", sync.bytes_sent - before, self._runtime.clock.boottime() - began)
        result = {
            "job_id": self._granted.token.job_id,
            "attempt": self._granted.token.attempt,
            "machine_id": self._settings.machine_id,
            "exit_code": 0,
            "outputs": listing.summary(),
        }
        await sync.write_marker(result)
        self._facts["bytes_sent"] = sync.bytes_sent
        return Ending(Outcome.COMPLETED, Reason.DONE, result=result)

    # -- what the command says ------------------------------------------------------------------------------------

    def _on_line(self, stream: str, line: str) -> None:
        self._limits.sign_of_life()
        self._recent.add(line)
        job_log.info("%s", line, extra={"action": "output", "stream": stream, **self._fields})

    async def _follow(self, words: Words, sync: SyncSession, memory: MemoryWatch) -> None:
        left_out_bytes = 0
        while True:
            await self._take_reports(words, sync)
            memory.look()
            if self._budget.left_out_bytes != left_out_bytes:
                left_out_bytes = self._budget.left_out_bytes
                self._limits.sign_of_life()
            if self._recent.is_due:
                self._lease.report_output()
            await asyncio.sleep(_REPORT_EVERY_S)

    async def _take_reports(self, words: Words, sync: SyncSession) -> None:
        seen: dict[str, Any] = {}
        for entry, said_ns, followed in await words.hear():
            self._limits.sign_of_life()
            if entry.progress is not None:
                seen["progress"] = entry.progress
            if entry.message is not None:
                seen["message"] = entry.message
            if entry.commit:
                sync.request_commit(said_ns, followed=followed)
        if seen:
            self._lease.report(json.dumps(seen))
            # Events and answers go to all who can reach Redis; the record only to those who may read it.
            if seen.get("message"):
                seen["message"] = self._runtime.app.redactor.mask(seen["message"])
            self._job.said = json.dumps(seen)
            self._job.say(seen.get("progress"), seen.get("message"))

    async def _committed(self, report: CommitReport) -> None:
        """A checkpoint is durable: the job is alive."""
        self._limits.sign_of_life()
        self._add_transfer("commit", report.sent_bytes, report.seconds)
        self._runtime.app.meters.commit(report.seconds, report.sent_bytes)

    def _waits(self, waits: bool) -> None:
        """The job holds a slot and waits for its directories, perhaps for days: its record says so."""
        text = "waits for directories that another job of this machine uses" if waits else ""
        self._lease.report(json.dumps({"message": text}))

    def _told(self, phase: Phase, beats: int) -> None:
        """The attempt has gone on: what it costs to delete this instance has changed."""
        self._job.note(phase, beats)
        self._runtime.on_news()

    def _transferred(self, progress: Progress) -> None:
        """A long transfer goes on; the ledger hears of it with the next heartbeat."""
        self._lease.report_transfer(json.dumps({} if progress.over else progress.facts()))


def _first(errors: BaseExceptionGroup[Any]) -> Exception:
    """The first error of a group, however deep."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, Exception) else StorageUnavailable(str(error), bucket="")
