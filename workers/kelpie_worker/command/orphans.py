"""Which processes are a job's, seen from outside; and ends those left behind by a supervisor that was itself killed.

The command has died of PDEATHSIG by then. What it started is known by its session and group, and what has left both by
the job's id and attempt in its environment. Limits: processes of the same user; a grandchild that has left both,
cleared its environment and lost its parent is not found.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from kelpie_worker.command.supervisor import descendants, processes

MARKS = ("KELPIE_JOB_ID", "KELPIE_ATTEMPT")
_PATIENCE_S = 5.0
_LOOK_EVERY_S = 0.02


async def end_orphans(main: int, env: Mapping[str, str]) -> int:
    """Kill until nothing is found.

    Args:
        main: Pid of the command, which led its session and group; 0 when it is not known.
        env: The environment that it was given.

    Returns:
        How many were still there after 5 s.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + _PATIENCE_S
    while found := _marked(main, env, processes()):
        for pid in found:
            with contextlib.suppress(OSError):  # gone meanwhile, or another user's
                os.kill(pid, signal.SIGKILL)
        if loop.time() > until:
            break
        await asyncio.sleep(_LOOK_EVERY_S)
    return len(found)


def job_processes(main: int, env: Mapping[str, str]) -> list[int]:
    """The live processes of a running job, without its supervisor.

    Args:
        main: Pid of the command, which leads its session and group.
        env: The environment that it was given.

    Raises:
        OSError: There is no /proc.
    """
    table = processes()
    below = descendants(main, table) if main in table else []
    return sorted({*below, *_marked(main, env, table)})


def _marked(main: int, env: Mapping[str, str], table: Mapping[int, tuple[int, int, int]]) -> list[int]:
    # Not by parentage: once the command is reaped somebody else may have its pid, and this decides what is killed.
    marks = {f"{name}={env[name]}".encode() for name in MARKS if name in env}
    # One mark alone may be somebody else's: a worker that runs inside a job has the outer job's id.
    marked = marks if len(marks) == len(MARKS) else None
    mine = os.getpid()
    return [
        pid
        for pid, (_, group, session) in table.items()
        if pid != mine and ((main and main in (group, session)) or (marked and marked <= _environ(pid)))
    ]


def _environ(pid: int) -> set[bytes]:
    try:
        return set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    except OSError:
        return set()
