"""The lease of one attempt, as its holder may trust it, and the heartbeats that renew it.

The trust window is counted from the *start* of the last successful renewal (the ledger counted from some moment after
it), by whichever of CLOCK_BOOTTIME and the wall clock moved further (a suspended machine, a clock set forward), less
a margin. Past it the attempt is muted: the command computes on, nothing is made visible. It ends when the ledger says
that another attempt owns the job, or after ``blind_s`` without an answer.

Limits: one asyncio loop; the fence that it gives to the storage side is checked there before and while sending.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Protocol

from kelpie_celery.clock import Clock, Instant
from kelpie_celery.errors import LeaseLost, LedgerUnavailable
from kelpie_celery.ledger.types import FencingToken, Renewal
from kelpie_celery.lifecycle import Phase

log = logging.getLogger(__name__)


class Renewer(Protocol):
    """The part of the ledger that a lease needs."""

    def renew(self, token: FencingToken, phase: Phase, progress: str = "", *, count: bool = True) -> Renewal:
        """Renew, or raise ``LeaseLost`` or ``LedgerUnavailable``."""


class LedgerOutOfReach(Exception):
    """Redis gave no answer for so long that the attempt stops computing (``blind_s``)."""


class Lease:
    """A lease and its trust window; serves the storage side as its fence."""

    def __init__(
        self, token: FencingToken, ledger: Renewer, *, lease_s: float, margin_s: float, blind_s: float,
        heartbeat_s: float, granted: Instant, clock: Clock, on_cancel: Callable[[], None],
    ) -> None:  # fmt: skip
        self.token = token
        self.phase = Phase.RESTORING
        self._ledger, self._clock, self._on_cancel = ledger, clock, on_cancel
        self._lease_s, self._margin_s, self._blind_s, self._heartbeat_s = (
            lease_s,
            margin_s,
            blind_s,
            heartbeat_s,
        )
        self._renewed = self._counted = granted
        self._progress = ""
        self._lost = False
        self._hurry = asyncio.Event()
        self._news = asyncio.Condition()

    # -- the fence ------------------------------------------------------------------------------------------------

    @property
    def window_s(self) -> float:
        """How long the trust window is, in seconds."""
        return self._lease_s - self._margin_s

    def remaining_s(self) -> float:
        """Seconds of trust left; 0 or less means muted."""
        if self._lost:
            return 0.0
        return self.window_s - self._renewed.elapsed_s(self._clock)

    async def trusted(self, at_least_s: float = 2.0) -> float:
        """Wait until that much trust is left, or half a window where it asks for more.

        Returns:
            Seconds of trust left.

        Raises:
            LeaseLost: The attempt lost its job.
        """
        wanted = min(at_least_s, self.window_s / 2)
        while True:
            if self._lost:
                raise LeaseLost(f"attempt {self.token.attempt} of job {self.token.job_id} lost its lease")
            remaining = self.remaining_s()
            if remaining >= wanted:
                return remaining
            self._hurry.set()
            async with self._news:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), 1.0)

    # -- heartbeats -----------------------------------------------------------------------------------------------

    def enter(self, phase: Phase) -> None:
        """Note what the attempt does now; the ledger hears of it at once."""
        self.phase = phase
        self._hurry.set()

    def report(self, progress: str) -> None:
        """Note the job's progress (JSON); the ledger hears of it with the next heartbeat, which it brings forward."""
        self._progress = progress
        self._hurry.set()

    async def keep(self) -> None:
        """Renew until cancelled.

        Raises:
            LeaseLost: Another attempt owns the job, or it has ended.
            LedgerOutOfReach: No answer for ``blind_s`` past the lease.
        """
        every_s = min(self._heartbeat_s, self._lease_s / 3)
        least_pause_s = min(2.0, self._lease_s / 10)
        while True:
            if not await self._renew():
                # Whoever waits for trust hurries us on; a Redis that comes back must not meet a storm.
                await asyncio.sleep(min(1.0, self._lease_s / 10))
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), every_s)
            if self._hurry.is_set() and self.remaining_s() > self.window_s / 2:
                # Reports may come in bursts; trust that runs low may not wait.
                await asyncio.sleep(least_pause_s)

    async def _renew(self) -> bool:
        started, progress = Instant.now(self._clock), self._progress
        count = self._counted.elapsed_s(self._clock) >= self._heartbeat_s
        self._hurry.clear()
        try:
            renewal = await asyncio.to_thread(self._ledger.renew, self.token, self.phase, progress, count=count)
        except LeaseLost:
            self._lost = True
            await self._tell()
            raise
        except LedgerUnavailable as e:
            return self._missed(e)
        self._renewed = started
        if count:
            self._counted = started
        if self._progress == progress:
            self._progress = ""
        await self._tell()
        if renewal.cancel:
            self._on_cancel()
        return True

    def _missed(self, error: LedgerUnavailable) -> bool:
        away_s = self._renewed.elapsed_s(self._clock)
        log.warning(
            "heartbeat missed",
            extra={"action": "heartbeat_missed", "job_id": self.token.job_id, "attempt": self.token.attempt,
                   "away_s": round(away_s, 1), "muted": self.remaining_s() <= 0, "error": str(error)},
        )  # fmt: skip
        if away_s > self._lease_s + self._blind_s:
            raise LedgerOutOfReach(f"Redis gave no answer for {away_s:.0f} s")
        return False

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()
