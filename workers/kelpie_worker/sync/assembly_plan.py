"""How a plain key can be put together on the storage from the segments of a commit. Pure.

A file that is one whole segment is copied. Any other is an upload in parts, each of which is one range of one segment
for the storage to copy. A part that is none (appends leave windows of several extents) is copied from the object that
is under the plain key already, if that holds the same there; else it is sent. Parts are equal but the last, which
Cloudflare R2 asks for.

Limits: not for files below 1 MiB (three requests instead of one), nor over 312 GiB (10,000 parts of at most a segment).
What is packed cannot be copied.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from kelpie_celery.checkpoints.content import RAW, SEGMENT_BYTES, SMALL_BYTES, WINDOW_BYTES
from kelpie_celery.checkpoints.manifest import Extent, FileEntry
from kelpie_worker.sync.object_store import StoredObject

PART_SIZES = (SEGMENT_BYTES, WINDOW_BYTES)
"""How large parts may be; S3 wants 5 MiB at least."""
MOST_PARTS = 10_000


class Copied(NamedTuple):
    """A part that the storage copies: ``length`` bytes from ``at`` of the object ``source``."""

    source: str
    at: int
    length: int


class Sent(NamedTuple):
    """A part that is sent: ``length`` bytes from ``at`` of the file, which are made of ``extents``."""

    at: int
    length: int
    extents: tuple[Extent, ...]


@dataclass(frozen=True)
class Plan:
    """How an object is put together.

    Attributes:
        parts: In their order; at least one of them is copied.
        copy_of: The object that it is a whole copy of; empty for an upload in parts.
    """

    parts: tuple[Copied | Sent, ...]
    copy_of: str = ""

    @property
    def size_bytes(self) -> int:
        """The size of the object."""
        return sum(part.length for part in self.parts)

    @property
    def sent_bytes(self) -> int:
        """How much of it has to be sent."""
        return sum(part.length for part in self.parts if isinstance(part, Sent))


@dataclass(frozen=True)
class Older:
    """The object that is under the plain key already, and the file that it was made from."""

    object: StoredObject
    entry: FileEntry


def plan(entry: FileEntry, segment_bytes: Mapping[str, int], older: Older | None = None) -> Plan | None:
    """How a file of a commit can be put together; None when it has to be sent whole.

    Args:
        entry: The file.
        segment_bytes: The sizes of the commit's segments.
        older: What may be copied from besides.
    """
    if entry.size < SMALL_BYTES:
        return None
    runs = _merged(entry.extents)
    if len(runs) == 1 and (run := runs[0]).source and run.at == 0 and run.length == segment_bytes.get(run.source):
        return Plan((Copied(run.source, 0, run.length),), copy_of=run.source)
    cutter = _Cutter(entry.extents, runs, older)
    plans = [plan for part_bytes in PART_SIZES if (plan := cutter.cut(entry.size, part_bytes))]
    best = min(plans, key=lambda plan: (plan.sent_bytes, len(plan.parts)), default=None)
    return best if best and best.sent_bytes < entry.size else None


def _merged(extents: Sequence[Extent]) -> list[Copied]:
    """Extents that lie side by side in one segment are one; those that cannot be copied have no source."""
    runs: list[Copied] = []
    for extent in extents:
        copyable = extent.codec == RAW and extent.stored == extent.length
        run = Copied(extent.segment if copyable else "", extent.at, extent.length)
        last = runs[-1] if runs else None
        if last and run.source and (last.source, last.at + last.length) == (run.source, run.at):
            runs[-1] = Copied(last.source, last.at, last.length + run.length)
        elif run.length:
            runs.append(run)
    return runs


class _Content:
    """The extents of a file by where they begin."""

    def __init__(self, extents: Sequence[Extent]) -> None:
        self._extents = extents
        self._starts = list(accumulate((extent.length for extent in extents), initial=0))

    def between(self, start: int, end: int) -> tuple[Extent, ...] | None:
        """What a range is made of; None where it begins or ends within an extent."""
        first, last = bisect_left(self._starts, start), bisect_left(self._starts, end)
        if last >= len(self._starts) or (self._starts[first], self._starts[last]) != (start, end):
            return None
        return tuple(self._extents[first:last])


class _Cutter:
    """Cuts a file into parts."""

    def __init__(self, extents: Sequence[Extent], runs: Sequence[Copied], older: Older | None) -> None:
        self._content, self._runs = _Content(extents), runs
        self._starts = list(accumulate((run.length for run in runs), initial=0))
        self._key = older.object.key if older else ""
        self._older = _Content(older.entry.extents) if older else None

    def cut(self, size_bytes: int, part_bytes: int) -> Plan | None:
        """The file in parts of this size, if it can be."""
        if size_bytes > part_bytes * MOST_PARTS:
            return None
        parts: list[Copied | Sent] = []
        for start in range(0, size_bytes, part_bytes):
            part = self._part(start, min(size_bytes, start + part_bytes))
            if part is None:
                return None
            parts.append(part)
        return Plan(tuple(parts))

    def _part(self, start: int, end: int) -> Copied | Sent | None:
        index = bisect_right(self._starts, start) - 1
        run, offset = self._runs[index], start - self._starts[index]
        if run.source and end <= self._starts[index + 1]:
            return Copied(run.source, run.at + offset, end - start)
        extents = self._content.between(start, end)
        if extents is None:
            return None
        before = self._older.between(start, end) if self._older else None
        if before is not None and [_what(extent) for extent in before] == [_what(extent) for extent in extents]:
            return Copied(self._key, start, end - start)
        return Sent(start, end - start, extents)


def _what(extent: Extent) -> tuple[int, str]:
    return extent.length, extent.digest
