"""Reading a file into extents: what is on the storage already is taken over, the rest goes into segments.

A file is read window by window. Of each window the longest run of the old extents that still match is kept, so an
append costs its new bytes only; the rest becomes one new extent. The rule of ``stable_read`` decides whether what was
read existed at one instant: stamp, path and writers as before, or every byte the same when read a second time.

Memory: one window (8 MiB) for each file that is being read. Limits: extents are matched at their old places only; bytes
that are inserted in the middle of a file are sent with all that follows them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from kelpie_celery.checkpoints import content
from kelpie_celery.checkpoints.manifest import Extent, FileEntry
from kelpie_worker.sync.bodies import FileChanged
from kelpie_worker.sync.errors import disk_errors
from kelpie_worker.sync.segments import Segment, Spool
from kelpie_worker.sync.snapshot import Stamp
from kelpie_worker.sync.stable_read import names, nobody_writes, open_for_reading
from kelpie_worker.sync.threads import in_thread

_MOST_IN_A_WINDOW = 32
_MODE_BITS = 0o777


@dataclass(frozen=True)
class Candidate:
    """What a file may be made of already.

    Attributes:
        extents: Of the file as it was known last.
        avoid: Segments that are mostly garbage by now: what they hold is sent anew, so that they can go.
    """

    extents: tuple[Extent, ...] = ()
    avoid: Set[str] = frozenset()

    def by_window(self, window: int) -> dict[int, list[Extent]]:
        """The extents that lie in each window; one that reaches over a border ends the use of what follows it."""
        found: dict[int, list[Extent]] = {}
        at = 0
        for extent in self.extents:
            first, last = at // window, (at + extent.length - 1) // window
            if extent.segment not in self.avoid and extent.length and first == last:
                found.setdefault(first, []).append(extent)
            elif first in found:
                found[first].append(_BREAK)
            else:
                found[first] = [_BREAK]
            at += extent.length
        return found


_BREAK = Extent("", 0, 0, 0, "", "")
"""Stands where nothing may be taken over any more in a window."""


@dataclass
class Captured:
    """A file as it was at one instant.

    Attributes:
        stamp: Of the file.
        entry: What the manifest says of it.
        segments: New ones that the entry refers to.
        new_bytes: How many bytes of the file are new.
        sure: Whether nobody had it open for writing: then its stamp will show the next change.
    """

    stamp: Stamp
    entry: FileEntry
    segments: tuple[Segment, ...] = ()
    new_bytes: int = 0
    sure: bool = True


@dataclass
class Filling:
    """The segments that one file, or a pack of small ones, is written into; used by one task."""

    spool: Spool
    bucket: str
    folder: str
    pack: bool
    segments: list[Segment] = field(default_factory=list)
    _current: Segment | None = None

    async def room_for(self, count: int) -> Segment:
        """The segment that the next extent of up to ``count`` bytes goes into."""
        if self._current is None or not self._current.has_room(count):
            self.seal()
            self._current = await self.spool.new(self.bucket, self.folder)
            self.segments.append(self._current)
        return self._current

    @property
    def open_bytes(self) -> int:
        """How much was filled that is not being sent yet."""
        return self._current.size_bytes if self._current else 0

    def seal(self) -> None:
        """Send what was filled."""
        current, self._current = self._current, None
        if current is None:
            return
        if current.size_bytes:
            self.spool.send(current)
        else:
            self.spool.discard(current)
            self.segments.remove(current)

    def drop_open(self) -> None:
        """Let go of what was not sent yet."""
        current, self._current = self._current, None
        if current is not None:
            self.spool.discard(current)
            self.segments.remove(current)


def write_extent(segment: Segment, raw: bytes | memoryview, digest: str, *, pack: bool) -> Extent:
    """Append one extent to a segment, packed where that is wanted and pays; blocking."""
    packed = content.pack(raw) if pack else content.Packed(content.RAW, raw)
    at = segment.append(packed.data)
    return Extent(segment.key, at, len(packed.data), len(raw), packed.codec, digest)


async def capture(
    path: Path, candidate: Candidate, filling: Filling, upto: Stamp | None = None, *, appended: bool = False
) -> Captured:
    """Read one file of any size; its new extents are in ``filling``, which is sealed.

    Args:
        path: The file.
        candidate: What it may be made of already.
        filling: Where new extents go.
        upto: Of a file that only grows: as it was at the instant that is wanted; what came later is left out.
        appended: Whether it can only be appended to. Else it must show that growing does not change what it held: some
            formats keep a count in their header.

    Raises:
        FileChanged: It is gone, or does not hold still; what was filled in vain is the caller's to give up.
        LocalFileError: It cannot be read.
        DiskFull: No room for the copy.
    """
    fd = await in_thread(lambda: open_for_reading(path))
    try:
        status = os.fstat(fd)
        before = upto or Stamp.of(status)
        reading = _Reading(path, fd, before.size_bytes, candidate)
        begun: Stamp | None = None
        while not reading.done:
            segment = await filling.room_for(reading.next_bytes)
            await in_thread(lambda into=segment: reading.window(into, pack=filling.pack))  # type: ignore[misc]
            begun = begun or Stamp.of(os.fstat(fd))
        filling.seal()
        sure = await _ensure_existed(path, fd, before, reading)
        if upto and not sure and not appended and begun not in {None, upto}:
            # It had grown before its beginning was read: perhaps that says so. Only growth since, which left what was
            # read as it was, shows that it does not.
            _ensure_grew(path, fd, begun)
        entry = FileEntry(before.size_bytes, status.st_mode & _MODE_BITS, before.mtime_ns, tuple(reading.extents))
        return Captured(before, entry, tuple(filling.segments), reading.new_bytes, sure)
    except BaseException:
        filling.drop_open()
        raise
    finally:
        os.close(fd)


class _Reading:
    """Reads a file window by window; each step is blocking."""

    def __init__(self, path: Path, fd: int, size_bytes: int, candidate: Candidate) -> None:
        self._path, self._fd, self._size = path, fd, size_bytes
        self._window = content.window_bytes(size_bytes)
        self._old = candidate.by_window(self._window)
        self._buffer = memoryview(bytearray(min(self._window, max(1, size_bytes))))
        self._at = 0
        self.is_whole = True
        self.extents: list[Extent] = []
        self.new_bytes = 0

    @property
    def done(self) -> bool:
        return self._at >= self._size or not self.is_whole

    @property
    def next_bytes(self) -> int:
        return min(self._window, self._size - self._at)

    def window(self, into: Segment, *, pack: bool) -> None:
        wanted = self.next_bytes
        data = self._buffer[:wanted]
        with disk_errors(self._path):
            arrived = _read_into(self._fd, data, self._at)
        if arrived < wanted:
            self.is_whole = False  # it shrank
            return
        old = self._old.get(self._at // self._window, [])
        if len(old) > _MOST_IN_A_WINDOW:
            old = []  # many small appends: made one again, or manifests would outgrow what they speak of
        kept = 0
        for extent in old:
            end = kept + extent.length
            if not extent.length or end > wanted or content.digest(data[kept:end]) != extent.digest:
                break
            self.extents.append(extent)
            kept = end
        if kept < wanted:
            rest = data[kept:]
            self.extents.append(write_extent(into, rest, content.digest(rest), pack=pack))
            self.new_bytes += len(rest)
        self._at += wanted


def _read_into(fd: int, data: memoryview, at: int) -> int:
    done = 0
    while done < len(data):
        count = os.preadv(fd, [data[done:]], at + done)
        if not count:
            break
        done += count
    return done


@dataclass(frozen=True)
class Small:
    """A small file in memory, as it was at one instant."""

    stamp: Stamp
    mode: int
    data: bytes
    sure: bool


def read_small(path: Path) -> Small:
    """Read a small file whole; blocking.

    Raises:
        FileChanged: It is gone, does not hold still, or is small no more.
        LocalFileError: It cannot be read.
    """
    fd = open_for_reading(path)
    try:
        with disk_errors(path):
            status = os.fstat(fd)
            before = Stamp.of(status)
            data = _read_small(fd, before.size_bytes)
            whole = len(data) == before.size_bytes
            still = Stamp.of(os.fstat(fd)) == before and names(path, before) and nobody_writes(fd)
            if not whole or not (still or _read_small(fd, before.size_bytes) == data):
                raise FileChanged(f"{path} changed while it was read")
        return Small(before, status.st_mode & _MODE_BITS, data, still)
    finally:
        os.close(fd)


def _read_small(fd: int, size_bytes: int) -> bytes:
    return os.pread(fd, size_bytes, 0) if size_bytes <= content.SMALL_BYTES else b""


def add_small(small: Small, candidate: Candidate, into: Segment | None, *, pack: bool) -> tuple[FileEntry, bool]:
    """The entry of a small file; blocking.

    Args:
        small: The file.
        candidate: What it may be already.
        into: The pack that it goes into where it is new; None for an empty one.
        pack: Whether it is compressed.

    Returns:
        The entry, and whether something was added to the pack.
    """
    digest = content.digest(small.data)
    size, mtime = small.stamp.size_bytes, small.stamp.mtime_ns
    usable = candidate.extents and all(extent.segment not in candidate.avoid for extent in candidate.extents)
    if usable and [(e.length, e.digest) for e in candidate.extents] == [(size, digest)]:
        return FileEntry(size, small.mode, mtime, candidate.extents), False
    if into is None or not size:
        return FileEntry(size, small.mode, mtime, ()), False
    return FileEntry(size, small.mode, mtime, (write_extent(into, small.data, digest, pack=pack),)), True


async def _ensure_existed(path: Path, fd: int, before: Stamp, reading: _Reading) -> bool:
    """Whether that was plain to see; else it took a second read."""

    def untouched() -> bool:
        return Stamp.of(os.fstat(fd)) == before and names(path, before) and nobody_writes(fd)

    with disk_errors(path):
        sure = reading.is_whole and await in_thread(untouched)
        if not reading.is_whole or not (sure or await reads_the_same(fd, reading.extents)):
            raise FileChanged(f"{path} changed while it was read")
    return sure


def _ensure_grew(path: Path, fd: int, begun: Stamp | None) -> None:
    if begun is not None and os.fstat(fd).st_size <= begun.size_bytes:
        raise FileChanged(f"{path} grew before it was read, and not since")


async def reads_the_same(fd: int, extents: Sequence[Extent]) -> bool:
    """Whether a file, read once more from its beginning, is made of these extents still; it may have grown."""
    at = 0
    for extent in extents:
        if not await in_thread(lambda e=extent, start=at: _is_still(fd, start, e)):  # type: ignore[misc]
            return False
        at += extent.length
    return True


def is_made_of(fd: int, extents: Sequence[Extent]) -> bool:
    """As `reads_the_same`, in one go; blocking, so for small files."""
    at = 0
    for extent in extents:
        if not _is_still(fd, at, extent):
            return False
        at += extent.length
    return True


def _is_still(fd: int, at: int, extent: Extent) -> bool:
    data = memoryview(bytearray(extent.length))
    return _read_into(fd, data, at) == extent.length and content.digest(data) == extent.digest
