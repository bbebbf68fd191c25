"""The right to scale one group: one process has it at a time, for as long as it can prove it.

A key in the ledger with its holder's nonce and an expiry. Time is counted from before the call that took or renewed it,
and the right ends ``MARGIN_S`` before the key does, so that a request that was sent under it is over by then. Limits: a
process that freezes for longer than the margin between the check and the sending of a request may act late by one call.
"""

from __future__ import annotations

from contextlib import suppress

from redis.exceptions import LockError

from kelpie_celery.clock import Clock, Instant
from kelpie_celery.errors import KelpieError
from kelpie_celery.ledger.calls import mapped_errors
from kelpie_celery.ledger.fleet import Fleet

EXPIRES_S = 120.0
MARGIN_S = 40.0
"""Longer than one try of a call may take."""


class TurnLost(KelpieError):
    """Another process may scale the group by now; this one does nothing more about it."""


class Turn:
    """Take it with ``acquire``; give it back with ``release``."""

    def __init__(self, ledger: Fleet, group: str, clock: Clock) -> None:
        self._group, self._clock = group, clock
        self._lock = ledger.scaling_lock(group, EXPIRES_S)
        self._since: Instant | None = None

    def acquire(self) -> bool:
        """Whether it is ours now."""
        asked = Instant.now(self._clock)
        with mapped_errors(f"tell who scales group {self._group}"):
            if not self._lock.acquire():
                return False
        self._since = asked
        return True

    def check(self) -> None:
        """Make sure of it before something is changed; it is renewed when half of it is over.

        Raises:
            TurnLost: It may be another one's.
            LedgerUnavailable: Redis is away.
        """
        if self._since is None:
            raise TurnLost(f"group {self._group} is not this process's to scale")
        if self._since.elapsed_s(self._clock) > (EXPIRES_S - MARGIN_S) / 2:
            self._renew()

    def _renew(self) -> None:
        asked = Instant.now(self._clock)
        with mapped_errors(f"renew who scales group {self._group}"):
            try:
                self._lock.reacquire()
            except LockError as e:
                self._since = None
                raise TurnLost(f"another process scales group {self._group} by now: this one was too slow") from e
        self._since = asked

    def release(self) -> None:
        """Give it back, if it is still ours."""
        if self._since is None:
            return
        self._since = None
        # One that has run out may be another one's.
        with mapped_errors(f"give back group {self._group}"), suppress(LockError):
            self._lock.release()
