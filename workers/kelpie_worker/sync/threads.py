"""Blocking work off the event loop, and bounded parallel work on it, both safe to cancel.

The threads are our own, not the event loop's: a slow disk that keeps all of them busy must not hold up a heartbeat.

Limits: a thread cannot be interrupted, so blocking work is given in pieces of a fraction of a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_THREADS = 8


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Threads for all attempts of this process."""
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="kelpie-sync")


async def in_thread(function: Callable[[], T]) -> T:
    """Run a blocking function in a thread.

    When cancelled it leaves only after the function has ended: a caller may then close or delete the files that the
    function uses (a descriptor closed under a running thread may be another file's by the time it writes).
    """
    work = asyncio.get_running_loop().run_in_executor(_threads(), function)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            with contextlib.suppress(BaseException):
                await asyncio.shield(work)
        if not work.cancelled():
            work.exception()  # looked at, so that asyncio does not warn of it
        raise


async def run_bounded(items: Iterable[T], work: Callable[[T], Awaitable[None]], limit: int) -> None:
    """Do ``work`` on every item, in their order, ``limit`` at a time.

    Raises:
        Exception: What the first failed piece of work raised; the others are cancelled before.
    """
    queue = iter(items)

    async def worker() -> None:
        for item in queue:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(limit):
                group.create_task(worker())
    except BaseExceptionGroup as failed:
        raise first_error(failed) from None


def first_error(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first plain exception inside a group of groups."""
    error: BaseException = failed
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
