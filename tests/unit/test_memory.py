"""Kills for want of memory, on pretended cgroups of both versions."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from kelpie_celery.clock import ManualClock
from kelpie_celery.lifecycle import Reason
from kelpie_worker.command import CommandExit
from kelpie_worker.command.supervisor import KILL_PATIENCE_S, SETTLE_S
from kelpie_worker.endings import of_exit
from kelpie_worker.evidence import gather
from kelpie_worker.memory import (
    RECENT_S,
    MemoryWatch,
    machine_bytes,
    own_group,
    remove_abandoned_groups,
    watching_memory,
)

FILES = {1: ("memory.oom_control", "memory.limit_in_bytes"), 2: ("memory.events", "memory.max")}
KILLS = {
    1: "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n",
    2: "low 0\nhigh 0\nmax 9\noom 7\noom_kill {}\noom_group_kill 5\n",
}
NO_LIMIT = {1: str((1 << 63) - 4096), 2: "max"}
MOUNT = {
    1: "35 31 0:32 {root} {top} rw - cgroup cgroup rw,memory",
    2: "41 31 0:38 {root} {top} rw - cgroup2 cgroup2 rw",
}
PATH = {1: "9:cpu:/x\n4:memory:{path}\n0::/y", 2: "0::{path}"}


@dataclass
class Kernel:
    """A pretended /proc/self and /sys/fs/cgroup."""

    proc: Path
    top: Path
    version: int

    def shows(self, path: str, root: str = "/") -> None:
        self.proc.mkdir(exist_ok=True)
        mount = MOUNT[self.version].format(root=root, top=self.top)
        (self.proc / "mountinfo").write_text(f"22 1 0:2 / / rw - ext4 /dev/vda rw\n{mount}\n")
        (self.proc / "cgroup").write_text(PATH[self.version].format(path=path) + "\n")

    def group(self, path: str = "", kills: int = 0, limit: str | None = None) -> Path:
        folder = self.top / path
        folder.mkdir(parents=True, exist_ok=True)
        counts, limits = FILES[self.version]
        (folder / counts).write_text(KILLS[self.version].format(kills))
        (folder / limits).write_text((limit or NO_LIMIT[self.version]) + "\n")
        return folder


@pytest.fixture(params=[1, 2])
def kernel(request: pytest.FixtureRequest, tmp_path: Path) -> Kernel:
    return Kernel(tmp_path / "proc", tmp_path / "cgroup", request.param)


def watch(kernel: Kernel, clock: ManualClock, *, private: bool = False) -> MemoryWatch:
    return MemoryWatch(own_group(kernel.proc), clock, private=private)


@pytest.mark.parametrize(
    ("path", "root", "there"),
    [
        ("/", "/", ""),  # a container with a name space of its own
        ("/docker/abc", "/docker/abc", ""),  # one without, of which its own part is mounted
        ("/system.slice/kelpie", "/", "system.slice/kelpie"),  # no container
        ("/docker/abc", "/", ""),  # the host's path, though only the container's part is to be seen
        ("/../../elsewhere", "/", ""),  # put outside of its name space's root
    ],
)
def test_the_workers_group_is_found_where_it_is_mounted(kernel: Kernel, path: str, root: str, there: str) -> None:
    kernel.group(there, kills=3)
    kernel.shows(path, root)
    group = own_group(kernel.proc)
    assert group is not None
    assert (group.folder.resolve(), group.kills()) == ((kernel.top / there).resolve(), 3)


def test_without_a_memory_group_nothing_is_known(kernel: Kernel) -> None:
    assert own_group(kernel.proc) is None
    kernel.shows("/")
    assert own_group(kernel.proc) is None
    seen = watch(kernel, ManualClock())
    seen.look()
    assert (seen.sees, seen.kills, seen.recent) == (False, 0, False)


def test_a_kill_is_counted_from_the_start_of_the_watch_on(kernel: Kernel) -> None:
    kernel.group(kills=5)
    kernel.shows("/")
    seen = watch(kernel, ManualClock())
    seen.look()
    assert (seen.sees, seen.kills, seen.recent) == (True, 0, False)
    kernel.group(kills=7)
    seen.look()
    assert (seen.kills, seen.recent) == (2, True)


def test_a_kill_long_ago_is_not_the_cause_of_an_end_now(kernel: Kernel) -> None:
    kernel.group()
    kernel.shows("/")
    clock = ManualClock()
    seen = watch(kernel, clock)
    kernel.group(kills=1)
    seen.look()
    clock.advance(RECENT_S + 1)
    seen.look()
    assert (seen.kills, seen.recent) == (1, False)


def test_a_kill_is_remembered_for_as_long_as_what_is_left_of_a_command_is_waited_for() -> None:
    assert RECENT_S > 2 * SETTLE_S + KILL_PATIENCE_S + 5.0


async def test_of_a_kill_long_ago_it_is_not_said_that_the_kernel_counts_none(kernel: Kernel) -> None:
    kernel.group()
    kernel.shows("/")
    clock = ManualClock()
    seen = watch(kernel, clock)
    kernel.group(kills=1)
    seen.look()
    clock.advance(RECENT_S + 1)
    killed = CommandExit(signal=int(signal.SIGKILL))
    ending = of_exit(killed, new_commit=False, delay_s=1.0, evidence=await gather(seen, [], []))
    assert ending is not None
    assert (ending.reason, ending.message) == (Reason.SIGNAL, "the command was ended by SIGKILL")


def test_a_group_that_goes_away_ends_nothing(kernel: Kernel) -> None:
    folder = kernel.group(kills=1)
    kernel.shows("/")
    seen = watch(kernel, ManualClock())
    (folder / FILES[kernel.version][0]).unlink()
    seen.look()
    assert seen.kills == 0


def test_the_tightest_limit_on_the_way_up_holds(kernel: Kernel) -> None:
    kernel.group(limit="4000000")
    kernel.group("a", limit="1000000")
    kernel.group("a/b", limit="2000000")
    kernel.shows("/a/b")
    assert watch(kernel, ManualClock()).limit_bytes() == 1_000_000


def test_without_a_limit_there_is_the_machines_memory(kernel: Kernel) -> None:
    kernel.group()
    kernel.shows("/")
    assert watch(kernel, ManualClock()).limit_bytes() == machine_bytes()


def test_a_machines_memory_is_read() -> None:
    assert (machine_bytes() or 0) >= 1 << 28
    assert machine_bytes(Path("/nowhere")) is None


@pytest.mark.parametrize("alone", [True, False])
def test_where_no_group_can_be_made_the_workers_own_is_watched(kernel: Kernel, alone: bool) -> None:
    kernel.group()
    kernel.shows("/")
    with watching_memory(own_group(kernel.proc), ManualClock(), alone=alone) as seen:
        seen.enter(os.getpid())
        kernel.group(kills=1)
        seen.look()
        assert (seen.kills, seen.private) == (1, alone)


def test_a_folder_that_the_kernel_gives_no_counters_is_no_group(kernel: Kernel) -> None:
    folder = kernel.group()
    (folder / "memory.use_hierarchy").write_text("1\n")
    (folder / "cgroup.subtree_control").write_text("cpu memory\n")
    kernel.shows("/")
    with watching_memory(own_group(kernel.proc), ManualClock(), alone=False) as seen:
        assert not seen.private
    assert [entry for entry in folder.iterdir() if entry.is_dir()] == []


def test_groups_that_dead_workers_left_are_removed(kernel: Kernel) -> None:
    folder = kernel.group()
    kernel.shows("/")
    (folder / "kelpie-job-1-dead").mkdir()
    (folder / "kelpie-job-2-alive").mkdir()
    (folder / "kelpie-job-2-alive" / "cgroup.procs").write_text("42\n")
    (folder / "somebody-elses").mkdir()
    remove_abandoned_groups(own_group(kernel.proc))
    assert sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) == [
        "kelpie-job-2-alive",
        "somebody-elses",
    ]
