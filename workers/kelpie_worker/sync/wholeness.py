"""What says that a checkpoint is whole: a report, a marker, or a moment that was seen to be quiet.

A job's word is about what was there when it was said. By the time that it is heard, the next checkpoint's first write
may be there as well; file times tell. Pure functions of what looks saw.

Limits: what was deleted meanwhile, and what changes in a mapped file on tmpfs, does not show in file times; nor does
what changes within one tick of the kernel's clock (1-10 ms).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path

from kelpie_celery.globs import Glob
from kelpie_worker.sync.plan import Placed
from kelpie_worker.sync.snapshot import Snapshot, Stamp

Seen = Mapping[Path, Snapshot]


def overtaken(blocks: Sequence[Placed], seen: Seen, streams: Set[Path], said_ns: int | None) -> bool:
    """Whether something changed after the job's word, so that it may be half of the next checkpoint.

    Args:
        blocks: That store the checkpoint.
        seen: A look.
        streams: Files that only grow, and may.
        said_ns: When it was said, by the clock of file times; None when that is not known.
    """
    return said_ns is not None and any(
        stamp.ctime_ns > said_ns and path not in streams for path, stamp in _selected(blocks, seen)
    )


def _selected(blocks: Sequence[Placed], seen: Seen) -> Iterator[tuple[Path, Stamp]]:
    for block in blocks:
        for relative, stamp in seen[block.path].files.items():
            if block.selects(relative):
                yield block.path / relative, stamp


def marker_written(
    blocks: Sequence[Placed], marker: Glob | None, before: Seen | None, seen: Seen, still_open: Set[Path]
) -> int | None:
    """When the newest new marker was written, by the clock of file times; None without one.

    Args:
        blocks: That store the checkpoint.
        marker: What it is called.
        before: The look that the last commit was made of.
        seen: This look.
        still_open: Files that are being written.
    """
    if marker is None:
        return None
    written_ns: list[int] = []
    for block in blocks:
        known = before[block.path].files if before else {}
        written_ns += [
            stamp.ctime_ns
            for relative, stamp in seen[block.path].files.items()
            if known.get(relative) != stamp and marker.matches(relative) and block.path / relative not in still_open
        ]
    return max(written_ns, default=None)
