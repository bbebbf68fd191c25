"""Reading again, once the command has ended, what an attempt read before: stamps may hide what a mapping changed.

Small files are read many at a time, as changing threads for each would take longer than reading it.

Limits: what was restored and never read is not looked at; a program that only mapped it leaves a stamp at the latest
when its mapping goes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from kelpie_celery.checkpoints.content import SMALL_BYTES
from kelpie_celery.checkpoints.manifest import FileEntry
from kelpie_worker.sync.bodies import FileChanged
from kelpie_worker.sync.capturing import is_made_of, reads_the_same
from kelpie_worker.sync.errors import LocalFileError, disk_errors
from kelpie_worker.sync.lines import LineState
from kelpie_worker.sync.snapshot import Stamp
from kelpie_worker.sync.stable_read import open_for_reading
from kelpie_worker.sync.threads import in_thread, run_bounded

_AT_ONCE = 3
_BATCH = 256

_File = tuple[LineState, str, Path, Stamp, FileEntry]


async def doubt_what_changed_in_silence(lines: Iterable[LineState]) -> bool:
    """Have every file read again by the next commit that has the stamp, and not the content, that its line knows.

    Returns:
        Whether there is any.
    """
    files = [(line, *file) for line in lines for file in line.verifiable()]
    small = [file for file in files if file[-1].size < SMALL_BYTES]
    large = [file for file in files if file[-1].size >= SMALL_BYTES]
    batches = [small[at : at + _BATCH] for at in range(0, len(small), _BATCH)]
    found: list[_File] = []
    await run_bounded(large, partial(_verify_large, found), _AT_ONCE)
    await run_bounded(batches, partial(_verify_small, found), _AT_ONCE)
    for line, relative, *_ in found:
        line.doubt(relative)
    return bool(found)


async def _verify_large(found: list[_File], file: _File) -> None:
    _, _, path, stamp, entry = file
    fd = await in_thread(partial(_open, path, stamp))
    if fd is None:
        return
    try:
        with disk_errors(path):
            is_same = await reads_the_same(fd, entry.extents)
        if not is_same:
            found.append(file)
    finally:
        os.close(fd)


async def _verify_small(found: list[_File], batch: Sequence[_File]) -> None:
    found += await in_thread(partial(_differing, batch))


def _differing(batch: Sequence[_File]) -> list[_File]:
    found = []
    for file in batch:
        _, _, path, stamp, entry = file
        fd = _open(path, stamp)
        if fd is None:
            continue
        try:
            with disk_errors(path):
                is_same = is_made_of(fd, entry.extents)
            if not is_same:
                found.append(file)
        finally:
            os.close(fd)
    return found


def _open(path: Path, stamp: Stamp) -> int | None:
    """None when it is gone, has another stamp or cannot be read: the comparison to come says so."""
    try:
        fd = open_for_reading(path)
    except (FileChanged, LocalFileError):
        return None
    if Stamp.of(os.fstat(fd)) == stamp:
        return fd
    os.close(fd)
    return None
