"""Gathers what the machine tells of a command that failed: kills for want of memory, disks that are full.

Limits: right after the command's end; later, both may have other causes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from kelpie_worker.endings import Evidence
from kelpie_worker.full_disks import full_disk
from kelpie_worker.memory import MemoryWatch
from kelpie_worker.sync.threads import in_thread

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where programs with several processes put what they share


async def gather(memory: MemoryWatch, places: Iterable[Path], last_lines: Sequence[str]) -> Evidence:
    """Look at memory and disks.

    Args:
        memory: The watch over the command's memory, after a last look.
        places: Where the command may have written.
        last_lines: Of its output.
    """
    full = await in_thread(partial(full_disk, list(places), last_lines))
    return Evidence(
        memory_kills=memory.kills if memory.recent else 0, memory_private=memory.private,
        memory_limit_bytes=memory.limit_bytes() if memory.kills else None, memory_seen=memory.sees and not memory.kills,
        full=full,
    )  # fmt: skip


def temporary_places(environ: Mapping[str, str]) -> list[Path]:
    """Where programs put what they do not name a place for.

    Args:
        environ: The command's environment.
    """
    return [Path(environ.get("TMPDIR") or tempfile.gettempdir()), _SHARED_MEMORY]
