"""One attempt of a job: claim -> restore -> launch -> supervise -> final sync -> report.

The claim was made and the report will be sent by the Celery task; this is what lies between, in one TaskGroup with the
heartbeat. Whatever ends it, nothing of it is left running. Limits: one asyncio loop, in a pool thread.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from kelpie_celery.definition import from_json
from kelpie_celery.errors import KelpieError, LeaseLost, LedgerUnavailable, StorageUnavailable
from kelpie_celery.ledger.types import Ending, Granted
from kelpie_celery.lifecycle import Outcome, Phase, Reason
from kelpie_celery.meters import Stage
from kelpie_celery.running import RunningJob, Stop
from kelpie_worker import endings
from kelpie_worker.attempt_context import AttemptContext, Runtime
from kelpie_worker.attempt_log import AttemptLog
from kelpie_worker.command.recent import RecentOutput
from kelpie_worker.environment import JobFiles
from kelpie_worker.execution import Execution
from kelpie_worker.journal import LedgerJournal
from kelpie_worker.lease import Lease, LedgerOutOfReach
from kelpie_worker.limits import Limits
from kelpie_worker.places import Place
from kelpie_worker.stopping import Stopped, StopWatch
from kelpie_worker.sync import CommitReport, Dirs, Progress, SyncSession
from kelpie_worker.sync.threads import in_thread

log = logging.getLogger(__name__)


class Attempt:
    """Runs one attempt; use it once."""

    def __init__(self, runtime: Runtime, granted: Granted, job: RunningJob) -> None:
        self._runtime, self._granted, self._job = runtime, granted, job
        self._settings, self._definition = runtime.app.settings, from_json(granted.definition)
        self._delay_s = endings.retry_delay_s(granted.num_failures, self._settings)
        self._stop = StopWatch(job)
        self._recent = RecentOutput(runtime.app.redactor, runtime.clock.boottime)
        self._lease = Lease(
            granted.token, runtime.app.ledger, lease_s=granted.lease_s,
            margin_s=self._settings.margin_s(granted.lease_s), blind_s=self._settings.blind_s,
            heartbeat_s=self._definition.heartbeat_interval, granted=job.asked_at, clock=runtime.clock,
            on_cancel=lambda: job.ask_to_stop(Stop.CANCEL), on_news=self._told,
            on_renewal=runtime.app.meters.renewal, output=self._recent,
        )  # fmt: skip
        job.trusted = lambda: self._lease.remaining_s() > 0
        self._limits = Limits(self._definition, granted.ran_s, self._delay_s, runtime.clock)
        self._state = runtime.state.begin(granted.token.job_id)
        context = AttemptContext(
            runtime, granted, job, self._definition, self._lease, self._limits, self._stop, self._recent, self._state,
            self._delay_s,
        )  # fmt: skip
        self._context, self._facts, self._fields = context, context.facts, context.log_fields
        self._began = runtime.clock.boottime()

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
            return endings.of_stop(stopped.why)
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

    # -- the pipeline ---------------------------------------------------------------------------------------------

    async def _pipeline(self, sync: SyncSession, files: JobFiles, place: Place) -> Ending:
        adopted = await self._adopt(sync)
        if adopted:
            return adopted
        await self._stop.unless_stopped(place.take(sync.local_paths, self._waits))
        execution = Execution(self._context, sync, files, place, self._directories(place))
        try:
            ending = await self._work(execution, sync, place)
        except LeaseLost:
            raise
        except Exception:
            await self._store_log(execution.log, sync, place)
            raise
        else:
            await self._store_log(execution.log, sync, place, ending)
            return ending
        finally:
            if execution.log:
                execution.log.close()

    async def _work(self, execution: Execution, sync: SyncSession, place: Place) -> Ending:
        try:
            await self._stop.unless_stopped(self._restore(sync))
            with self._runtime.state.unless_within(self._state, sync.local_paths):
                exit_, ending = await execution.run()
            ending = ending or execution.ending_of(exit_, new_commit=sync.commits > 0)
            return ending or await self._final_sync(sync, place)
        finally:
            try:
                # A look that is still under way must not take the emptied directories for the job's doing.
                await sync.end_watch()
            finally:
                # To its end, whatever happens: after this the directories may be the next job's.
                await in_thread(sync.clean)

    async def _store_log(
        self, command_log: AttemptLog | None, sync: SyncSession, place: Place, ending: Ending | None = None
    ) -> None:
        """Store what the command wrote, if it was started; no GPU waits for that, and no work is done twice for it."""
        if command_log is None or not command_log.is_wanted:
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
        self._facts |= await command_log.store(sync, self._stop, self._runtime.app.redactor, self._fields)

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
