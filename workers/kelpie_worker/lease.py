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
from kelpie_celery.ledger.types import FencingToken, NewOutput, Renewal
from kelpie_celery.lifecycle import Phase
from kelpie_celery.meters import Renewed

log = logging.getLogger(__name__)

LAUNCH_S = 2.0
"""How long a command's start waits for the ledger to hear of it, seconds."""


class Renewer(Protocol):
    """The part of the ledger that a lease needs."""

    def renew(
        self, token: FencingToken, phase: Phase, progress: str = "", *, count: bool = True, transfer: str = "",
        output: NewOutput | None = None,
    ) -> Renewal:  # fmt: skip
        """Renew, or raise ``LeaseLost`` or ``LedgerUnavailable``."""


class News(Protocol):
    """What the command wrote, as far as the ledger is to hear of it."""

    def news(self) -> NewOutput | None:
        """What is to be told now."""

    def told(self, news: NewOutput) -> None:
        """The ledger has heard of it."""


class _Silence:
    """Nothing was written."""

    def news(self) -> NewOutput | None:
        return None

    def told(self, news: NewOutput) -> None:
        raise AssertionError(news)


class LedgerOutOfReach(Exception):
    """Redis gave no answer for so long that the attempt stops computing (``blind_s``)."""


class Lease:
    """A lease and its trust window; serves the storage side as its fence."""

    def __init__(
        self, token: FencingToken, ledger: Renewer, *, lease_s: float, margin_s: float, blind_s: float,
        heartbeat_s: float, granted: Instant, clock: Clock, on_cancel: Callable[[], None],
        on_news: Callable[[Phase, int], None] = lambda _phase, _beats: None,
        on_renewal: Callable[[Renewed, float], None] = lambda _result, _seconds: None,
        output: News | None = None,
    ) -> None:  # fmt: skip
        self.token = token
        self._output: News = output or _Silence()
        self.phase = Phase.RESTORING
        self._ledger, self._clock, self._on_cancel = ledger, clock, on_cancel
        self._on_news, self._on_renewal, self._beats = on_news, on_renewal, 0
        self._lease_s, self._margin_s, self._blind_s, self._heartbeat_s = (
            lease_s,
            margin_s,
            blind_s,
            heartbeat_s,
        )
        self._renewed = self._counted = granted
        self._progress = self._transfer = ""
        self._lost = False
        self._hurry = asyncio.Event()
        self._news = asyncio.Condition()
        self._turn = asyncio.Lock()

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
        self._on_news(phase, self._beats)
        self._hurry.set()

    async def launch(self) -> None:
        """Tell the ledger that the command starts now, before it does: it may end this worker at once.

        A death that the ledger takes for one before the start would never count towards poison. A ledger that is away
        holds the start up for ``LAUNCH_S`` at most.

        Raises:
            LeaseLost: Another attempt owns the job.
            LedgerOutOfReach: No answer for ``blind_s`` past the lease.
        """
        self.enter(Phase.EXECUTING)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAUNCH_S):
                await self._renew()

    def report(self, progress: str) -> None:
        """Note the job's progress (JSON); the ledger hears of it with the next heartbeat, which it brings forward."""
        self._progress = progress
        self._hurry.set()

    def report_transfer(self, transfer: str) -> None:
        """Note how a long transfer goes (JSON); the ledger hears of it likewise."""
        self._transfer = transfer
        self._hurry.set()

    def report_output(self) -> None:
        """There is output that is to be told: bring the next heartbeat forward."""
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
        # One at a time: an older one that arrives later would tell the ledger of the phase before.
        async with self._turn:
            return await self._renew_now()

    async def _renew_now(self) -> bool:
        output = self._output.news()
        started, progress, transfer = Instant.now(self._clock), self._progress, self._transfer
        count = self._counted.elapsed_s(self._clock) >= self._heartbeat_s
        self._hurry.clear()
        try:
            renewal = await asyncio.to_thread(
                self._ledger.renew, self.token, self.phase, progress, count=count, transfer=transfer, output=output
            )
        except LeaseLost:
            self._count("lost", started)
            self._lost = True
            await self._tell()
            raise
        except LedgerUnavailable as e:
            self._count("failed", started)
            return self._missed(e)
        self._count("ok", started)
        self._renewed = started
        if count:
            self._counted = started
            self._beats += 1
            self._on_news(self.phase, self._beats)
        if self._progress == progress:
            self._progress = ""
        if self._transfer == transfer:
            self._transfer = ""
        if output:
            self._output.told(output)
        await self._tell()
        if renewal.cancel:
            self._on_cancel()
        return True

    def _count(self, result: Renewed, started: Instant) -> None:
        self._on_renewal(result, self._clock.boottime() - started.boot)

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
