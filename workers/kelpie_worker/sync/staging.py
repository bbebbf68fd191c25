"""Reading what is pending into segments: large files by themselves, small ones together in packs.

Limits: what cannot be read consistently is left out and told; whether that matters is the caller's to decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from functools import partial
from pathlib import Path

from kelpie_celery.checkpoints import content
from kelpie_worker.sync.bodies import FileChanged
from kelpie_worker.sync.capturing import Candidate, Captured, Filling, Small, add_small, capture, read_small
from kelpie_worker.sync.lines import LineState, Pending
from kelpie_worker.sync.segments import Segment, Spool
from kelpie_worker.sync.threads import in_thread, run_bounded

_LARGE_AT_ONCE = 3
_BATCH_FILES = 256
_FIRST_BYTES = 8 * 1024 * 1024
"""The first pack is sent when it is so large: until something is sent the line does nothing."""

Read = tuple[Pending, Small]


class Stager:
    """Stages files of the attempt's lines.

    Args:
        spool: Where segments come from.
        folder: What the keys of a line's segments begin with.
        pack: Whether the content of a line's larger files is compressed where it pays.
    """

    def __init__(self, spool: Spool, folder: Callable[[LineState], str], pack: Callable[[LineState], bool]) -> None:
        self._spool, self._folder, self._pack = spool, folder, pack
        self._in_vain: set[Segment] = set()

    def take_in_vain(self) -> set[Segment]:
        """Segments that nothing will refer to, since their file did not hold still; told once."""
        in_vain, self._in_vain = self._in_vain, set()
        return in_vain

    async def stage(
        self,
        line: LineState,
        files: Sequence[Pending],
        streams: Set[Path] = frozenset(),
        appended: Set[Path] = frozenset(),
    ) -> list[Pending]:
        """Read files of one line, and begin to send what is new.

        Args:
            line: The line.
            files: What to read.
            streams: Files that only grow, which are taken with the length that they were seen with.
            appended: Those of them that can only be appended to.

        Returns:
            Those that did not hold still, or are not as they were seen.

        Raises:
            LocalFileError: One cannot be read.
            DiskFull: No room for copies.
            KelpieError: There is no room, and what should make it cannot be sent.
        """
        left: list[Pending] = []
        large = [file for file in files if file.stamp.size_bytes >= content.SMALL_BYTES or file.path in streams]
        small = [file for file in files if file.stamp.size_bytes < content.SMALL_BYTES and file.path not in streams]
        await run_bounded(large, partial(self._large, line, left, streams, appended), _LARGE_AT_ONCE)
        await self._all_small(line, small, left)
        return left

    async def _large(
        self, line: LineState, left: list[Pending], streams: Set[Path], appended: Set[Path], file: Pending
    ) -> None:
        filling = Filling(self._spool, line.address.bucket, self._folder(line), self._pack(line))
        try:
            upto = file.stamp if file.path in streams else None
            captured = await capture(file.path, line.candidate(file), filling, upto, appended=file.path in appended)
        except FileChanged:
            left.append(file)
            self._in_vain.update(filling.segments)
            return
        except BaseException:
            self._in_vain.update(filling.segments)
            raise
        line.stage(file, captured)
        if captured.stamp != file.stamp:
            left.append(file)

    async def _all_small(self, line: LineState, files: Iterable[Pending], left: list[Pending]) -> None:
        # Packed whatever the plain keys need: small files are sent to those anyway.
        filling, first = Filling(self._spool, line.address.bucket, self._folder(line), pack=True), True
        try:
            for batch in _batches(files):
                read = await in_thread(partial(_read_all, batch, left))
                await self._add(line, read, filling)
                if first and filling.open_bytes >= _FIRST_BYTES:
                    filling.seal()
                    first = False
        finally:
            # Sent also after an error: what was staged before counts as read, and refers to it.
            filling.seal()

    async def _add(self, line: LineState, read: list[Read], filling: Filling) -> None:
        candidates = [line.candidate(file) for file, _ in read]
        segment = await filling.room_for(sum(len(small.data) for _, small in read))
        for (file, _), captured in zip(
            read, await in_thread(partial(_add_all, read, candidates, segment)), strict=True
        ):
            line.stage(file, captured)


def _batches(files: Iterable[Pending]) -> Iterator[list[Pending]]:
    batch: list[Pending] = []
    size = 0
    for file in files:
        batch.append(file)
        size += file.stamp.size_bytes
        if size >= content.WINDOW_BYTES or len(batch) >= _BATCH_FILES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _read_all(batch: list[Pending], left: list[Pending]) -> list[Read]:
    read: list[Read] = []
    for file in batch:
        try:
            small = read_small(file.path)
        except FileChanged:
            left.append(file)
            continue
        read.append((file, small))
        if small.stamp != file.stamp:
            left.append(file)
    return read


def _add_all(read: list[Read], candidates: list[Candidate], segment: Segment) -> list[Captured]:
    found = []
    for (_, small), candidate in zip(read, candidates, strict=True):
        entry, added = add_small(small, candidate, segment, pack=True)
        segments, new_bytes = ((segment,), len(small.data)) if added else ((), 0)
        found.append(Captured(small.stamp, entry, segments, new_bytes, small.sure))
    return found
