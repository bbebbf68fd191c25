"""Whether the kernel killed a command's processes for want of memory, as the memory cgroup tells.

The kernel counts the processes that it kills for want of memory in the cgroup of the killed one (``oom_kill`` in
``memory.events`` of version 2, in ``memory.oom_control`` of version 1), whether the cgroup's own limit was reached or
the machine's. Where the worker may make a cgroup below its own, each job gets one, so that its kills are told apart
from those of other slots; in most containers the file system of cgroups is read-only, and the worker's own is read.

Limits: Linux >= 4.13. Without a memory cgroup to be seen (the root of version 2 has no counters) nothing is known, and
a kill for want of memory looks like any other SIGKILL.
Sources: cgroups(7), Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of the kernel.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kelpie_celery.clock import Clock

log = logging.getLogger(__name__)

RECENT_S = 30.0
"""A kill this long before a command's end, seconds, is taken for the cause of it.

Longer than what the end may wait for after the kill: processes that do not die at once, and their last output.
"""

_PREFIX = "kelpie-job-"
_NO_LIMIT_BYTES = 1 << 60
"""Version 1 says "no limit" by the largest number that it can count in pages."""


class _Files(NamedTuple):
    """What one version of cgroups calls its files."""

    kills: str
    limit: str


_FILES = {1: _Files("memory.oom_control", "memory.limit_in_bytes"), 2: _Files("memory.events", "memory.max")}


@dataclass(frozen=True)
class MemoryGroup:
    """A memory cgroup.

    Attributes:
        folder: Its folder.
        top: Where its hierarchy is mounted: limits above that are not to be seen.
        version: 1 or 2.
    """

    folder: Path
    top: Path
    version: int

    def kills(self) -> int | None:
        """How many of its processes the kernel killed for want of memory; None where that is not told."""
        for line in _lines(self.folder / _FILES[self.version].kills):
            name, _, value = line.partition(" ")
            if name == "oom_kill" and value.strip().isdigit():
                return int(value)
        return None

    def limit_bytes(self) -> int | None:
        """The tightest limit that holds for it, in bytes; None where there is none to be seen."""
        found = [limit for folder in self._up() if (limit := self._limit(folder)) is not None]
        return min(found, default=None)

    def _up(self) -> Iterator[Path]:
        for folder in (self.folder, *self.folder.parents):
            if folder.is_relative_to(self.top):
                yield folder

    def _limit(self, folder: Path) -> int | None:
        text = next(iter(_lines(folder / _FILES[self.version].limit)), "").strip()
        return int(text) if text.isdigit() and int(text) < _NO_LIMIT_BYTES else None

    def takes_children(self) -> bool:
        """Whether a cgroup below it would have counters, and its limit."""
        if self.version == 1:
            return _lines(self.folder / "memory.use_hierarchy") == ["1"]
        return any("memory" in line.split() for line in _lines(self.folder / "cgroup.subtree_control"))


def own_group(proc: Path = Path("/proc/self")) -> MemoryGroup | None:
    """The memory cgroup of this process; None where none is to be seen.

    Args:
        proc: The process's folder in ``/proc``.
    """
    paths = _paths(proc)
    for version, root, top in _mounts(proc):
        path = paths.get(version)
        if path is None:
            continue
        below = Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path()
        # In a container the path may be the host's, of which only the container's own part is mounted.
        for folder in (top / below, top):
            group = MemoryGroup(folder, top, version)
            if group.kills() is not None:
                return group
    return None


def _paths(proc: Path) -> dict[int, str]:
    """The process's cgroup by version, as ``/proc/PID/cgroup`` tells: ``ID:CONTROLLERS:PATH``."""
    found: dict[int, str] = {}
    for line in _lines(proc / "cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            found[1] = path
        elif line.startswith("0::"):
            found[2] = path
    return found


def _mounts(proc: Path) -> Iterator[tuple[int, str, Path]]:
    """Version, root and mount point of each hierarchy that may know of memory; those of version 1 first."""
    found = []
    for line in _lines(proc / "mountinfo"):
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 3:  # noqa: PLR2004 - fields of proc(5)
            continue
        if kind[0] == "cgroup" and "memory" in kind[2].split(","):
            found.append((1, fields[3], Path(fields[4])))
        elif kind[0] == "cgroup2":
            found.append((2, fields[3], Path(fields[4])))
    yield from sorted(found, key=lambda mount: mount[0])


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except (OSError, ValueError):
        return []


class MemoryWatch:
    """Counts the kills during one command.

    Attributes:
        kills: How many there were.
        private: They are this job's alone.
    """

    def __init__(self, group: MemoryGroup | None, clock: Clock, *, private: bool) -> None:
        self._group, self._clock = group, clock
        self._before = (group and group.kills()) or 0
        self._last: float | None = None
        self.kills = 0
        self.private = private

    @property
    def sees(self) -> bool:
        """Whether kills would be seen at all."""
        return self._group is not None

    @property
    def recent(self) -> bool:
        """Whether there was one a moment ago."""
        return self._last is not None and self._clock.boottime() - self._last <= RECENT_S

    def look(self) -> None:
        """Read the counter; to be called often, and once more after the command's end."""
        now = (self._group and self._group.kills()) or self._before
        if now - self._before > self.kills:
            self._last = self._clock.boottime()
        self.kills = max(self.kills, now - self._before)

    def limit_bytes(self) -> int | None:
        """The limit that holds for the job, or what the machine has."""
        limit = self._group.limit_bytes() if self._group else None
        return limit if limit is not None else machine_bytes()

    def enter(self, pid: int) -> None:
        """Have a process, which has no children yet, counted here."""


class JobGroup(MemoryWatch):
    """A watch over a cgroup of the job's own."""

    def __init__(self, group: MemoryGroup, clock: Clock) -> None:
        super().__init__(group, clock, private=True)
        self._folder = group.folder

    def enter(self, pid: int) -> None:
        """Have a process counted here; where that is refused, nothing is known of the job's memory."""
        try:
            (self._folder / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            self._group = None
            log.info(
                "a job cannot have a cgroup of its own",
                extra={"action": "cgroup_refused", "path": str(self._folder), "error": str(error)},
            )


@contextmanager
def watching_memory(group: MemoryGroup | None, clock: Clock, *, alone: bool) -> Iterator[MemoryWatch]:
    """Watch over one command, in a cgroup of its own where one can be made.

    Args:
        group: The worker's.
        clock: For what "recent" means.
        alone: No other command of this worker runs at the same time.
    """
    own = _make_below(group) if group is not None and group.takes_children() else None
    if own is None:
        yield MemoryWatch(group, clock, private=alone)
        return
    try:
        yield JobGroup(own, clock)
    finally:
        # A process that cannot be killed is still in there: the next worker removes it.
        with contextlib.suppress(OSError):
            own.folder.rmdir()


def _make_below(group: MemoryGroup) -> MemoryGroup | None:
    made = MemoryGroup(group.folder / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}", group.top, group.version)
    try:
        made.folder.mkdir()
    except OSError:
        return None
    if made.kills() is None:
        with contextlib.suppress(OSError):
            made.folder.rmdir()
        return None
    return made


def remove_abandoned_groups(group: MemoryGroup | None) -> None:
    """Remove the cgroups of jobs that workers left when they died; one with a process in it cannot be removed."""
    for folder in group.folder.glob(f"{_PREFIX}*") if group else ():
        with contextlib.suppress(OSError):
            folder.rmdir()


def machine_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """The machine's memory in bytes."""
    for line in _lines(meminfo):
        name, _, rest = line.partition(":")
        number = rest.split()[:1]
        if name == "MemTotal" and number and number[0].isdigit():
            return int(number[0]) * 1024
    return None
