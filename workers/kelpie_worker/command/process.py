"""Starts, watches and ends a job's command from asyncio.

The command's parent is ``supervisor.py``; its output comes straight to this process. Limits: Linux; works in any
thread's loop, since it neither handles signals nor needs a child watcher.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kelpie_worker.command.budget import OutputBudget
from kelpie_worker.command.orphans import end_orphans, job_processes
from kelpie_worker.command.output import OutputPipe, OutputTail
from kelpie_worker.command.spec import CommandExit, CommandSpec, start_error
from kelpie_worker.command.supervisor import KILL_PATIENCE_S

__all__ = ["Command", "CommandExit", "CommandSpec"]

log = logging.getLogger(__name__)

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_DRAIN_S = 1.0
_START_S = 30.0
_PATIENCE_S = KILL_PATIENCE_S + 5.0
_LOOK_EVERY_S = 0.005


@dataclass
class _Spawned:
    """A supervisor that awaits its order."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    stdout: io.FileIO
    stderr: io.FileIO


class Command:
    """A running command and its whole process tree; ``pid`` is the command's."""

    def __init__(
        self,
        spawned: _Spawned,
        spec: CommandSpec,
        on_line: Callable[[str, str], None],
        budget: OutputBudget | None = None,
        pen: Callable[[], Callable[[bytes], None]] = lambda: lambda _: None,
    ) -> None:
        self.pid = 0
        self._spec, self._on_line = spec, on_line
        self._process, self._channel = spawned.process, spawned.channel
        self._loop = asyncio.get_running_loop()
        self._tail = OutputTail()
        self._unread = b""
        self._started: asyncio.Future[str] = self._loop.create_future()
        self._closed = asyncio.Event()
        self._exit: CommandExit | None = None
        self._gone = False
        self._channel.setblocking(False)
        self._loop.add_reader(self._channel, self._heard)
        self._pipes = [
            OutputPipe(spawned.stdout, partial(self._line, "stdout"), budget, pen()),
            OutputPipe(spawned.stderr, partial(self._line, "stderr"), budget, pen()),
        ]
        self._ended = asyncio.create_task(self._collect())

    @classmethod
    async def start(
        cls,
        spec: CommandSpec,
        on_line: Callable[[str, str], None],
        *,
        budget: OutputBudget | None = None,
        enter: Callable[[int], None] = lambda _: None,
        pen: Callable[[], Callable[[bytes], None]] = lambda: lambda _: None,
    ) -> Command:
        """Start a command.

        Args:
            spec: What to run.
            on_line: Called in the loop with ``"stdout"`` or ``"stderr"`` and each line; while it works, reading waits.
            budget: Of lines; without one, all are handed out.
            enter: Called with the pid of the process that the command, and all that it starts, will descend from.
            pen: Gives, for each of both streams, what all that is read of it is handed to; see ``OutputPipe``.

        Raises:
            CommandError: It cannot be started; the message says what is missing and what to do.
            OSError: This machine is short of processes or memory.
        """
        order = spec.encoded()
        command = cls(_spawn(), spec, on_line, budget, pen)
        try:
            enter(command._process.pid)
            async with asyncio.timeout(_START_S):
                await command._launch(order)
        except TimeoutError:
            raise ChildProcessError(f"the command did not start within {_START_S:g} s") from None
        finally:
            if not command.pid:
                await command._give_up()
        return command

    async def _launch(self, order: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            await self._loop.sock_sendall(self._channel, order)
        what, *details = (await self._started).split()
        if what == "pid":
            self.pid = int(details[0])
        elif what == "error":
            raise start_error(details[0], int(details[1]), self._spec)
        else:
            said = "; ".join(self.last_lines(1, 500)) or "it was killed, perhaps for want of memory"
            raise ChildProcessError(f"the supervisor ended before it had started the command: {said}")

    async def _give_up(self) -> None:
        """It has not started: let the supervisor end."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)
        try:
            await asyncio.wait({self._ended}, timeout=_DRAIN_S)
        finally:
            if not self._ended.done():
                self._process.kill()
                self._ended.cancel()
            if not self._gone:
                await self._end_orphans()

    # -- what comes in ------------------------------------------------------------------------------------------------

    def _line(self, stream: str, line: str) -> None:
        self._tail.add(line)
        self._on_line(stream, line)

    def _heard(self) -> None:
        try:
            data = self._channel.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._told(line.decode())
        if not data:
            self._loop.remove_reader(self._channel)
            self._told("closed")
            self._closed.set()

    def _told(self, line: str) -> None:
        what, *details = line.split()
        if not self._started.done():
            self._started.set_result(line)
        elif what == "exit":
            self._exit = CommandExit(code=int(details[0]))
        elif what == "signal":
            self._exit = CommandExit(signal=int(details[0]))
        elif what == "gone":
            self._gone = True
            self._count_left(int(details[0]))

    def _count_left(self, left: int) -> None:
        if left:
            log.error(
                "processes of a job do not die; they are stuck in the kernel or belong to another user",
                extra={"action": "processes_left", "count": left, **self._fields},
            )

    # -- its end ------------------------------------------------------------------------------------------------------

    async def _collect(self) -> CommandExit:
        """Wait for the end; whatever becomes of this task, everything is let go, and with the channel goes the tree."""
        try:
            await self._closed.wait()
            await self._reap_supervisor()
            if not self._gone and self.pid:
                await self._clean_up_after_supervisor()
            await asyncio.gather(*(pipe.finish(_DRAIN_S) for pipe in self._pipes))
            return self._exit or CommandExit(signal=int(signal.SIGKILL))
        finally:
            self._loop.remove_reader(self._channel)
            self._channel.close()
            for pipe in self._pipes:
                pipe.close()

    async def _reap_supervisor(self) -> None:
        # It is past its last line: no event is worth a thread that waits for it.
        while self._process.poll() is None:
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _clean_up_after_supervisor(self) -> None:
        await self._end_orphans()
        log.error(
            "the supervisor of a command was killed; the command and what it started were killed too",
            extra={"action": "supervisor_lost", **self._fields},
        )

    async def _end_orphans(self) -> None:
        try:
            left = await end_orphans(self.pid, self._spec.env)
        except OSError as error:
            log.error(  # noqa: TRY400 - the traceback says nothing
                "what a command may have left running cannot be looked for",
                extra={"action": "processes_left", "error": str(error), **self._fields},
            )
        else:
            self._count_left(left)

    @property
    def _fields(self) -> dict[str, object]:
        return {"job_id": self._spec.env.get("KELPIE_JOB_ID", ""), "pid": self.pid}

    # -- what goes out ------------------------------------------------------------------------------------------------

    def send_signal(self, signum: int) -> None:
        """Signal the whole tree; nothing happens when it has gone."""
        self._order(f"signal {int(signum)}")

    def _order(self, line: str) -> None:
        if not self._closed.is_set() and not self._ended.done():
            with contextlib.suppress(OSError):
                self._channel.send(line.encode() + b"\n")

    async def wait(self) -> CommandExit:
        """Wait until the command has ended, nothing of its tree is left and its output has been handed out."""
        return await asyncio.shield(self._ended)

    async def stop(self, grace_s: float, first: int = signal.SIGTERM) -> CommandExit:
        """End it: ``first`` to the whole tree, SIGKILL to what is left after ``grace_s`` seconds.

        The shorter of several graces counts. With ``grace_s`` 0, SIGKILL at once.
        """
        self._order(f"stop {int(first)} {grace_s:f}")
        try:
            async with asyncio.timeout(grace_s + _PATIENCE_S):
                return await self.wait()
        except TimeoutError:
            log.error(  # noqa: TRY400 - the traceback says nothing
                "the supervisor of a command does not answer and is killed",
                extra={"action": "supervisor_stuck", **self._fields},
            )
            self._process.kill()
            return await self.wait()

    @property
    def has_ended(self) -> bool:
        """Whether the command itself is known to have ended; `wait` may still wait for what it started."""
        return self._exit is not None

    def processes(self) -> list[int] | None:
        """The pids of the command and of everything that it started; None once itself has ended. Blocking."""
        if not self.pid:
            return []
        found = job_processes(self.pid, self._spec.env)
        return found if self.pid in found and self._exit is None else None

    @property
    def tail(self) -> list[str]:
        """The last lines of its output, both streams as they came."""
        return self.last_lines(100, 16384)

    def last_lines(self, lines: int, max_bytes: int) -> list[str]:
        """The last ``lines`` lines of its output, as many as fit into ``max_bytes``."""
        return self._tail.last(lines, max_bytes)


def _spawn() -> _Spawned:
    """Start a supervisor. It takes a millisecond (vfork), so a thread would only be one more thing to wait for."""
    ours, theirs = socket.socketpair()
    with theirs:
        out_read, out_write = _pipe()
        err_read, err_write = _pipe()
        with out_write, err_write:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_SUPERVISOR)],
                stdin=theirs.fileno(),
                stdout=out_write.fileno(),
                stderr=err_write.fileno(),
                start_new_session=True,  # a terminal's Ctrl-C is the worker's business
                cwd="/",
                # Nothing of the worker's secrets is there to be seen by the job; the loader may need its path.
                env={name: text for name, text in os.environ.items() if name == "LD_LIBRARY_PATH"},
            )
    return _Spawned(process, ours, out_read, err_read)


def _pipe() -> tuple[io.FileIO, io.FileIO]:
    reading, writing = os.pipe()
    return io.FileIO(reading, "rb"), io.FileIO(writing, "wb")
