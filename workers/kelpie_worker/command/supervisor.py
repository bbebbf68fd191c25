"""The parent of a job's command: a tiny process that outlives its worker just long enough to leave nothing behind.

It starts the command in a session of its own, passes signals on to the whole tree, and kills the tree when its channel
to the worker closes, which is what a worker that was killed does. It is a subreaper, so grandchildren that left the
session or lost their parent are still its descendants, and it has ended only when none of them is left.

Channel: a stream socket, as file descriptor 0. All comes this way, as the environment is secret and ``ps`` shows more.
- To here, once: 4 bytes of length, then NUL-separated: cwd, number of arguments, arguments, ``NAME=value`` ...
- To here, lines: ``signal N`` (to the whole tree), ``stop N SECONDS`` (the same, and SIGKILL after SECONDS).
- From here, lines: ``pid N`` or ``error STAGE ERRNO``; then ``exit CODE`` or ``signal N``; last ``gone COUNT``,
  when nothing of the tree is left, or COUNT processes that cannot be killed.

Limits: Linux (prctl, /proc). Standard library only, and little of that: each import is paid for by every job. Processes
that SIGKILL does not end within 10 s (stuck in the kernel, or another user's) are counted and left.
"""

import ctypes
import os
import select
import signal
import time
from collections.abc import Callable

PR_SET_NAME, PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 15, 1, 36
SETTLE_S = 0.5
"""How long helpers may go on when the main command has ended by itself; again as long after a SIGTERM, then SIGKILL."""
KILL_PATIENCE_S = 10.0
_KILL_EVERY_S = 0.02
_NEVER = float("inf")

_libc = ctypes.CDLL(None)


def _prctl(option: int, value: int) -> None:
    _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


def _now_s() -> float:
    return time.monotonic()  # noqa: TID251 - a process of its own, that imports nothing of ours


# -- the tree ---------------------------------------------------------------------------------------------------------


def processes() -> dict[int, tuple[int, int, int]]:
    """Every live process: its parent, process group and session, by pid; zombies are dead."""
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as f:
                stat = f.read()
        except OSError:
            continue
        # The command's name, in brackets, may hold anything, also brackets and spaces.
        state, parent, group, session = stat[stat.rfind(b")") + 2 :].split(maxsplit=4)[:4]
        if state not in b"ZX":
            found[int(name)] = int(parent), int(group), int(session)
    return found


def descendants(root: int, table: dict[int, tuple[int, int, int]]) -> list[int]:
    """Children of ``root``, their children, and so on."""
    children: dict[int, list[int]] = {}
    for pid, (parent, _, _) in table.items():
        children.setdefault(parent, []).append(pid)
    found, todo = [], [root]
    while todo:
        new = children.get(todo.pop(), [])
        found += new
        todo += new
    return found


def signal_all(pids: list[int], table: dict[int, tuple[int, int, int]], number: int, first: int = 0) -> None:
    """Signal each of ``pids`` once, by its whole process group, of which no other process can be a member.

    A group takes its signal at once: no member can fork its way out, as it could while a list is gone through.

    Args:
        pids: A whole tree, below a process that is in another session.
        table: From ``processes``.
        number: The signal.
        first: The group that comes first.
    """
    own = os.getpgrp()
    groups = dict.fromkeys([first] if first else [])
    groups.update(dict.fromkeys(table[pid][1] for pid in pids))
    for group in groups:
        if group not in (own, 0):
            _quietly(os.killpg, group, number)
    for pid in pids:
        if table[pid][1] in (own, 0):  # forked by us a moment ago, or in a group that this namespace does not see
            _quietly(os.kill, pid, number)


def _quietly(kill: Callable[[int, int], None], target: int, number: int) -> None:
    try:
        kill(target, number)
    except OSError:
        pass  # gone meanwhile, or another user's


# -- the command ------------------------------------------------------------------------------------------------------


def _become(cwd: bytes, argv: list[bytes], env: dict[bytes, bytes], errors: int, supervisor: int) -> None:
    """In the forked child: become the command, or say why not."""
    stage = "start"
    try:
        os.setsid()
        # A second net: should the supervisor be killed, the command goes with it.
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(127)
        _default_signals()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        stage = "cwd"
        os.chdir(cwd)
        stage = "command"
        os.execvpe(argv[0], argv, env)
    except OSError as e:
        os.write(errors, f"error {stage} {e.errno}\n".encode())
    finally:
        os._exit(127)


def _default_signals() -> None:
    """Undo what Python, this supervisor and whoever started the worker (nohup, a shell's ``&``) set up."""
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):
                pass  # one that libc keeps for itself
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _start(cwd: bytes, argv: list[bytes], env: dict[bytes, bytes]) -> tuple[int, bytes]:
    """Start the command; its pid, and what went wrong."""
    reading, errors = os.pipe()
    supervisor = os.getpid()
    try:
        pid = os.fork()
    except OSError as e:
        return 0, f"error start {e.errno}\n".encode()
    if pid == 0:
        _become(cwd, argv, env, errors, supervisor)
    os.close(errors)
    # The pipe closes by itself (close-on-exec) once the command runs.
    error = os.read(reading, 100)
    os.close(reading)
    # The output pipes belong to the tree alone: they end when it has gone.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    return pid, error


class Supervisor:
    """One running command, from its start until nothing is left of its tree."""

    def __init__(self, channel: int, pid: int, woken: int) -> None:
        self._channel, self._main, self._woken = channel, pid, woken
        self._main_ended = False
        self._unread = b""
        self._stopping = False
        self._terminate_at = self._kill_at = self._next_kill = _NEVER
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._poll.register(woken, select.POLLIN)

    def run(self) -> None:
        """Serve until the tree is gone."""
        while self._reap():
            self._act()
            for fd, _ in self._poll.poll(self._patience_ms()):
                if fd == self._woken:
                    os.read(self._woken, 4096)
                else:
                    self._obey()
        self.say(f"gone {len(descendants(os.getpid(), processes()))}")

    def say(self, line: str) -> None:
        """Tell the worker."""
        try:
            os.write(self._channel, line.encode() + b"\n")
        except OSError:
            pass  # the worker is gone; the loop notices the closed channel

    def _patience_ms(self) -> int | None:
        until = min(self._terminate_at, self._next_kill)
        return None if until == _NEVER else max(0, int((until - _now_s()) * 1000) + 1)

    def _reap(self) -> bool:
        """Collect the dead; whether anything of the tree is left to wait for."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                break
            if pid == self._main:
                self._ended(os.waitstatus_to_exitcode(status))
        if _now_s() < self._kill_at + KILL_PATIENCE_S:
            return True
        # Stuck inside the kernel: they never run a line of their own again, and nobody need wait for them.
        if not self._main_ended:
            self.say(f"signal {int(signal.SIGKILL)}")
        return False

    def _ended(self, code: int) -> None:
        self._main_ended = True
        self.say(f"exit {code}" if code >= 0 else f"signal {-code}")
        # A wrapper that dies of the signal (a shell that runs a script does) has not waited for the program inside,
        # which may be saving its work: that has the whole grace period. One that exits has ended the job.
        if not (self._stopping and code < 0):
            self._terminate_at = _now_s() + SETTLE_S
            self._kill_by(_now_s() + 2 * SETTLE_S)

    def _kill_by(self, when: float) -> None:
        self._kill_at = min(self._kill_at, when)
        self._next_kill = min(self._next_kill, self._kill_at)

    def _act(self) -> None:
        """Do what is due."""
        now = _now_s()
        if now >= self._next_kill:
            self._terminate_at = _NEVER
            self._signal(signal.SIGKILL)
            self._next_kill = now + _KILL_EVERY_S
        elif now >= self._terminate_at:
            self._terminate_at = _NEVER
            self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        try:
            table = processes()
        except OSError:
            table = {}
        # While the main command is not reaped, nobody else can have its number.
        signal_all(descendants(os.getpid(), table), table, number, first=0 if self._main_ended else self._main)

    def _obey(self) -> None:
        """Follow the orders that arrived."""
        try:
            data = os.read(self._channel, 4096)
        except OSError:
            data = b""
        if not data:
            self._poll.unregister(self._channel)
            self._kill_by(_now_s())
            return
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            what, number, *grace = line.split()
            if what == b"stop":
                self._stop(int(number), float(grace[0]))
            else:
                self._signal(int(number))

    def _stop(self, number: int, grace_s: float) -> None:
        self._stopping = True
        self._kill_by(_now_s() + grace_s)
        if grace_s > 0:
            self._signal(number)
            self._signal(signal.SIGCONT)  # what is suspended must wake up to hear of it


# -- the process ------------------------------------------------------------------------------------------------------


def _read_exactly(channel: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(channel, size - len(data))
        if not piece:
            os._exit(0)  # the worker is gone before anything began
        data += piece
    return data


def _read_spec(channel: int) -> tuple[bytes, list[bytes], dict[bytes, bytes]]:
    size = int.from_bytes(_read_exactly(channel, 4), "big")
    cwd, count, *rest = _read_exactly(channel, size).split(b"\0")
    argv, pairs = rest[: int(count)], rest[int(count) :]
    return cwd, argv, dict(pair.split(b"=", 1) for pair in pairs)


def main(channel: int) -> None:
    """Run one command to its end."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    os.set_inheritable(channel, False)
    pid, error = _start(*_read_spec(channel))
    supervisor = Supervisor(channel, pid, woken)
    supervisor.say(error.decode().strip() or f"pid {pid}")
    if not error:
        supervisor.run()


if __name__ == "__main__":
    main(0)
    os._exit(0)  # at once: there is nothing to tidy up, and the worker waits for the channel to close
