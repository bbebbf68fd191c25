"""How files are put together from the segments of a commit: what to ask for, and where what arrives goes.

Extents that lie side by side in a segment come with one request; an extent that several places want comes once.

Memory: one extent (8 MiB, 32 MiB of files over 64 GiB), twice where it is packed, for each `Scatter` that is being fed.
Limits: knows neither the storage nor the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kelpie_celery.checkpoints import content
from kelpie_celery.checkpoints.manifest import Extent

_GAP_BYTES = 256 * 1024

Write = Callable[[Path, int, bytes | memoryview], None]
"""Writes bytes into a file that exists, from a position on."""


@dataclass(frozen=True)
class Piece:
    """An extent and every place that it goes to: a file, and the position in it."""

    extent: Extent
    places: list[tuple[Path, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """Extents of one segment that come with one request; ordered, with small gaps at most."""

    segment: str
    pieces: list[Piece]

    @property
    def start_byte(self) -> int:
        """Where in the segment it begins."""
        return self.pieces[0].extent.at

    @property
    def length_bytes(self) -> int:
        """How many bytes are asked for."""
        last = self.pieces[-1].extent
        return last.at + last.stored - self.start_byte


def runs(files: Iterable[tuple[Path, Sequence[Extent]]]) -> list[Run]:
    """What to ask for, segment by segment.

    Args:
        files: What is to be made, and of which extents.
    """
    by_segment: dict[str, dict[Extent, Piece]] = {}
    for path, extents in files:
        at = 0
        for extent in extents:
            pieces = by_segment.setdefault(extent.segment, {})
            pieces.setdefault(extent, Piece(extent)).places.append((path, at))
            at += extent.length
    return [run for segment, pieces in by_segment.items() for run in _cut(segment, list(pieces.values()))]


def _cut(segment: str, pieces: list[Piece]) -> Iterator[Run]:
    run: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: (piece.extent.at, piece.extent.stored)):
        end = run[-1].extent.at + run[-1].extent.stored if run else 0
        if run and not 0 <= piece.extent.at - end <= _GAP_BYTES:
            yield Run(segment, run)
            run = []
        run.append(piece)
    if run:
        yield Run(segment, run)


class Scatter:
    """Takes the bytes of a run as they arrive, and writes each extent where it belongs once it is whole, verified."""

    def __init__(self, run: Run, write: Write) -> None:
        self._pieces = iter(run.pieces)
        self._at = run.start_byte
        self._current: Piece | None = next(self._pieces)
        self._held = bytearray()
        self._write_at = write

    @property
    def is_complete(self) -> bool:
        """Whether every extent has arrived."""
        return self._current is None

    def take(self, data: memoryview) -> None:
        """The next bytes.

        Raises:
            Damaged: An extent is not what its digest says.
        """
        while len(data) and self._current is not None:
            extent = self._current.extent
            skipped = min(len(data), max(0, extent.at - self._at))
            data, self._at = data[skipped:], self._at + skipped
            wanted = extent.stored - len(self._held)
            self._held += data[:wanted]
            self._at += min(wanted, len(data))
            data = data[wanted:]
            if len(self._held) == extent.stored:
                self._write(self._current)
                self._held.clear()
                self._current = next(self._pieces, None)

    def _write(self, piece: Piece) -> None:
        extent = piece.extent
        raw = content.unpack(extent.codec, bytes(self._held), extent.length, extent.digest)
        for path, at in piece.places:
            self._write_at(path, at, raw)
