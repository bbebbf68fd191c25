"""When files have settled: how long nothing has changed, as far as regular looks show.

Limits: a change is dated by the look that saw it, so quiet is counted a little too short never, too long up to a poll.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kelpie_worker.sync.known import LocalFile
from kelpie_worker.sync.plan import Placed
from kelpie_worker.sync.snapshot import Snapshot, Stamp


class Settling:
    """Remembers since when each file, and each directory, is as it is. Times are the event loop's, in seconds."""

    def __init__(self) -> None:
        self._files: dict[Path, dict[str, tuple[Stamp, float]]] = {}
        self._seen: dict[Path, Snapshot] = {}
        self._changed_at: dict[Path, float] = {}

    def observe(self, snapshots: Mapping[Path, Snapshot], now_s: float) -> None:
        """Take note of a look."""
        for directory, snapshot in snapshots.items():
            if self._seen.get(directory) == snapshot:
                continue  # the usual case, and much the cheapest way to see it
            before = self._files.get(directory)
            self._files[directory] = {
                relative: self._since(before, relative, stamp, now_s) for relative, stamp in snapshot.files.items()
            }
            self._seen[directory] = snapshot
            self._changed_at[directory] = now_s

    @staticmethod
    def _since(
        before: Mapping[str, tuple[Stamp, float]] | None, relative: str, stamp: Stamp, now_s: float
    ) -> tuple[Stamp, float]:
        seen = before.get(relative) if before else None
        return seen if seen and seen[0] == stamp else (stamp, now_s)

    def quiet_s(self, blocks: Sequence[Placed], now_s: float) -> float:
        """How long nothing in these blocks' directories has changed."""
        return min((now_s - self._changed_at.get(block.path, now_s) for block in blocks), default=0.0)

    def settled_s(self, file: LocalFile, now_s: float) -> float:
        """How long one file has not changed."""
        seen = self._files.get(file.block.path, {}).get(file.relative)
        return now_s - seen[1] if seen else 0.0
