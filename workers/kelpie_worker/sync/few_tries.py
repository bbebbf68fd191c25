"""A few quick tries of one operation, before anybody hears that it failed.

Limits: some seconds in all; longer patience is the caller's (see ``retry``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from kelpie_celery.errors import StorageUnavailable
from kelpie_worker.sync.object_store import ObjectChanged, UploadGone

T = TypeVar("T")

TRIES = 4


async def few_tries(operation: Callable[[BaseException | None], Awaitable[T]]) -> T:
    """Try ``operation`` a few times; it is given what the try before ended with.

    Raises:
        StorageUnavailable: What the last try ended with.
        Exception: Whatever another try does not mend, at once.
    """
    try:
        return await operation(None)  # nearly always this is all; what follows costs about as much as a request
    except StorageUnavailable as error:
        before, first = error, [error]

    async def again() -> T:
        nonlocal before
        if first:
            raise first.pop()
        try:
            return await operation(before)
        except StorageUnavailable as error:
            before = error
            raise

    retrying = AsyncRetrying(
        retry=retry_if_exception(_worth_another_try), stop=stop_after_attempt(TRIES), reraise=True,
        wait=wait_random_exponential(multiplier=0.2, max=2.0), before_sleep=_ignore,
    )  # fmt: skip
    return await retrying(again)


def _worth_another_try(error: BaseException) -> bool:
    return isinstance(error, StorageUnavailable) and not isinstance(error, ObjectChanged | UploadGone)


def _ignore(_: RetryCallState) -> None:
    """The first tries are nobody's business."""
