"""Blocking work off the event loop, and bounded parallel work on it, both safe to cancel.

The threads are our own, not the event loop's: a slow disk that keeps all of them busy must not hold up a heartbeat.
Transfers have threads of theirs (see ``wire``), so that neither a slow disk nor a slow line keeps the other waiting.

Limits: a thread cannot be interrupted, so blocking work is given in pieces of a fraction of a second, or with a way to
stop it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_THREADS = 8
_IDLE_THREADS = 2
_NICENESS = 10
"""Not more: such a thread holds the interpreter's lock now and then, and must get on with it when it does."""
BUFFER_BYTES = 1024 * 1024 + 16 * 1024
"""What is moved at once, with the head of an answer before it."""
_local = threading.local()


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Threads for all attempts of this process."""
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="kelpie-sync")


@functools.cache
def idle_threads() -> ThreadPoolExecutor:
    """Threads for work that can wait: they leave the CPU to the job's command."""
    return ThreadPoolExecutor(_IDLE_THREADS, thread_name_prefix="kelpie-idle", initializer=_step_back)


def _step_back() -> None:
    if sys.platform == "linux":  # elsewhere priorities are those of whole processes
        with contextlib.suppress(OSError):
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)


def buffer() -> memoryview:
    """This thread's buffer of `BUFFER_BYTES`, for whatever it does at the moment: one use at a time."""
    view: memoryview | None = getattr(_local, "buffer", None)
    if view is None:
        view = _local.buffer = memoryview(bytearray(BUFFER_BYTES))
    return view


async def in_thread(
    function: Callable[[], T], threads: ThreadPoolExecutor | None = None, stop: Callable[[], bool] | None = None
) -> T:
    """Run a blocking function in a thread, with the context of the caller.

    When cancelled it leaves only after the function has ended: a caller may then close or delete the files that the
    function uses (a descriptor closed under a running thread may be another file's by the time it writes).

    Args:
        function: What to run.
        threads: Which run it; by default those of this module.
        stop: Called when cancelled: makes the function end soon, and says whether it need be waited for.
    """
    call = _Call[T](asyncio.get_running_loop())
    (threads or _threads()).submit(call.work, contextvars.copy_context(), function)
    try:
        return await call.waiter
    except asyncio.CancelledError:
        if stop is None or stop():
            await call.ended()
        raise


def soon_in_thread(function: Callable[[], None]) -> None:
    """Have a blocking function run in a thread, soon; how it ends is its own business. From any thread."""
    _threads().submit(function)


class _Call(Generic[T]):
    """A function that runs in a thread for a coroutine. `asyncio.wrap_future` and a shield do it at twice the price."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.waiter: asyncio.Future[T] = loop.create_future()
        self._finished = False

    def work(self, context: contextvars.Context, function: Callable[[], T]) -> None:
        """In the thread: run the function, and tell the loop how it ended."""
        try:
            tell = partial(self._tell, context.run(function), None)
        except BaseException as error:
            tell = partial(self._tell, None, error)
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waited
            self._loop.call_soon_threadsafe(tell)

    def _tell(self, result: Any, error: BaseException | None) -> None:
        self._finished = True
        if self.waiter.done():
            return
        if error is None:
            self.waiter.set_result(result)
        else:
            self.waiter.set_exception(error)

    async def ended(self) -> None:
        """Wait until the function has ended, however often that is cancelled; how it ended does not matter any more."""
        while not self._finished:
            self.waiter = self._loop.create_future()
            with contextlib.suppress(BaseException):
                await self.waiter


async def run_bounded(items: Iterable[T], work: Callable[[T], Awaitable[None]], limit: int) -> None:
    """Do ``work`` on every item, in their order, ``limit`` at a time.

    Raises:
        Exception: What the first failed piece of work raised; the others are cancelled before.
    """
    queue = iter(items)

    async def worker() -> None:
        for item in queue:
            await work(item)

    async def all_workers() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(limit):
                group.create_task(worker())

    await as_one(all_workers())


async def as_one(grouped: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that has task groups, in a task of its own.

    A group cancels the task that waits for it when one of its own fails, and until Python 3.13 leaves that noted there
    for good. Whoever goes on in that task, as a retry does, would be taken for cancelled by its next `asyncio.timeout`
    that expires (in Python 3.11.2, which Debian 12 has).

    Raises:
        Exception: What failed first, out of its groups.
    """
    try:
        await asyncio.ensure_future(grouped)
    except BaseExceptionGroup as failed:
        raise first_error(failed) from None


def first_error(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first plain exception inside a group of groups."""
    error: BaseException = failed
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
