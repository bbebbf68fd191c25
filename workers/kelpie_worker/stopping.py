"""How an attempt hears that it should stop, in the middle of whatever it awaits.

Limits: one asyncio loop; asks come from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from kelpie_celery.running import RunningJob, Stop

T = TypeVar("T")


class Stopped(Exception):
    """The attempt was asked to stop while it awaited something, which was given up."""

    def __init__(self, why: Stop) -> None:
        super().__init__(why)
        self.why = why


class StopWatch:
    """The asks of one attempt, as events of its loop."""

    def __init__(self, job: RunningJob) -> None:
        self._job = job
        self._loop = asyncio.get_running_loop()
        self._asked, self._canceled = asyncio.Event(), asyncio.Event()
        job.listen(self._from_any_thread)

    def _from_any_thread(self, why: Stop) -> None:
        # A closed loop means that the attempt is over and only its report is under way.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._set, why)

    def _set(self, why: Stop) -> None:
        if why is Stop.CANCEL:
            self._canceled.set()
        self._asked.set()

    @property
    def why(self) -> Stop | None:
        """Why it was asked to stop, if it was."""
        return self._job.stop

    async def asked(self) -> Stop:
        """Wait for the first ask."""
        await self._asked.wait()
        return self._job.stop or Stop.SHUTDOWN

    async def _asked_patiently(self, grace_s: float) -> Stop:
        """Wait for a cancel, or until ``grace_s`` after a shutdown was asked for."""
        await self._asked.wait()
        try:
            async with asyncio.timeout(grace_s):
                await self._canceled.wait()
        except TimeoutError:
            pass
        return self._job.stop or Stop.SHUTDOWN

    async def unless_stopped(self, work: Coroutine[Any, Any, T], *, shutdown_grace_s: float = 0.0) -> T:
        """Await ``work``, or give it up when asked to stop.

        Args:
            work: What to await; cancelled when given up.
            shutdown_grace_s: How long a shutdown may wait for it.

        Raises:
            Stopped: It was given up.
        """
        task = asyncio.ensure_future(work)
        ask = asyncio.ensure_future(self._asked_patiently(shutdown_grace_s))
        try:
            await asyncio.wait({task, ask}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise Stopped(ask.result())
        finally:
            await cancel_and_wait(task, ask)


async def cancel_and_wait(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they are gone; their errors are the caller's to have looked at."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
