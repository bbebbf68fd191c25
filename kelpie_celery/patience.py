"""Waiting for Redis to come back, where giving up would lose or repeat something.

Limits: only for calls that may be made twice (see ``kelpie_celery.ledger.ledger``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from kombu.exceptions import OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_never, wait_random_exponential
from tenacity.stop import stop_base

from kelpie_celery.errors import LedgerRefused, LedgerUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

TRANSIENT = (LedgerUnavailable, OperationalError, RedisConnectionError, RedisTimeoutError)
"""What Redis being away looks like at each of the layers above it."""


class _StopWhen(stop_base):
    def __init__(self, condition: Callable[[], bool]) -> None:
        self._condition = condition

    def __call__(self, retry_state: RetryCallState) -> bool:  # noqa: ARG002 - tenacity's signature
        return self._condition()


def _say(state: RetryCallState) -> None:
    # The first repeats are noise; a user who watches an outage wants a line now and then.
    if state.attempt_number in (1, 5) or state.attempt_number % 20 == 0:
        error = state.outcome.exception() if state.outcome else None
        told = {"tries": state.attempt_number, "error": str(error)}
        if isinstance(error, LedgerRefused):
            log.error(
                "Redis refuses what this process has to do; trying again until its user may",
                extra={"action": "ledger_refuses", **told},
            )
        else:
            log.warning("Redis is away; trying again", extra={"action": "ledger_away", **told})


def until_the_ledger_answers(
    call: Callable[[], T], *, give_up: Callable[[], bool] | None = None, take_no: bool = False
) -> T:
    """Call until Redis answers, with pauses of up to 2 s and jitter.

    Args:
        call: May be made more than once.
        give_up: Asked after each try; when it says yes the last error is raised.
        take_no: Raise ``LedgerRefused`` at once: somebody else may be allowed what this process is not.
    """

    def may_pass(error: BaseException) -> bool:
        return isinstance(error, TRANSIENT) and not (take_no and isinstance(error, LedgerRefused))

    retrying = Retrying(
        retry=retry_if_exception(may_pass),
        wait=wait_random_exponential(multiplier=0.1, max=2),
        stop=_StopWhen(give_up) if give_up else stop_never,
        before_sleep=_say,
        reraise=True,
    )
    return retrying(call)
