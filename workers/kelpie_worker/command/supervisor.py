"""The parent of a job's command: a tiny process that outlives its worker long enough to leave nothing behind.

It starts the command in a session of its own, passes signals on to the whole tree, and kills the tree when the command
has ended or its channel to the worker closes, which is what a worker that was killed does. It is a subreaper, so that
grandchildren which left the session or lost their parent are still found among its descendants.

Channel: a stream socket, its number in argv[1]. To here: 4 bytes of length and the JSON ``{argv, env, cwd}`` once, then
a line with a signal's number for each order. From here: JSON lines ``{"pid"}``, then ``{"exit"}`` or ``{"signal"}``, or
``{"error", "at"}`` when the command could not be started; it closes when nothing of the tree is left.

Limits: Linux (prctl, /proc); standard library only, since it runs with ``-I -S``.
"""

import ctypes
import json
import os
import select
import signal
import sys

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)


def _read_exactly(channel: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(channel, size - len(data))
        if not piece:
            sys.exit(0)
        data += piece
    return data


def _say(channel: int, **what: object) -> None:
    try:
        os.write(channel, json.dumps(what).encode() + b"\n")
    except OSError:
        pass  # the worker is gone; the closed channel is noticed by the loop


def _launch(spec: dict[str, object], errors: int) -> None:
    """In the forked child: become the command, or say why not."""
    at = "session"
    try:
        os.setsid()
        # A second net: should this supervisor be killed, the command goes with it.
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        at = "cwd"
        os.chdir(str(spec["cwd"]))
        at = "command"
        argv, env = spec["argv"], spec["env"]
        os.execvpe(argv[0], argv, env)  # type: ignore[index,arg-type]  # checked by the worker
    except OSError as e:
        os.write(errors, json.dumps({"error": e.errno, "at": at}).encode())
    except BaseException as e:
        os.write(errors, json.dumps({"error": 0, "at": f"{at}: {type(e).__name__}"}).encode())
    os._exit(127)


def _start(spec: dict[str, object], channel: int) -> int:
    """Start the command; its pid, or 0 when it could not be started."""
    reading, errors = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(channel)
        _launch(spec, errors)
    os.close(errors)
    # The pipe closes by itself (close-on-exec) when the command runs.
    error = os.read(reading, 4096)
    os.close(reading)
    # The command's output belongs to the tree alone: the worker sees its end when the tree has gone.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    if error:
        os.waitpid(pid, 0)
        _say(channel, **json.loads(error))
        return 0
    _say(channel, pid=pid)
    return pid


def _parents() -> dict[int, int]:
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as f:
                    stat = f.read()
            except OSError:
                continue
            # The name of the command, in brackets, may hold anything.
            fields = stat[stat.rfind(b")") + 2 :].split()
            if fields[0] != b"Z":
                parents[int(name)] = int(fields[1])
    return parents


def _descendants() -> list[int]:
    children: dict[int, list[int]] = {}
    for pid, parent in _parents().items():
        children.setdefault(parent, []).append(pid)
    found, todo = [], [os.getpid()]
    while todo:
        for pid in children.get(todo.pop(), ()):
            found.append(pid)
            todo.append(pid)
    return found


def _signal_tree(number: int) -> int:
    pids = _descendants()
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:
            pass
    return len(pids)


def _reap(main: int) -> int | None:
    """Collect the dead; the main command's wait status if it is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == main:
            found = status


def _kill_everything(main: int) -> int | None:
    status = None
    while _signal_tree(signal.SIGKILL):
        status = _reap(main) if status is None else status
        select.select([], [], [], 0.005)
    return status


def _tell_end(channel: int, status: int) -> None:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        _say(channel, signal=-code)
    else:
        _say(channel, exit=code)


def _orders(channel: int, rest: bytes) -> tuple[bytes, bool]:
    """Obey what arrived; the incomplete rest, and whether the worker is still there."""
    try:
        data = os.read(channel, 4096)
    except OSError:
        data = b""
    if not data:
        return rest, False
    *lines, rest = (rest + data).split(b"\n")
    for line in lines:
        _signal_tree(int(line))
    return rest, True


def _supervise(channel: int, main: int, woken: int) -> None:
    rest, there = b"", True
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(woken, select.POLLIN)
    while there:
        status = _reap(main)
        if status is not None:
            _tell_end(channel, status)
            break
        for fd, _ in poll.poll():
            if fd == woken:
                os.read(woken, 4096)
            else:
                rest, there = _orders(channel, rest)
    _kill_everything(main)
    _reap(main)


def main() -> None:
    """Run one command to its end."""
    channel = int(sys.argv[1])
    os.set_inheritable(channel, False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    woken, wakes = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    size = int.from_bytes(_read_exactly(channel, 4), "big")
    command = _start(json.loads(_read_exactly(channel, size)), channel)
    if command:
        _supervise(channel, command, woken)


if __name__ == "__main__":
    main()
