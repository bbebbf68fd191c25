"""The command of an attempt: started, listened to, ended when it has to be; and the checkpoint that it leaves.

Limits: one command; who runs it next, and with what, is the attempt's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kelpie_celery.errors import KelpieError, LeaseLost
from kelpie_celery.ledger.types import Ending
from kelpie_celery.lifecycle import Outcome, Phase, Reason
from kelpie_celery.retry_rules import ruled
from kelpie_celery.running import Stop
from kelpie_worker import endings
from kelpie_worker.attempt_context import AttemptContext
from kelpie_worker.attempt_log import AttemptLog
from kelpie_worker.command import Command, CommandExit, CommandSpec, ReportFile
from kelpie_worker.command.budget import OutputBudget
from kelpie_worker.command.words import Words
from kelpie_worker.environment import JobFiles, job_environment
from kelpie_worker.evidence import gather, temporary_places
from kelpie_worker.memory import MemoryWatch, own_group, watching_memory
from kelpie_worker.places import Place
from kelpie_worker.stopping import cancel_and_wait
from kelpie_worker.sync import SyncSession

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


class Execution:
    """Runs the command of one attempt; use it once.

    Args:
        attempt: Whose command it is.
        sync: Its storage side.
        files: What it finds beside its directories.
        place: Where it runs.
        directories: By the names of the variables that tell the command.

    Attributes:
        log: What the command wrote, once it is about to be started.
    """

    def __init__(
        self, attempt: AttemptContext, sync: SyncSession, files: JobFiles, place: Place, directories: Mapping[str, Path]
    ) -> None:
        self._attempt, self._sync, self._files, self._place = attempt, sync, files, place
        self._directories = directories
        self._evidence = endings.NO_EVIDENCE
        self._budget = OutputBudget(attempt.runtime.clock.boottime)
        self.log: AttemptLog | None = None

    async def run(self) -> tuple[CommandExit, Ending | None]:
        """Run the command; its exit, and the ending that something else than the exit decided.

        Raises:
            LeaseLost: Another attempt owns the job.
            KelpieError: It cannot be started, or what it leaves cannot be stored.
            Stopped: The attempt was told to end before the command was started.
        """
        self._files.parents.write_text(self._attempt.granted.parents)
        spec = self._spec()
        await self._attempt.lease.launch()
        self._attempt.limits.launched()
        launched = self._attempt.runtime.clock.boottime()
        # As the ledger takes the attempt's time apart; nothing was executed where the command cannot be started.
        self._attempt.facts["execute_s"] = 0.0
        self._sync.listen_to(self._files.report)
        alone = len(self._attempt.runtime.places.slots) == 1
        with watching_memory(own_group(), self._attempt.runtime.clock, alone=alone) as memory:
            self.log = AttemptLog(
                self._attempt.settings, self._attempt.definition, self._attempt.granted.token, self._files.folder
            )
            command = await Command.start(
                spec, self._on_line, budget=self._budget, enter=memory.enter, pen=self.log.pen
            )
            self.log.started = True
            words = Words(ReportFile(self._files.report, self._attempt.log_fields), self._sync.order)
            try:
                exit_, ending = await self._supervise(command, words, memory)
            finally:
                await command.stop(0)
                self._attempt.facts["execute_s"] = round(self._attempt.runtime.clock.boottime() - launched, 3)
            memory.look()
        self._attempt.state.exited(exit_.code if exit_.signal is None else None)
        self._attempt.facts |= endings.exit_facts(exit_)
        if self._budget.left_out_bytes:
            self._attempt.facts["output_left_out_bytes"] = self._budget.left_out_bytes
        if exit_.ok and ending is None:
            return exit_, None
        tail = command.last_lines(_TAIL_LINES, _TAIL_BYTES)
        if tail:
            mask = self._attempt.runtime.app.redactor.mask
            self._attempt.facts["output_tail"] = [mask(line) for line in tail]
        told = ending
        if ending is None:
            places = [*self._sync.local_paths, spec.cwd, self._files.folder, *temporary_places(spec.env)]
            self._evidence = await gather(memory, places, tail)
            told = endings.preempted(exit_) if await self._machine_ends(exit_) else None
        last = self._is_last_try(told or self.ending_of(exit_, new_commit=True))
        await self._last_commit(exit_, ending, last=last)
        return exit_, told

    def ending_of(self, exit_: CommandExit, *, new_commit: bool) -> Ending | None:
        """What the command's exit means for the attempt; None where it has succeeded.

        Args:
            exit_: How it ended.
            new_commit: Whether it has left a checkpoint.
        """
        return endings.of_exit(exit_, new_commit=new_commit, delay_s=self._attempt.delay_s, evidence=self._evidence)

    async def _machine_ends(self, exit_: CommandExit) -> bool:
        """Whether the worker is told to end at the same moment: a machine that stops signals all of its processes."""
        if exit_.code == endings.RUN_ME_AGAIN or self._evidence.memory_kills:
            return False
        if self._attempt.stop.why is None and endings.by_the_machine(exit_):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PREEMPTION_S):
                    await self._attempt.stop.asked()
        return self._attempt.stop.why is Stop.SHUTDOWN

    def _spec(self) -> CommandSpec:
        s, d = self._attempt.settings, self._attempt.definition
        env = job_environment(
            s, self._attempt.runtime.environ, d, self._attempt.granted, self._files, self._directories, self._place.gpus
        )
        return CommandSpec(argv=(d.command, *d.arguments), env=env, cwd=s.workdir)

    async def _supervise(
        self, command: Command, words: Words, memory: MemoryWatch
    ) -> tuple[CommandExit, Ending | None]:
        exited = asyncio.ensure_future(command.wait())
        watched = asyncio.ensure_future(self._sync.watch(command.processes))
        limited = asyncio.ensure_future(self._attempt.limits.exceeded())
        asked = asyncio.ensure_future(self._attempt.stop.asked())
        reported = asyncio.ensure_future(self._follow(words, memory))
        try:
            await asyncio.wait({exited, watched, limited, asked, reported}, return_when=asyncio.FIRST_COMPLETED)
            if exited.done() or command.has_ended:
                # By itself: what is left is to collect its output and what it started.
                return await exited, None
            await self._sync.stopping()
            canceled = asked.done() and asked.result() is Stop.CANCEL
            exit_ = await self._end(command, canceled=canceled)
            if asked.done():
                return exit_, endings.of_stop(asked.result())
            if limited.done():
                return exit_, limited.result()
            error = (watched if watched.done() else reported).exception()
            return exit_, self._of_lost_helper(error)
        finally:
            await cancel_and_wait(exited, watched, limited, asked, reported)
            await self._take_reports(words)

    async def _end(self, command: Command, *, canceled: bool) -> CommandExit:
        """End the command within its grace period; a canceled one by SIGINT first, where that is wanted."""
        grace_s = float(self._attempt.definition.grace_period)
        if canceled and self._attempt.settings.cancel_signal == "INT" and grace_s > 0:
            began = self._attempt.runtime.clock.boottime()
            command.send_signal(signal.SIGINT)
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(command.wait(), grace_s / 2)
            grace_s = max(0.0, grace_s - (self._attempt.runtime.clock.boottime() - began))
        return await command.stop(grace_s)

    def _of_lost_helper(self, error: BaseException | None) -> Ending:
        if isinstance(error, LeaseLost):
            raise error
        if isinstance(error, Exception):
            return endings.of_error(error, self._attempt.delay_s)
        return endings.failure(Reason.WORKER_ERROR, "the watch over the job's files ended early", self._attempt.delay_s)

    async def _last_commit(self, exit_: CommandExit, ending: Ending | None, *, last: bool) -> None:
        """The checkpoint that an attempt without success leaves to the next one."""
        # Killed, failed by itself, or gone at our SIGTERM with an error, it may have been in the middle of a write.
        in_order = exit_.signal is None and exit_.code in (0, endings.RUN_ME_AGAIN)
        obeyed = exit_.signal is None and ending is not None
        if ending is None and exit_.code == endings.RUN_ME_AGAIN:
            # This checkpoint is what the attempt was for: a storage that is away interrupts, and never fails it. The
            # command has ended: that wait is none of its running time.
            self._attempt.lease.enter(Phase.UPLOADING)
            commit = self._sync.commit("exit", plain=False)
            await self._attempt.stop.unless_stopped(commit, shutdown_grace_s=self._attempt.definition.grace_period)
            return
        canceled = ending is not None and ending.outcome is Outcome.CANCELED
        patience_s = max(CANCELED_COMMIT_S if canceled else LAST_COMMIT_S, self._attempt.definition.grace_period)
        try:
            async with asyncio.timeout(patience_s):
                plain = canceled or last
                await self._sync.commit("sigterm" if ending else "exit", in_order=in_order, plain=plain, obeyed=obeyed)
        except LeaseLost:
            raise
        except (KelpieError, OSError, TimeoutError) as e:
            log.warning(
                "the last checkpoint was not stored; the one before it stays",
                extra={"action": "last_commit_failed", "error": str(e), **self._attempt.log_fields},
            )

    def _is_last_try(self, ending: Ending | None) -> bool:
        """Whether nobody will go on from here: then people may want to find the checkpoint under its plain keys."""
        if ending is None:
            return False
        judged = ruled(self._attempt.definition.retry, ending)
        last = self._attempt.granted.num_failures + 1 >= self._attempt.definition.max_failures or judged.final
        return judged.outcome is Outcome.FAILURE and last

    # -- what the command says ------------------------------------------------------------------------------------

    def _on_line(self, stream: str, line: str) -> None:
        self._attempt.limits.sign_of_life()
        self._attempt.recent.add(line)
        job_log.info("%s", line, extra={"action": "output", "stream": stream, **self._attempt.log_fields})

    async def _follow(self, words: Words, memory: MemoryWatch) -> None:
        left_out_bytes = 0
        while True:
            await self._take_reports(words)
            memory.look()
            if self._budget.left_out_bytes != left_out_bytes:
                left_out_bytes = self._budget.left_out_bytes
                self._attempt.limits.sign_of_life()
            if self._attempt.recent.is_due:
                self._attempt.lease.report_output()
            await asyncio.sleep(_REPORT_EVERY_S)

    async def _take_reports(self, words: Words) -> None:
        seen: dict[str, Any] = {}
        for entry, said_ns, followed in await words.hear():
            self._attempt.limits.sign_of_life()
            if entry.progress is not None:
                seen["progress"] = entry.progress
            if entry.message is not None:
                seen["message"] = entry.message
            if entry.commit:
                self._sync.request_commit(said_ns, followed=followed)
        if seen:
            self._attempt.lease.report(json.dumps(seen))
            # Events and answers go to all who can reach Redis; the record only to those who may read it.
            if seen.get("message"):
                seen["message"] = self._attempt.runtime.app.redactor.mask(seen["message"])
            self._attempt.job.said = json.dumps(seen)
            self._attempt.job.say(seen.get("progress"), seen.get("message"))
