"""Workers that drain: no job is taken, none is lost, and no message goes round in circles."""

from __future__ import annotations

import re

from kelpie_celery.ledger import keys
from tests.integration.celery_side.fleet import Fleet
from tests.integration.celery_side.played import GROUP, definition


def bounces(fleet: Fleet) -> int:
    """How often a worker was refused a job since it drains, by the workers' logs."""
    logs = (fleet.directory / f"{name}.log" for name in "abc")
    return sum(len(re.findall(r"claim_refused.*draining", log.read_text())) for log in logs)


def test_drained_workers_take_no_job_until_they_are_taken_back(fleet: Fleet) -> None:
    ledger = fleet.app.ledger
    fleet.wait("three workers are idle", lambda: ledger.workers(GROUP).facts.workers == 3 and not busy(fleet))
    before = bounces(fleet)
    assert ledger.drain(GROUP, 3).chosen == 3
    try:
        # At once, while none of them can have heard of it: their messages come back.
        jobs = [fleet.run_job.delay(definition(f"drained {n}")) for n in range(5)]
        fleet.wait("all have heard of it", lambda: ledger.workers(GROUP).facts.draining_idle == 3)
        assert [fleet.record(job.id).attempt for job in jobs] == [0] * 5
        fleet.wait("every message is in the queue", lambda: queued(fleet) == 5)
        assert bounces(fleet) - before <= 12, "each worker is refused a time or two, not again and again"
    finally:
        ledger.drain(GROUP, 0)
    for job in jobs:
        fleet.get(job)
    fleet.expect_once(job.id for job in jobs)


def test_what_a_worker_had_asked_for_before_it_heard_of_its_drain_does_not_wait_in_its_socket(fleet: Fleet) -> None:
    ledger = fleet.app.ledger
    fleet.wait("three workers are idle", lambda: ledger.workers(GROUP).facts.workers == 3 and not busy(fleet))
    assert ledger.drain(GROUP, 3).chosen == 3
    try:
        # Each has asked Redis for a message before, and is answered although it takes none any more.
        fleet.wait("all have heard of it", lambda: ledger.workers(GROUP).facts.draining_idle == 3)
        jobs = [fleet.run_job.delay(definition(f"asked {n}")) for n in range(5)]
        fleet.wait("every message is in the queue", lambda: queued(fleet) == 5)
        assert [fleet.record(job.id).attempt for job in jobs] == [0] * 5
    finally:
        ledger.drain(GROUP, 0)
    for job in jobs:
        fleet.get(job)
    fleet.expect_once(job.id for job in jobs)


def busy(fleet: Fleet) -> bool:
    return fleet.app.ledger.workers(GROUP).facts.busy > 0


def queued(fleet: Fleet) -> int:
    return sum(int(fleet.redis.llen(keys.queue_list(GROUP, priority))) for priority in keys.PRIORITIES)


def test_a_drained_worker_leaves_the_job_to_the_others(fleet: Fleet) -> None:
    ledger = fleet.app.ledger
    fleet.wait("three workers are idle", lambda: ledger.workers(GROUP).facts.workers == 3 and not busy(fleet))
    ledger.drain(GROUP, 2)
    try:
        jobs = [fleet.run_job.delay(definition(f"others {n}")) for n in range(6)]
        for job in jobs:
            fleet.get(job)
        assert len({fleet.record(job.id).machine_id for job in jobs}) == 1
    finally:
        ledger.drain(GROUP, 0)
