from __future__ import annotations

import pytest

from kelpie_celery.clock import Instant
from kelpie_celery.ledger.types import FencingToken
from kelpie_celery.running import RunningJob, RunningJobs, Stop


def attempt(job_id: str = "job", nonce: str = "n1") -> RunningJob:
    return RunningJob(FencingToken(job_id, 1, nonce), Instant(0, 0), lambda: None)


def test_a_listener_hears_of_a_stop_also_when_it_comes_too_late() -> None:
    heard: list[Stop] = []
    early, late = attempt(), attempt()
    early.listen(heard.append)
    early.ask_to_stop(Stop.CANCEL)
    late.ask_to_stop(Stop.SHUTDOWN)
    late.listen(heard.append)
    assert heard == [Stop.CANCEL, Stop.SHUTDOWN]


@pytest.mark.parametrize(
    ("asked", "heard"),
    [
        ([Stop.SHUTDOWN, Stop.CANCEL], [Stop.SHUTDOWN, Stop.CANCEL]),
        ([Stop.CANCEL, Stop.SHUTDOWN], [Stop.CANCEL]),
        ([Stop.CANCEL, Stop.CANCEL], [Stop.CANCEL]),
        ([Stop.SHUTDOWN, Stop.SHUTDOWN], [Stop.SHUTDOWN]),
    ],
)
def test_a_cancel_outweighs_a_shutdown_and_nothing_is_told_twice(asked: list[Stop], heard: list[Stop]) -> None:
    told: list[Stop] = []
    job = attempt()
    job.listen(told.append)
    for why in asked:
        job.ask_to_stop(why)
    assert told == heard
    assert job.stop is heard[-1]


def test_a_cancel_reaches_every_attempt_of_its_job_and_no_other() -> None:
    jobs = RunningJobs()
    lost, current, other = attempt(nonce="n1"), attempt(nonce="n2"), attempt("other", "n3")
    for job in (lost, current, other):
        jobs.add(job)
    assert jobs.cancel("job")
    assert [lost.stop, current.stop, other.stop] == [Stop.CANCEL, Stop.CANCEL, None]
    assert not jobs.cancel("unknown")


def test_a_shutdown_reaches_those_that_run_and_those_that_start_later() -> None:
    jobs = RunningJobs()
    before, after = attempt(nonce="n1"), attempt(nonce="n2")
    jobs.add(before)
    jobs.shut_down()
    jobs.add(after)
    assert jobs.shutting_down
    assert [before.stop, after.stop] == [Stop.SHUTDOWN, Stop.SHUTDOWN]


def test_an_attempt_that_ended_is_forgotten_and_its_successor_is_not() -> None:
    jobs = RunningJobs()
    old, new = attempt(nonce="n1"), attempt(nonce="n2")
    jobs.add(old)
    jobs.add(new)
    jobs.remove(old)
    jobs.remove(old)
    assert jobs.all() == [new]


def test_a_signal_handler_may_ask_while_its_own_thread_holds_the_lock() -> None:
    jobs, inner = RunningJobs(), attempt(nonce="n2")
    outer = attempt(nonce="n1")
    outer.listen(lambda _: jobs.add(inner))
    jobs.add(outer)
    with jobs._lock:
        jobs.shut_down()
    assert inner.stop is Stop.SHUTDOWN
