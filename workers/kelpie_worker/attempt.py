"""One attempt of a job: claim -> restore -> launch -> supervise -> final sync -> report.

The claim was made and the report will be sent by the Celery task; this is what lies between, in one TaskGroup with the
heartbeat. Whatever ends it, nothing of it is left running. Limits: one asyncio loop, in a pool thread.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kelpie_celery.app import KelpieApp
from kelpie_celery.clock import Clock
from kelpie_celery.definition import JobDefinition, from_json
from kelpie_celery.errors import KelpieError, LeaseLost, LedgerUnavailable, StorageUnavailable
from kelpie_celery.ledger.types import Ending, Granted
from kelpie_celery.lifecycle import Outcome, Phase, Reason
from kelpie_celery.running import RunningJob, Stop
from kelpie_worker import endings
from kelpie_worker.command import Command, CommandExit, CommandSpec, ReportFile
from kelpie_worker.environment import JobFiles, job_environment
from kelpie_worker.lease import Lease, LedgerOutOfReach
from kelpie_worker.limits import Limits
from kelpie_worker.places import Place, Places
from kelpie_worker.scratch import Scratch
from kelpie_worker.stopping import Stopped, StopWatch, cancel_and_wait
from kelpie_worker.sync import CommitReport, Dirs, SyncSession
from kelpie_worker.sync.threads import in_thread

log = logging.getLogger(__name__)
job_log = logging.getLogger("kelpie_worker.job")

LAST_COMMIT_S = 600.0
"""How long the last checkpoint of an attempt that did not succeed may take, seconds, or the grace period if longer."""

CANCELED_COMMIT_S = 60.0
"""The same for a canceled job, which nobody will resume."""

_REPORT_EVERY_S = 0.5
_TAIL_LINES, _TAIL_BYTES = 20, 2048


@dataclass(frozen=True)
class Runtime:
    """What all attempts of a worker process share."""

    app: KelpieApp
    places: Places
    scratch: Scratch
    clock: Clock
    environ: Mapping[str, str]


class Attempt:
    """Runs one attempt; use it once."""

    def __init__(self, runtime: Runtime, granted: Granted, job: RunningJob) -> None:
        settings = runtime.app.settings
        self._runtime, self._granted, self._job = runtime, granted, job
        self._settings = settings
        self._definition: JobDefinition = from_json(granted.definition)
        self._delay_s = endings.retry_delay_s(granted.num_failures, settings)
        self._stop = StopWatch(job)
        self._lease = Lease(
            granted.token, runtime.app.ledger, lease_s=granted.lease_s, margin_s=settings.margin_s(granted.lease_s),
            blind_s=settings.blind_s, heartbeat_s=self._definition.heartbeat_interval, granted=job.asked_at,
            clock=runtime.clock, on_cancel=lambda: job.ask_to_stop(Stop.CANCEL),
        )  # fmt: skip
        self._limits = Limits(self._definition, granted.ran_s, self._delay_s, runtime.clock)
        self._facts: dict[str, Any] = {}
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
        with self._runtime.app.redactor.hiding(self._definition.environment.values()):
            return await self._run()

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
        return replace(ending, facts={"seconds": seconds, **self._facts, **ending.facts})

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
            s, self._definition, job_id=token.job_id, attempt=token.attempt, fence=self._lease, dirs=dirs,
            scratch=scratch, on_commit=self._committed,
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
        await self._stop.unless_stopped(place.take(sync.local_paths))
        try:
            await self._stop.unless_stopped(sync.restore())
            exit_, ending = await self._execute(sync, files, place)
            if ending is None:
                ending = endings.of_exit(exit_, new_commit=sync.commits > 0, delay_s=self._delay_s)
            return ending or await self._final_sync(sync, place)
        finally:
            try:
                # A look that is still under way must not take the emptied directories for the job's doing.
                await sync.end_watch()
            finally:
                # To its end, whatever happens: after this the directories may be the next job's.
                await in_thread(sync.clean)

    async def _adopt(self, sync: SyncSession) -> Ending | None:
        """An earlier attempt that finished all but its report left a marker: its work is not done again."""
        if self._granted.token.attempt == 1:
            return None
        marker = await self._stop.unless_stopped(sync.find_marker())
        if marker is None:
            return None
        log.info("an earlier attempt had finished", extra={"action": "completion_adopted", **self._fields})
        return Ending(Outcome.COMPLETED, Reason.ADOPTED, result=marker["result"])

    async def _execute(self, sync: SyncSession, files: JobFiles, place: Place) -> tuple[CommandExit, Ending | None]:
        """Run the command; its exit, and the ending that something else than the exit decided."""
        files.parents.write_text(self._granted.parents)
        spec = self._spec(files, place)
        self._lease.enter(Phase.EXECUTING)
        self._limits.launched()
        command = await Command.start(spec, self._on_line)
        try:
            exit_, ending = await self._supervise(command, sync, ReportFile(files.report, self._fields))
        finally:
            await command.stop(0)
        self._facts |= {"exit_code": exit_.code} if exit_.signal is None else {"signal": exit_.signal}
        if not exit_.ok or ending is not None:
            self._facts["output_tail"] = command.last_lines(_TAIL_LINES, _TAIL_BYTES)
            await self._last_commit(sync, exit_, ending)
        return exit_, ending

    def _spec(self, files: JobFiles, place: Place) -> CommandSpec:
        s, d = self._settings, self._definition
        env = job_environment(s, self._runtime.environ, d, self._granted, files, self._directories(place), place.gpus)
        return CommandSpec(argv=(d.command, *d.arguments), env=env, cwd=s.workdir)

    async def _supervise(
        self, command: Command, sync: SyncSession, report: ReportFile
    ) -> tuple[CommandExit, Ending | None]:
        exited = asyncio.ensure_future(command.wait())
        watched = asyncio.ensure_future(sync.watch())
        limited = asyncio.ensure_future(self._limits.exceeded())
        asked = asyncio.ensure_future(self._stop.asked())
        reported = asyncio.ensure_future(self._follow(report, sync))
        try:
            await asyncio.wait({exited, watched, limited, asked, reported}, return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                return exited.result(), None
            exit_ = await command.stop(self._definition.grace_period)
            if asked.done():
                return exit_, self._stopped(asked.result())
            if limited.done():
                return exit_, limited.result()
            error = (watched if watched.done() else reported).exception()
            return exit_, self._of_lost_helper(error)
        finally:
            await cancel_and_wait(exited, watched, limited, asked, reported)
            self._take_reports(report, sync)

    def _of_lost_helper(self, error: BaseException | None) -> Ending:
        if isinstance(error, LeaseLost):
            raise error
        if isinstance(error, Exception):
            return endings.of_error(error, self._delay_s)
        return endings.interruption(Reason.WORKER_ERROR, "the watch over the job's files ended early", self._delay_s)

    async def _last_commit(self, sync: SyncSession, exit_: CommandExit, ending: Ending | None) -> None:
        """The checkpoint that an attempt without success leaves to the next one."""
        if exit_.signal == signal.SIGKILL:  # it may have been in the middle of a write
            return
        if ending is None and exit_.code == endings.RUN_ME_AGAIN:
            # This checkpoint is what the attempt was for: a storage that is away interrupts, and never fails it.
            commit = sync.commit("exit")
            await self._stop.unless_stopped(commit, shutdown_grace_s=self._definition.grace_period)
            return
        canceled = ending is not None and ending.outcome is Outcome.CANCELED
        patience_s = max(CANCELED_COMMIT_S if canceled else LAST_COMMIT_S, self._definition.grace_period)
        try:
            async with asyncio.timeout(patience_s):
                await sync.commit("sigterm" if ending else "exit")
        except LeaseLost:
            raise
        except (KelpieError, OSError, TimeoutError) as e:
            log.warning(
                "the last checkpoint was not stored; the one before it stays",
                extra={"action": "last_commit_failed", "error": str(e), **self._fields},
            )

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
        listing = await sync.upload_outputs()
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
        job_log.info("%s", line, extra={"action": "output", "stream": stream, **self._fields})

    async def _follow(self, report: ReportFile, sync: SyncSession) -> None:
        while True:
            self._take_reports(report, sync)
            await asyncio.sleep(_REPORT_EVERY_S)

    def _take_reports(self, report: ReportFile, sync: SyncSession) -> None:
        seen: dict[str, Any] = {}
        for entry in report.poll():
            self._limits.sign_of_life()
            if entry.progress is not None:
                seen["progress"] = entry.progress
            if entry.message is not None:
                seen["message"] = entry.message
            if entry.commit:
                sync.request_commit()
        if seen:
            self._lease.report(json.dumps(seen))

    async def _committed(self, commit: CommitReport) -> None:
        """A checkpoint is durable: the ledger notes it, so that a job with progress is never taken for poison."""
        self._limits.sign_of_life()
        pointer = {
            "why": commit.why,
            "files": commit.files,
            "bytes": commit.bytes,
            "seconds": round(commit.seconds, 3),
        }
        try:
            await asyncio.to_thread(self._runtime.app.ledger.commit, self._granted.token, pointer)
        except LedgerUnavailable as e:
            log.warning(
                "a checkpoint was not noted",
                extra={"action": "commit_unnoted", "error": str(e), **self._fields},
            )


def _first(errors: BaseExceptionGroup[Any]) -> Exception:
    """The first error of a group, however deep."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, Exception) else StorageUnavailable(str(error), bucket="")
