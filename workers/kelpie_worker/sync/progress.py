"""Progress of a transfer: counts bytes, and says how it goes every ten seconds.

Limits: bytes are counted as they are handed to or taken from the network, so a part that is sent again counts again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

LOG_EVERY_S = 10.0


@dataclass(frozen=True)
class Progress:
    """Where a transfer stands.

    Attributes:
        stage: ``restore``, ``commit``, ``plain`` or ``outputs``.
        done_bytes: Moved so far.
        total_bytes: To be moved in all; 0 when it is not known.
        rate_bytes_s: Mean rate since the last report.
        over: Whether the transfer has ended.
    """

    stage: str
    done_bytes: int
    total_bytes: int
    rate_bytes_s: float
    over: bool = False

    @property
    def left_s(self) -> float | None:
        """How long it will take at this rate, seconds; None when that cannot be told."""
        if not self.total_bytes or self.rate_bytes_s <= 0:
            return None
        return max(0.0, self.total_bytes - self.done_bytes) / self.rate_bytes_s

    def facts(self) -> dict[str, Any]:
        """As it is recorded."""
        left_s = self.left_s
        return {
            "stage": self.stage, "done_bytes": self.done_bytes, "total_bytes": self.total_bytes,
            "rate_bytes_s": round(self.rate_bytes_s), "left_s": None if left_s is None else round(left_s, 1),
        }  # fmt: skip


OnProgress = Callable[[Progress], None]


class Meter:
    """Counts the bytes of transfers, one after the other; a meter may pass its bytes on to a parent.

    Bytes may be added from any thread. What is reported of a transfer counts from where its `reporting` began.
    """

    def __init__(self, stage: str, *, total_bytes: int = 0, parent: Meter | None = None) -> None:
        self.stage, self.total_bytes = stage, total_bytes
        self.done_bytes = 0
        self._parent = parent
        self._told = False
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Note ``count`` more bytes."""
        with self._lock:
            self.done_bytes += count
        if self._parent:
            self._parent.add(count)

    def expect(self, left_bytes: int | None) -> None:
        """So many bytes are still to be moved; None: nobody knows (any more)."""
        with self._lock:
            self.total_bytes = 0 if left_bytes is None else self.done_bytes + left_bytes

    @contextlib.asynccontextmanager
    async def reporting(self, on_progress: OnProgress | None, every_s: float | None = None) -> AsyncIterator[None]:
        """Report while the body runs: to the log, and to ``on_progress``, which hears of the end as well.

        Args:
            on_progress: Hears of a transfer that takes longer than ``every_s``.
            every_s: How often, seconds; by default `LOG_EVERY_S`.
        """
        self._told = False
        began_bytes = self.done_bytes
        reporter = asyncio.create_task(self._report(on_progress, every_s or LOG_EVERY_S, began_bytes))
        try:
            yield
        finally:
            reporter.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reporter
            if self._told and on_progress:
                on_progress(self._progress(began_bytes, 0.0, over=True))

    def _progress(self, began_bytes: int, rate_bytes_s: float, *, over: bool = False) -> Progress:
        done_bytes, total_bytes = self.done_bytes - began_bytes, self.total_bytes - began_bytes
        # What was sent twice may make it more than was expected.
        total_bytes = max(total_bytes, done_bytes) if total_bytes > 0 else 0
        return Progress(self.stage, done_bytes, total_bytes, rate_bytes_s, over)

    async def _report(self, on_progress: OnProgress | None, every_s: float, began_bytes: int) -> None:
        before = began_bytes
        while True:
            await asyncio.sleep(every_s)
            rate_bytes_s = (self.done_bytes - before) / every_s
            before = self.done_bytes
            report = self._progress(began_bytes, rate_bytes_s)
            log.info("transfer goes on", extra={"action": "sync_progress", **report.facts()})
            self._told = True
            if on_progress:
                on_progress(report)
