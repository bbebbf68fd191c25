"""Starts, watches and ends a job's command from asyncio.

The command's parent is ``supervisor.py``; its output comes straight to this process. Limits: Linux; works in any
thread's loop, since it neither handles signals nor asks for a child watcher.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from kelpie_celery.errors import CommandError
from kelpie_worker.command.output import Lines, OutputTail

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_READ_BYTES = 65536
_DRAIN_S = 1.0
_START_S = 30.0


@dataclass(frozen=True)
class CommandSpec:
    """What to run; the environment is the whole of it, and a secret."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: Path


@dataclass(frozen=True)
class CommandExit:
    """How a command ended: by a code of its own, or by a signal."""

    code: int | None = None
    signal: int | None = None

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return self.code == 0


class Command:
    """A running command and its whole process tree."""

    def __init__(
        self, popen: subprocess.Popen[bytes], channel: socket.socket, on_line: Callable[[str, str], None]
    ) -> None:
        self.pid = 0
        self._popen, self._channel, self._on_line = popen, channel, on_line
        self._loop = asyncio.get_running_loop()
        self._tail = OutputTail()
        self._said = b""
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[CommandExit] = self._loop.create_future()
        self._exit: CommandExit | None = None
        self._gone = asyncio.Event()
        self._open_streams = 0
        self._streams_closed = asyncio.Event()
        self._collector: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, spec: CommandSpec, on_line: Callable[[str, str], None]) -> Command:
        """Start a command.

        Args:
            spec: What to run.
            on_line: Called in the loop with ``"stdout"`` or ``"stderr"`` and each line; while it works, reading waits.

        Raises:
            CommandError: It cannot be started; the message says what is missing and what to do.
        """
        ours, theirs = socket.socketpair()
        try:
            popen = await asyncio.to_thread(_spawn, theirs.fileno())
        finally:
            theirs.close()
        command = cls(popen, ours, on_line)
        try:
            await command._launch(spec)
        except BaseException:
            await command._abandon()
            raise
        return command

    async def _launch(self, spec: CommandSpec) -> None:
        order = json.dumps({"argv": list(spec.argv), "env": dict(spec.env), "cwd": str(spec.cwd)}).encode()
        self._channel.setblocking(False)
        await self._loop.sock_sendall(self._channel, len(order).to_bytes(4, "big") + order)
        self._loop.add_reader(self._channel, self._heard)
        for name, stream in (("stdout", self._popen.stdout), ("stderr", self._popen.stderr)):
            assert stream is not None  # noqa: S101 - both are pipes, see _spawn
            os.set_blocking(stream.fileno(), False)
            self._open_streams += 1
            lines = Lines(partial(self._line, name))
            self._loop.add_reader(stream.fileno(), self._readable, stream.fileno(), lines)
        async with asyncio.timeout(_START_S):
            try:
                await asyncio.shield(self._started)
            except _NotStarted as e:
                raise _explained(e, spec) from None
        self._collector = asyncio.create_task(self._collect())

    async def _abandon(self) -> None:
        self._loop.remove_reader(self._channel)
        self._channel.close()
        self._close_streams()
        await asyncio.to_thread(self._popen.wait)
        if self._started.done() and not self._started.cancelled():
            self._started.exception()

    # -- what comes in --------------------------------------------------------------------------------------------

    def _line(self, stream: str, line: str) -> None:
        self._tail.add(line)
        self._on_line(stream, line)

    def _readable(self, fd: int, lines: Lines) -> None:
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            lines.feed(data)
            return
        lines.close()
        self._loop.remove_reader(fd)
        self._open_streams -= 1
        if self._open_streams == 0:
            self._streams_closed.set()

    def _heard(self) -> None:
        try:
            data = self._channel.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, self._said = (self._said + data).split(b"\n")
        for line in lines:
            self._told(json.loads(line))
        if not data:
            self._loop.remove_reader(self._channel)
            if not self._started.done():
                self._started.set_exception(_NotStarted(0, "supervisor"))
            self._gone.set()

    def _told(self, what: dict[str, Any]) -> None:
        if "pid" in what:
            self.pid = what["pid"]
            self._started.set_result(None)
        elif "error" in what:
            self._started.set_exception(_NotStarted(what["error"], what["at"]))
        else:
            self._exit = CommandExit(code=what.get("exit"), signal=what.get("signal"))

    async def _collect(self) -> None:
        await self._gone.wait()
        if self._exit is None:
            # The supervisor itself was killed; the command went with it (PDEATHSIG), its group goes now.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._exit = CommandExit(signal=int(signal.SIGKILL))
        await asyncio.to_thread(self._popen.wait)
        with contextlib.suppress(TimeoutError):
            # The tree has gone, so its pipes close at once, unless something outside holds one.
            async with asyncio.timeout(_DRAIN_S):
                await self._streams_closed.wait()
        self._close_streams()
        self._channel.close()
        self._ended.set_result(self._exit)

    def _close_streams(self) -> None:
        for stream in (self._popen.stdout, self._popen.stderr):
            if stream is not None and not stream.closed:
                self._loop.remove_reader(stream.fileno())
                stream.close()

    # -- what goes out --------------------------------------------------------------------------------------------

    def send_signal(self, signum: int) -> None:
        """Signal the whole tree; nothing happens when it has gone."""
        if not self._gone.is_set():
            with contextlib.suppress(OSError):
                self._channel.send(f"{int(signum)}\n".encode())

    async def wait(self) -> CommandExit:
        """Wait until the command has ended, nothing of its tree is left and its output has been read."""
        return await asyncio.shield(self._ended)

    async def stop(self, grace_s: float, first: int = signal.SIGTERM) -> CommandExit:
        """End it: ``first`` to the whole tree, SIGKILL after ``grace_s`` seconds."""
        if not self._ended.done() and grace_s > 0:
            self.send_signal(first)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    return await self.wait()
        self.send_signal(signal.SIGKILL)
        return await self.wait()

    def last_lines(self, lines: int, max_bytes: int) -> list[str]:
        """The last lines of its output, both streams as they came."""
        return self._tail.last(lines, max_bytes)


class _NotStarted(Exception):
    def __init__(self, error: int, at: str) -> None:
        super().__init__(error, at)
        self.error, self.at = error, at


def _spawn(channel: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(_SUPERVISOR), str(channel)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        pass_fds=(channel,),
        start_new_session=True,
        # Nothing of the worker's environment stands in /proc for the job to read; the loader may need its path.
        env={name: text for name, text in os.environ.items() if name == "LD_LIBRARY_PATH"},
    )


def _explained(e: _NotStarted, spec: CommandSpec) -> CommandError:
    name = spec.argv[0]
    if e.at == "cwd":
        text = f"the working directory {spec.cwd} cannot be entered ({os.strerror(e.error)}); check KELPIE_WORKDIR"
        return CommandError(text, reason="no_workdir")
    if e.at == "command" and e.error in (errno.ENOENT, errno.ENOTDIR):
        text = f"the command {name!r} was not found; give its full path, or install it in the image where PATH finds it"
        return CommandError(text, reason="not_found")
    if e.at == "command" and e.error:
        why = os.strerror(e.error)
        text = (
            f"the command {name!r} cannot be executed ({why}); make it executable (chmod +x) and check its first line"
        )
        return CommandError(text, reason="not_executable")
    return CommandError(f"the command {name!r} could not be started ({e.at})", reason="not_executable")
