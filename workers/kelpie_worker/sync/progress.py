"""Progress of a transfer: counts bytes, and says how it goes every ten seconds.

Limits: bytes are counted as they are handed to or taken from the network, so a part that is sent again counts again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)

LOG_EVERY_S = 10.0


@dataclass(frozen=True)
class Progress:
    """Where a transfer stands.

    Attributes:
        stage: ``restore``, ``commit`` or ``outputs``.
        done_bytes: Moved so far.
        total_bytes: To be moved in all; 0 when it is not known.
        rate_bytes_s: Mean rate since the last report.
    """

    stage: str
    done_bytes: int
    total_bytes: int
    rate_bytes_s: float


OnProgress = Callable[[Progress], None]


class Meter:
    """Counts the bytes of one transfer, and those of many: a meter may pass its bytes on to a parent."""

    def __init__(self, stage: str, *, total_bytes: int = 0, parent: Meter | None = None) -> None:
        self.stage, self.total_bytes = stage, total_bytes
        self.done_bytes = 0
        self._parent = parent

    def add(self, count: int) -> None:
        """Note ``count`` more bytes."""
        self.done_bytes += count
        if self._parent:
            self._parent.add(count)

    @contextlib.asynccontextmanager
    async def reporting(self, on_progress: OnProgress | None, every_s: float = LOG_EVERY_S) -> AsyncIterator[None]:
        """Report while the body runs: to the log, and to ``on_progress``."""
        reporter = asyncio.create_task(self._report(on_progress, every_s, self.done_bytes))
        try:
            yield
        finally:
            reporter.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reporter

    async def _report(self, on_progress: OnProgress | None, every_s: float, before: int) -> None:
        while True:
            await asyncio.sleep(every_s)
            report = Progress(self.stage, self.done_bytes, self.total_bytes, (self.done_bytes - before) / every_s)
            before = self.done_bytes
            log.info(
                "transfer goes on",
                extra={"action": "sync_progress", "stage": report.stage, "done_bytes": report.done_bytes,
                       "total_bytes": report.total_bytes, "rate_bytes_s": round(report.rate_bytes_s)},
            )  # fmt: skip
            if on_progress:
                on_progress(report)
