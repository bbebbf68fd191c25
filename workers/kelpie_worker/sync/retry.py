"""Patience with a storage that is away: waits, with backoff and jitter, as long as there is hope.

Patience is counted from the last sign of life, not from the start, so that a transfer of ten hours over a slow line is
not given up after five minutes. Limits: only ``StorageUnavailable`` is waited for; everything else is raised at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential
from tenacity.stop import stop_base

from kelpie_celery.errors import StorageUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0


class Patience(stop_base):
    """How long operations on the storage are tried again; one object for all operations of one transfer.

    Args:
        give_up_s: Seconds without any progress after which the last error is raised.
        action: The ``action`` of the log lines.
    """

    def __init__(self, give_up_s: float, action: str) -> None:
        self._give_up_s, self._action = give_up_s, action
        self._alive_at: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self) -> None:
        """Count from now on, unless it was begun before."""
        if self._alive_at is None:
            self.sign_of_life()

    def sign_of_life(self) -> None:
        """Something got through. From any thread, once `begin` or `persist` has been called."""
        self._loop = self._loop or asyncio.get_running_loop()
        self._alive_at = self._loop.time()

    def __call__(self, retry_state: RetryCallState) -> bool:  # noqa: ARG002 -- tenacity's signature
        """Whether patience has run out; tenacity asks after each failure."""
        self.begin()
        silent_s = asyncio.get_running_loop().time() - (self._alive_at or 0.0)
        return silent_s >= self._give_up_s

    async def persist(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Do ``operation`` until it succeeds.

        Raises:
            StorageUnavailable: The last one, when nothing got through for ``give_up_s``.
        """
        self.begin()
        try:
            result = await operation()  # nearly always this is all; what follows takes as long as a small request
        except StorageUnavailable as error:
            return await self._persist(operation, error)
        self.sign_of_life()
        return result

    async def _persist(self, operation: Callable[[], Awaitable[T]], failed: StorageUnavailable) -> T:
        first = [failed]
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(StorageUnavailable),
            wait=wait_random_exponential(multiplier=FIRST_PAUSE_S * 2, min=FIRST_PAUSE_S, max=LONGEST_PAUSE_S),
            stop=self,
            before_sleep=self._say,
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                if first:
                    raise first.pop()
                result = await operation()
                self.sign_of_life()
        return result

    def _say(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.warning(
            "the storage is away; trying again",
            extra={"action": self._action, "tries": state.attempt_number, "error": str(error),
                   "pause_s": round(state.upcoming_sleep, 1)},
        )  # fmt: skip
