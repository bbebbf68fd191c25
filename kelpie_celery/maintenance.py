"""Maintenance that any process may do, a bounded piece at a time: reap, promote, reconcile, expire, replay.

Workers do it for their own group, the control worker for all. Limits: ten entries a step and tick, so that a worker's
share of it stays small whatever the backlog.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kelpie_celery.clock import Clock, SystemClock
from kelpie_celery.errors import LedgerRefused, LedgerUnavailable
from kelpie_celery.ledger.types import Tick
from kelpie_celery.replay import UntrustedStep, announce_lost, replay

if TYPE_CHECKING:
    from kelpie_celery.app import KelpieApp

log = logging.getLogger(__name__)

JUMP_S = 5.0
"""Redis's clock and ours may part by this much between two ticks before leases are no longer judged by it."""

REPLAY_S = 5.0
"""After so long no further replay is begun in a tick, seconds: a worker's pulse, which ticks, must not look dead."""

ANNOUNCE_S = 5.0
"""After so long listeners are told of no further lost attempt in a tick, seconds; likewise."""


class Maintainer:
    """Ticks groups, and remembers what makes a tick unsafe to reap by: an outage, or a jump of Redis's clock."""

    def __init__(self, app: KelpieApp, hostname: str, clock: Clock | None = None) -> None:
        self._app = app
        self._hostname = hostname
        self._clock = clock or SystemClock()
        self._unsafe: set[str] = set()
        self._last: dict[str, tuple[float, float]] = {}

    def tick(self, group: str, *, limit: int = 10) -> Tick | None:
        """One round for a group; None when somebody else did it a moment ago.

        Raises:
            LedgerUnavailable: Redis is away; the next tick that gets through grants an amnesty.
        """
        ledger = self._app.ledger
        try:
            uptime_s, server_now = ledger.uptime_s(), ledger.server_time()
            fresh = group not in self._last
            if self._jumped(group, server_now):
                self._unsafe.add(group)
            tick = ledger.tick(group, uptime_s=uptime_s, saw_outage=group in self._unsafe, fresh=fresh, limit=limit)
        except LedgerUnavailable:
            self.note_outage(group)
            raise
        if tick is not None:
            # Said to the ledger; a tick that came too soon was not heard.
            self._unsafe.discard(group)
        self._last[group] = (server_now, self._clock.boottime())
        if tick:
            self._report(group, tick)
            self._announce(tick)
            self._replay(tick)
        return tick

    def note_outage(self, group: str) -> None:
        """Redis could not be reached: the next tick of this and of every other group says so."""
        self._unsafe |= {group, *self._last}

    def _jumped(self, group: str, server_now: float) -> bool:
        if group not in self._last:
            return False
        server_then, boot_then = self._last[group]
        return abs((server_now - server_then) - (self._clock.boottime() - boot_then)) > JUMP_S

    def _report(self, group: str, tick: Tick) -> None:
        if tick.reaped or tick.republished:
            log.info(
                "maintenance brought jobs back",
                extra={"action": "maintained", "container_group": group, "reaped": tick.reaped,
                       "republished": tick.republished, "promoted": tick.promoted},
            )  # fmt: skip

    def _announce(self, tick: Tick) -> None:
        began = self._clock.boottime()
        for job_id in tick.lost:
            if self._clock.boottime() - began > ANNOUNCE_S:
                return
            try:
                announce_lost(self._app, job_id)
            except Exception as e:
                # Only people look at events; the jobs themselves are in their queue again.
                log.info(
                    "listeners were not told of a lost attempt",
                    extra={"action": "announce_failed", "job_id": job_id, "error": type(e).__name__},
                )

    def _replay(self, tick: Tick) -> None:
        began = self._clock.boottime()
        for job_id in tick.outbox:
            if self._clock.boottime() - began > REPLAY_S:
                return  # the others are due again after their lease
            try:
                replay(self._app, job_id, self._hostname)
            except LedgerRefused as e:
                log.info(
                    "the replay is left to the control worker",
                    extra={"action": "replay_refused", "job_id": job_id, "error": str(e)},
                )
            except UntrustedStep as e:
                log.warning("a job's bookkeeping is refused", extra={"action": "replay_untrusted", "error": str(e)})
            except Exception:
                # It stays in the outbox and is due again after its lease; the other entries must not wait for it.
                log.exception(
                    "replay failed; it will be tried again",
                    extra={"action": "replay_failed", "job_id": job_id},
                )
