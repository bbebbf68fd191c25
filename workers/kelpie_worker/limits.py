"""The time limits of one attempt: ``timeout``, ``total_timeout``, ``stall_timeout``.

Limits: checked once a second, so an attempt may run over by that much.
"""

from __future__ import annotations

import asyncio

from kelpie_celery.clock import Clock
from kelpie_celery.definition import JobDefinition
from kelpie_celery.ledger.types import Ending
from kelpie_celery.lifecycle import Reason
from kelpie_worker.endings import failure

_LOOK_EVERY_S = 1.0


class Limits:
    """Watches the time that a command takes."""

    def __init__(self, definition: JobDefinition, used_before_s: float, delay_s: float, clock: Clock) -> None:
        self._definition = definition
        self._used_before_s, self._delay_s, self._clock = used_before_s, delay_s, clock
        self._launched = self._active = clock.boottime()

    def launched(self) -> None:
        """The command starts now."""
        self._launched = self._active = self._clock.boottime()

    def sign_of_life(self) -> None:
        """An output line, a report or a commit."""
        self._active = self._clock.boottime()

    def check(self) -> Ending | None:
        """The failure that a limit means now, if one is exceeded."""
        d, now = self._definition, self._clock.boottime()
        ran_s = now - self._launched
        if d.total_timeout is not None and self._used_before_s + ran_s > d.total_timeout:
            text = f"the job took longer than its total_timeout of {d.total_timeout:g} s, all attempts together"
            return failure(Reason.TOTAL_TIMEOUT, text, 0, final=True)
        if d.timeout is not None and ran_s > d.timeout:
            return failure(Reason.TIMEOUT, f"the attempt ran longer than its timeout of {d.timeout:g} s", self._delay_s)
        if d.stall_timeout is not None and now - self._active > d.stall_timeout:
            text = f"no output, report or checkpoint for the stall_timeout of {d.stall_timeout:g} s"
            return failure(Reason.STALLED, text, self._delay_s)
        return None

    async def exceeded(self) -> Ending:
        """Wait until a limit is exceeded."""
        while (ending := self.check()) is None:
            await asyncio.sleep(_LOOK_EVERY_S)
        return ending
