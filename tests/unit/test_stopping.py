"""How an attempt hears that it should stop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from kelpie_celery.clock import Instant
from kelpie_celery.ledger.types import FencingToken
from kelpie_celery.running import RunningJob, RunningJobs, Stop
from kelpie_worker.stopping import Stopped, StopWatch


def job() -> RunningJob:
    return RunningJob(FencingToken("job", 1, "nonce"), Instant(0, 0), lambda: None)


async def forever() -> None:
    await asyncio.Event().wait()


async def test_work_that_ends_first_is_returned() -> None:
    async def work() -> int:
        return 7

    assert await StopWatch(job()).unless_stopped(work()) == 7


async def test_an_error_of_the_work_comes_through() -> None:
    async def work() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await StopWatch(job()).unless_stopped(work())


@pytest.mark.parametrize("why", list(Stop))
async def test_an_ask_from_another_thread_gives_the_work_up(why: Stop) -> None:
    running = job()
    watch = StopWatch(running)
    thread = threading.Thread(target=running.ask_to_stop, args=(why,))
    thread.start()
    with pytest.raises(Stopped) as caught:
        await asyncio.wait_for(watch.unless_stopped(forever()), 5)
    assert caught.value.why is why
    thread.join()


async def test_an_ask_before_the_watch_is_not_missed() -> None:
    running = job()
    running.ask_to_stop(Stop.SHUTDOWN)
    assert await asyncio.wait_for(StopWatch(running).asked(), 5) is Stop.SHUTDOWN


async def test_a_shutdown_waits_for_the_work_and_a_cancel_does_not() -> None:
    running = job()
    watch = StopWatch(running)
    work = asyncio.create_task(watch.unless_stopped(forever(), shutdown_grace_s=60))
    running.ask_to_stop(Stop.SHUTDOWN)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(work), 0.1)
    running.ask_to_stop(Stop.CANCEL)
    with pytest.raises(Stopped) as caught:
        await asyncio.wait_for(work, 5)
    assert caught.value.why is Stop.CANCEL


def test_an_attempt_whose_loop_has_closed_keeps_no_other_from_hearing() -> None:
    over, alive = job(), RunningJob(FencingToken("other", 1, "other"), Instant(0, 0), lambda: None)

    async def watch() -> None:
        StopWatch(over)

    asyncio.run(watch())
    jobs = RunningJobs()
    jobs.add(over)
    jobs.add(alive)
    jobs.shut_down()
    assert alive.stop is Stop.SHUTDOWN
