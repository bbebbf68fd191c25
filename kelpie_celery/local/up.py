"""``kelpie up``: the local stack in one terminal, kept running until Ctrl-C.

Ctrl-C (or SIGTERM, or the terminal's end) stops it in order: the workers first, which interrupt their jobs
and hand them back; then the control worker and beat; then the servers. A second Ctrl-C kills what is left. A
process that ends by itself is started again, with a growing pause, and loudly.

Limits: one stack a directory at a time. Secrets are in the ``env`` file, never on the terminal.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

from rich.console import Console

from kelpie_celery.clock import Clock, SystemClock
from kelpie_celery.local.console import LogConsole
from kelpie_celery.local.errors import LocalStackError
from kelpie_celery.local.processes import ManagedProcess, describe_exit
from kelpie_celery.local.restarts import Restarts
from kelpie_celery.local.server import Server
from kelpie_celery.local.stack import LocalStack

POLL_S = 0.1
READY_LINE = "kelpie is up"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(stack_of: Callable[..., LocalStack], directory: Path, console: Console, clock: Clock | None = None) -> int:
    """Run a stack until a signal comes.

    Args:
        stack_of: Makes the stack; gets ``on_step`` and ``cancelled`` by keyword.
        directory: Where it is kept.
        console: Where to print.
        clock: Where time comes from.

    Returns:
        0 after an orderly stop, 1 when it was killed by a second signal.

    Raises:
        LocalStackError: It did not come up, or another one runs in this directory.
    """
    with alone_in(directory), counted_signals() as signals:
        stack = stack_of(
            on_step=lambda what, seconds: console.print(f"  {what} ready after {seconds:.1f} s", highlight=False),
            cancelled=lambda: signals.count > 0,
        )
        up = _Up(stack, LogConsole(console), signals, clock or SystemClock())
        stack.start()
        try:
            up.announce()
            up.watch()
        finally:
            up.wind_down()
        return 1 if signals.count > 1 else 0


class Signals:
    """How many stop signals have come."""

    def __init__(self) -> None:
        self.count = 0

    def note(self, _signum: int, _frame: FrameType | None) -> None:
        """A signal handler; it only counts."""
        self.count += 1


@contextmanager
def counted_signals() -> Iterator[Signals]:
    """Count stop signals instead of dying of them; the old handlers come back at the end."""
    signals = Signals()
    old = {signum: signal.signal(signum, signals.note) for signum in STOP_SIGNALS}
    try:
        yield signals
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)


@contextmanager
def alone_in(directory: Path, command: str = "kelpie up") -> Iterator[None]:
    """Hold a directory against others that are run by the same command.

    Raises:
        LocalStackError: Another one holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise LocalStackError(
                f"another '{command}' (pid {holder}) runs in {directory}; stop it, or give another --dir"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


class _Up:
    """A stack that was started, and what is done about it until its end."""

    def __init__(self, stack: LocalStack, logs: LogConsole, signals: Signals, clock: Clock) -> None:
        self._stack, self._logs, self._signals, self._clock = stack, logs, signals, clock
        self._restarts = Restarts(clock)

    def announce(self) -> None:
        """Write the env file, print the endpoints and the line that says that all is ready."""
        env_file = self._stack.directory / "env"
        self._stack.write_env(env_file)
        for line in endpoints(self._stack, env_file):
            self._logs.say(line, "none")
        for name, process in self._stack.processes.items():
            self._logs.follow(name, process.log)
        for name in self._members():
            self._restarts.started(name)
        self._logs.say(READY_LINE, "bold green")

    def watch(self) -> None:
        """Show the logs and start again what ended, until a signal comes."""
        while not self._signals.count:
            self._logs.drain()
            for name in self._members():
                self._look_after(name)
            self._clock.sleep(POLL_S)

    def wind_down(self) -> None:
        """Stop everything in order; a second signal makes short work of it."""
        self._logs.say("stopping: workers hand their jobs back (Ctrl-C again kills them)", "bold yellow")
        self._stack.stop(hurry=lambda: self._signals.count > 1, idle=self._logs.drain)
        self._logs.drain()
        self._logs.say("stopped", "bold yellow")

    def _members(self) -> dict[str, Server | ManagedProcess]:
        servers: dict[str, Server | ManagedProcess] = {server.name: server for server in self._stack.servers}
        return {**servers, **self._stack.processes}

    def _look_after(self, name: str) -> None:
        member = self._members()[name]
        if member.running:
            return
        if not self._restarts.waiting(name):
            process = member.process if isinstance(member, Server) else member
            delay_s = self._restarts.died(name)
            ending = describe_exit(process.exit_code)
            self._logs.say(f"{name} ended ({ending}); starting it again in {delay_s:g} s", "bold red")
            self._logs.say(f"  its log: {process.log}", "red")
        elif self._restarts.due(name):
            self._start_again(member)

    def _start_again(self, member: Server | ManagedProcess) -> None:
        self._restarts.started(member.name)
        try:
            member.start()
        except LocalStackError as error:
            delay_s = self._restarts.died(member.name)
            self._logs.say(f"{member.name} does not start; next try in {delay_s:g} s: {error}", "bold red")
            return
        self._logs.say(f"{member.name} is started again (pid {member.pid})", "bold yellow")


def endpoints(stack: LocalStack, env_file: Path) -> list[str]:
    """What runs where, a line each; without a secret."""
    lines = [f"Redis    {without_password(stack.env()['KELPIE_REDIS_URL'])}"]
    if stack.s3 is not None:
        lines.append(f"S3       {stack.s3.endpoint_url}  (bucket {stack.bucket})")
    if stack.flower is not None:
        lines.append(f"Flower   {stack.flower.url}  (user and password: FLOWER_BASIC_AUTH in the env file)")
    lines.append(f"Workers  {len(stack.workers)} in container group {stack.group!r}")
    lines.append(f"Logs     {shown(stack.directory / 'logs')}")
    return [*lines, f"In another shell:  . {shown(env_file)}"]


def shown(path: Path) -> str:
    """A path as it may be typed here: relative where that is shorter."""
    try:
        relative = path.relative_to(Path.cwd())
    except ValueError:
        return str(path)
    # "." looks for a name without a slash on PATH.
    return str(relative) if relative.parent != Path() else f"./{relative}"


def without_password(url: str) -> str:
    """A Redis URL as it may be shown: scheme, host, port and database."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"
