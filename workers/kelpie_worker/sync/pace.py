"""How many transfer threads pay, found out as they work.

Where the network is slow they wait for it most of the time, and many pay. Where it is not, one or two have all of the
interpreter that there is; more of them only hand its lock to and fro, which doubles what a file costs (2,000 files of
64 KiB to a storage on loopback: 0.44 s of CPU with one thread, 1.1 s with sixteen). So one begins, and their number
doubles as long as those that are there leave time: up to four where they leave 40 % of a core, beyond that where they
leave two thirds.

Limits: Linux; elsewhere a thread's clock cannot be read by another, and all begin at once. What threads do without the
interpreter's lock (digests, TLS) counts as well: on a line of several Gbit/s, files near 1 MiB are moved by fewer of
them than would pay.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from kelpie_worker.sync.threads import as_one

LOOK_S = 0.025
ENOUGH, ENOUGH_FOR_MORE = 0.6, 0.35
"""Of a core, used by the threads of one transfer; the second when there are `FEW` of them already."""
FEW = 4


class Pace:
    """The CPU time that the threads of one transfer use."""

    def __init__(self) -> None:
        self._ended_s = 0.0
        self._at_work: dict[int, tuple[int, float]] = {}
        self._lock = threading.Lock()

    def begin(self) -> None:
        """This thread works for the transfer from now on."""
        if _TELLS:
            with self._lock:
                self._at_work[threading.get_ident()] = _own_clock(), time.thread_time()

    def end(self) -> None:
        """It does not any more."""
        if _TELLS:
            with self._lock:
                _, began_s = self._at_work.pop(threading.get_ident())
                self._ended_s += time.thread_time() - began_s

    @property
    def used_s(self) -> float:
        """CPU time of all of them together so far, seconds."""
        with self._lock:
            return self._ended_s + sum(time.clock_gettime(clock) - began_s for clock, began_s in self._at_work.values())

    async def run(self, stream: Callable[[], Awaitable[None]], most: int) -> None:
        """Run as many streams at once as pay, until there is nothing left for them.

        Args:
            stream: Works through whatever all of them share, and ends when nothing is left of it.
            most: How many at once, at most.

        Raises:
            Exception: What a stream raised first; the others are cancelled before.
        """
        over = asyncio.Event()

        async def one() -> None:
            await stream()
            over.set()

        async def all_streams() -> None:
            async with asyncio.TaskGroup() as group:
                running = 0
                async for number in self.numbers(most, over):
                    for _ in range(running, number):
                        group.create_task(one())
                    running = number

        await as_one(all_streams())

    async def numbers(self, most: int, over: asyncio.Event) -> AsyncIterator[int]:
        """How many threads there are to be, each time that more of them pay.

        Args:
            most: How many there may be.
            over: Set when there is nothing left to begin.
        """
        number = 1 if _TELLS else most
        yield number
        while number < most:
            since_s, used_s = asyncio.get_running_loop().time(), self.used_s
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await over.wait()
                return
            enough = ENOUGH if number < FEW else ENOUGH_FOR_MORE
            if self.used_s - used_s < enough * (asyncio.get_running_loop().time() - since_s):
                number = min(most, number * 2)
                yield number


_TELLS = hasattr(time, "pthread_getcpuclockid")


def _own_clock() -> int:
    return time.pthread_getcpuclockid(threading.get_ident())
