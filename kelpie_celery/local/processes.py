"""One child process of the local stack: started, signalled, awaited, and never left behind.

The child leads a session of its own, so that Ctrl-C in the terminal reaches only the stack, which then stops
its children in order. It dies with this process, however that dies: on a normal exit ``atexit`` stops it;
otherwise the kernel kills it (``PR_SET_PDEATHSIG``, see ``leash.py``). That signal is sent when the *thread*
that started the child ends, hence one thread that starts all children and never ends.

Limits: children of the child are its own business (``kelpie-worker`` takes care of its commands).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from kelpie_celery.clock import Clock, SystemClock
from kelpie_celery.local.errors import LocalStackError

LEASH = Path(__file__).with_name("leash.py")
POLL_S = 0.02
REAP_S = 10.0  # a SIGKILLed process that still writes a core or sits in the kernel
EXIT_GRACE_S = 3.0  # what a child gets when this process exits without having stopped it
TAIL_BYTES = 64 * 1024

_live: set[ManagedProcess] = set()


class _Spawner:
    """The thread that starts every child."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[tuple[Callable[[], subprocess.Popen[bytes]], Future[subprocess.Popen[bytes]]]]
        self._orders = queue.SimpleQueue()
        threading.Thread(target=self._run, name="kelpie-spawner", daemon=True).start()

    def spawn(self, start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        future: Future[subprocess.Popen[bytes]] = Future()
        self._orders.put((start, future))
        return future.result()

    def _run(self) -> None:
        while True:
            start, future = self._orders.get()
            try:
                future.set_result(start())
            except BaseException as error:  # it belongs to the caller, who waits for the future
                future.set_exception(error)


_spawners: dict[int, _Spawner] = {}
_spawners_lock = threading.Lock()


def _spawner() -> _Spawner:
    # By process id: a thread does not survive a fork, so a forked child needs its own.
    pid = os.getpid()
    with _spawners_lock:
        if pid not in _spawners:
            _spawners[pid] = _Spawner()
        return _spawners[pid]


class ManagedProcess:
    """A program run as a child, its output in one log file.

    Attributes:
        name: What messages call it.
        log: The file that gets its stdout and stderr; appended to.
        ready_file: A file that the program creates when it is ready; ``None`` when it has no such habit.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        log: Path,
        ready_file: Path | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.name, self.log, self.ready_file = name, log, ready_file
        self._argv, self._env, self._cwd = tuple(argv), dict(env), cwd
        self._clock = clock or SystemClock()
        self._popen: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<{self.name} pid={self._popen.pid if self._popen else None}>"

    def start(self) -> None:
        """Start the program; does not wait until it is ready.

        Raises:
            LocalStackError: It runs already, or it cannot be started.
        """
        if self.running:
            raise LocalStackError(f"{self.name} runs already (pid {self.pid})")
        for directory in (self._cwd, self.log.parent):
            directory.mkdir(parents=True, exist_ok=True)
        if self.ready_file is not None:
            self.ready_file.unlink(missing_ok=True)
        try:
            self._popen = _spawner().spawn(self._spawn)
        except OSError as error:
            raise LocalStackError(f"{self.name} cannot be started: {self._argv[0]}: {error}") from error
        _live.add(self)

    def _spawn(self) -> subprocess.Popen[bytes]:
        leash = [sys.executable, "-I", "-S", str(LEASH), str(os.getpid())]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*leash, *self._argv],
                env=self._env,
                cwd=self._cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id of the program itself, the last one when it ended.

        Raises:
            LocalStackError: It was never started.
        """
        if self._popen is None:
            raise LocalStackError(f"{self.name} was not started")
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether the process exists (stopped by SIGSTOP counts)."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How it ended: the exit code, or minus the signal; ``None`` while it runs or before it started."""
        return self._popen.poll() if self._popen else None

    def send_signal(self, signum: int) -> None:
        """Send a signal to the program; nothing happens when it is gone."""
        if self._popen is not None:
            self._popen.send_signal(signum)

    def pause(self) -> None:
        """SIGSTOP, and wait until the process stands still."""
        self.send_signal(signal.SIGSTOP)
        if sys.platform != "linux":
            return  # no way to wait for it there
        # WNOWAIT leaves an exit to be reaped by Popen.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT."""
        self.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        self.send_signal(signal.SIGKILL)
        self.wait(REAP_S)

    def terminate(self) -> None:
        """SIGTERM, also for a process that is paused."""
        self.send_signal(signal.SIGTERM)
        self.send_signal(signal.SIGCONT)

    def stop(self, grace_s: float) -> bool:
        """SIGTERM, then SIGKILL after ``grace_s``.

        Returns:
            Whether it went by itself.
        """
        self.terminate()
        return self.end_within(grace_s)

    def end_within(self, grace_s: float) -> bool:
        """Wait for an end that was asked for, then SIGKILL; whether it went by itself."""
        try:
            self.wait(grace_s)
        except LocalStackError:
            self.kill()
            return False
        return True

    def wait(self, timeout_s: float) -> int | None:
        """Wait for its end.

        Returns:
            ``exit_code``.

        Raises:
            LocalStackError: It still runs after ``timeout_s``.
        """
        if self._popen is None:
            return None
        try:
            code = self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise LocalStackError(f"{self.name} (pid {self.pid}) still runs after {timeout_s:g} s") from None
        _live.discard(self)
        return code

    def wait_ready(
        self,
        timeout_s: float,
        probe: Callable[[], bool] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> float:
        """Wait until the program says that it is ready.

        Args:
            timeout_s: How long to wait.
            probe: Answers whether it is ready; by default, whether ``ready_file`` is there.
            cancelled: Answers whether to give up at once.

        Returns:
            Seconds waited.

        Raises:
            LocalStackError: It ended, or was not ready in time; the message holds the end of its log.
        """
        ready = probe or self._ready_file_exists
        began = self._clock.boottime()
        while not ready():
            waited = self._clock.boottime() - began
            if cancelled():
                raise LocalStackError(f"interrupted while waiting for {self.name}")
            if not self.running:
                raise LocalStackError(f"{self.name} ended before it was ready ({self.ending}){self._log_end()}")
            if waited > timeout_s:
                raise LocalStackError(f"{self.name} was not ready after {timeout_s:g} s{self._log_end()}")
            self._clock.sleep(POLL_S)
        return self._clock.boottime() - began

    def _ready_file_exists(self) -> bool:
        return self.ready_file is None or self.ready_file.exists()

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        return describe_exit(self.exit_code)

    def tail(self, lines: int = 30) -> list[str]:
        """The last lines of its log."""
        return tail_of(self.log, lines)

    def _log_end(self) -> str:
        return f"; the end of {self.log}:\n  " + "\n  ".join(self.tail() or ["(empty)"])


def describe_exit(code: int | None) -> str:
    """An exit code of ``subprocess`` in words."""
    if code is None:
        return "still running"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def tail_of(path: Path, lines: int) -> list[str]:
    """The last lines of a text file; none when there is no such file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-lines:]


def live_processes() -> list[ManagedProcess]:
    """Every process that was started here and still runs."""
    return [process for process in list(_live) if process.running]


@atexit.register
def _stop_what_is_left() -> None:
    left = live_processes()
    for process in left:
        process.terminate()
    for process in left:
        process.stop(EXIT_GRACE_S)
