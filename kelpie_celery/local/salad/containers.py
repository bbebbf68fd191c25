"""Containers as processes of this machine: each one program with all that it starts, and a directory of its own.

A container's processes are its first one, the descendants of that, and whatever carries its instance id in its
environment; so also a job whose worker is gone. They are frozen and killed together, as a node that vanishes takes all
of them. Should this process be killed, the kernel kills each first process (see ``processes.py``), and
``kelpie-worker`` sees to its jobs; what another program started goes on then.

Limits: Linux; elsewhere only the first process is known. No limits of CPU or memory, no image, one network.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from kelpie_celery.clock import Clock, SystemClock
from kelpie_celery.local import binaries
from kelpie_celery.local.errors import LocalStackError
from kelpie_celery.local.machine import Machine, made
from kelpie_celery.local.processes import REAP_S, ManagedProcess
from kelpie_celery.local.salad.effects import Effect, Freeze, Kill, Launch, Notify, Wipe

SIGNAL_BASE: Final = 128  # how a shell, and the platform, tell of an end by a signal
CANNOT_START: Final = 127
MARK: Final = b"SALAD_INSTANCE_ID="
PROC: Final = Path("/proc")
DIE_S: Final = 2.0  # how long the simulation stands still for a killed process; half a GiB takes 0.1 s
LOOK_EVERY_S: Final = 0.005

log = logging.getLogger(__name__)


class Containers:
    """The containers that run; used by one thread.

    Attributes:
        directory: Where their files (``machines/``) and logs (``logs/``) are.
    """

    def __init__(
        self,
        directory: Path,
        command: Sequence[str],
        env: Mapping[str, str],
        *,
        slots: int,
        clock: Clock,
        metadata_url: Callable[[str], str],
    ) -> None:
        """None runs yet.

        Args:
            directory: Where to keep everything.
            command: What a container runs that has no command of its own; a full path first.
            env: The surrounding environment of all of them.
            slots: ``KELPIE_SLOTS`` of each.
            clock: Where time comes from.
            metadata_url: The base URL of an instance's metadata service.
        """
        self.directory = directory
        self._command, self._env, self._slots = tuple(command), dict(env), slots
        self._clock, self._metadata_url = clock, metadata_url
        self._running: dict[str, ManagedProcess] = {}
        self._failed: list[str] = []

    def perform(self, effect: Effect) -> None:
        """Do what the state machine asks for; nothing, where the container is gone."""
        match effect:
            case Launch():
                self._launch(effect)
            case Notify():
                if effect.instance_id in self._running:
                    self._running[effect.instance_id].send_signal(effect.signum)
            case Freeze():
                self._freeze(effect.instance_id)
            case Kill():
                self._end(effect.instance_id)
            case Wipe():
                self._wipe(self._place(effect.machine_id, effect.place))

    def ended(self) -> list[tuple[str, int]]:
        """The containers that have ended by themselves since the last call, with their exit codes."""
        found = [(instance_id, CANNOT_START) for instance_id in self._failed]
        self._failed.clear()
        for instance_id, process in list(self._running.items()):
            if not process.running:
                code = process.exit_code or 0
                self._end(instance_id)  # what it left behind goes with it
                found.append((instance_id, code if code >= 0 else SIGNAL_BASE - code))
        return found

    def pid(self, instance_id: str) -> int | None:
        """The first process of a container; ``None`` when it does not run."""
        process = self._running.get(instance_id)
        return process.pid if process is not None else None

    def log(self, instance_id: str) -> Path | None:
        """Where a running container writes; ``None`` when it does not run."""
        process = self._running.get(instance_id)
        return process.log if process is not None else None

    def kill_all(self) -> None:
        """SIGKILL to everything, and wait until nothing is left.

        Raises:
            LocalStackError: Something is still there after a while; the rest is gone.
        """
        for instance_id in list(self._running):
            self._freeze(instance_id)
        if left := self._kill(*self._running, patience_s=REAP_S):
            raise LocalStackError(f"processes that were killed {REAP_S:g} s ago are still there: {left}")

    def _launch(self, launch: Launch) -> None:
        place = self._place(launch.machine_id, launch.place)
        machine = Machine(0, launch.machine_id, place)
        own = machine.env(launch.env["SALAD_CONTAINER_GROUP_ID"], self._slots)
        env = {**self._env, **own, **launch.env, **_places(own)}
        env |= {"TMPDIR": str(made(place / "tmp")), "KELPIE_CACHE_DIR": str(made(place / "cache"))}
        env["SALAD_METADATA_URI"] = self._metadata_url(launch.instance_id)
        name = f"{launch.group}-{launch.instance_id}"
        log = self.directory / "logs" / f"{name}.log"
        argv = launch.command or self._command
        process = ManagedProcess(name, argv, env=env, cwd=place, log=log, clock=self._clock)
        try:
            process.start()
        except LocalStackError:
            self._failed.append(launch.instance_id)
            return
        self._running[launch.instance_id] = process

    def _place(self, machine_id: str, place: str) -> Path:
        return self.directory / "machines" / machine_id / place

    def _wipe(self, place: Path) -> None:
        shutil.rmtree(place, ignore_errors=True)
        with contextlib.suppress(OSError):  # another instance is on this machine, or was never started
            place.parent.rmdir()

    def _freeze(self, instance_id: str) -> set[int]:
        process = self._running.get(instance_id)
        if process is None:
            return set()
        frozen: set[int] = set()
        # Whatever was forked before its parent stood still is found in the next round.
        while found := members(process.pid if process.running else None, instance_id) - frozen:
            _signal(found, signal.SIGSTOP)
            frozen |= found
        return frozen

    def _end(self, instance_id: str) -> None:
        if left := self._kill(instance_id, patience_s=DIE_S):
            log.error("what was killed is still there", extra={"action": "salad_sim_left", "left": left})

    def _kill(self, *instance_ids: str, patience_s: float) -> str:
        """SIGKILL, and wait until it has taken effect; pids of what is still there, as text.

        Until then a process may hold files and connections, and write to a place that is erased.
        """
        ended, killed = [], set()
        for instance_id in instance_ids:
            frozen = self._freeze(instance_id)
            process = self._running.pop(instance_id, None)
            if process is not None:
                _signal(frozen, signal.SIGKILL)
                process.send_signal(signal.SIGKILL)
                killed |= frozen
                ended.append(process)
        clock = SystemClock()  # the kernel's time is not that of a simulation
        until_s = clock.boottime() + patience_s
        while (left := set(filter(_lives, killed))) and clock.boottime() < until_s:
            clock.sleep(LOOK_EVERY_S)
        for process in ended:
            with contextlib.suppress(LocalStackError):  # it is one of those that are left
                process.wait(max(0.0, until_s - clock.boottime()))
        return ", ".join(map(str, sorted(left)))


def program(command: Sequence[str]) -> tuple[str, ...]:
    """A command with the full path of its program; ``kelpie-worker`` for an empty one.

    Raises:
        LocalStackError: There is no such program.
    """
    if not command:
        return (str(binaries.script("kelpie-worker", "kelpie-celery")),)
    found = shutil.which(command[0])
    if found is None:
        raise LocalStackError(f"{command[0]!r} is not a program that can be run; give its full path")
    return (str(Path(found).absolute()), *command[1:])


def members(first: int | None, instance_id: str) -> set[int]:
    """The processes of a container.

    Args:
        first: Its first process; ``None`` when that has ended.
        instance_id: Which container.
    """
    parents, found = {}, {first} if first is not None else set()
    mark = MARK + instance_id.encode()
    for entry in _numbers(PROC):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it ended meanwhile, or is somebody else's
            parents[entry] = _parent(entry)
            if mark in (PROC / str(entry) / "environ").read_bytes().split(b"\0"):
                found.add(entry)
    grown = -1
    while grown != len(found):
        grown = len(found)
        found |= {pid for pid, parent in parents.items() if parent in found}
    return found - {os.getpid()}


def _numbers(place: Path) -> list[int]:
    try:
        return [int(name) for name in os.listdir(place) if name.isdigit()]  # noqa: PTH208 -- names are all that is needed
    except OSError:
        return []


def _parent(pid: int) -> int:
    # The name is in parentheses and may hold anything, so count from the last one.
    stat = (PROC / str(pid) / "stat").read_text(errors="replace")
    fields = stat.rpartition(")")[2].split()
    if fields[0] in {"Z", "X"}:
        raise ValueError(pid)  # dead, and only waited for
    return int(fields[1])


def _signal(pids: set[int], signum: int) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signum)


def _lives(pid: int) -> bool:
    try:
        _parent(pid)
    except (OSError, ValueError, IndexError):
        return False
    return True


def _places(own: Mapping[str, str]) -> dict[str, str]:
    """The directories, which a group's own variables must not share among its containers."""
    names = ("KELPIE_WORKDIR", "KELPIE_STATE_FILE", "INPUT_DIR", "OUTPUT_DIR", "CHECKPOINT_DIR")
    return {name: own[name] for name in names}
