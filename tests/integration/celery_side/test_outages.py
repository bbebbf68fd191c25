"""Redis goes away at the worst moments: jobs play on, nothing fails, no slot is lost."""

from __future__ import annotations

import time
from typing import Any

import pytest
from celery import chain, chord

from tests.integration.celery_side.fleet import Fleet
from tests.integration.celery_side.played import definition

# A moment, after which Celery's next write succeeds, is tried too; this is longer than Celery's backend retries in
# these tests (3 tries within a second), as half a minute is in production.
AWAY_S = 4.0
WORKERS = 3
# Leases that outlast a busy machine: no worker is killed here, so none has to end.
PATIENT: dict[str, Any] = {"heartbeat_interval": 10}


def away(fleet: Fleet, seconds: float) -> None:
    """Redis is dead, and comes back after some time."""
    time.sleep(seconds)
    fleet.server.start()


def expect_every_slot_free(fleet: Fleet) -> None:
    """Every worker consumes: as many long jobs as there are workers run at once."""
    jobs = [fleet.run_job.delay(definition("slot", 60)) for _ in range(WORKERS)]
    for job in jobs:
        fleet.wait_started(job.id)
    for job in jobs:
        fleet.app.ledger.cancel(job.id)
        fleet.wait_status(job.id, "canceled")


def test_jobs_play_on_while_redis_is_killed_and_started_again(fleet: Fleet) -> None:
    results = [fleet.run_job.delay(definition(f"on{i}", 3.0, **PATIENT)) for i in range(WORKERS)]
    for result in results:
        fleet.wait_started(result.id)
    fleet.server.kill()
    away(fleet, 1.0)
    for result in results:
        fleet.wait_status(result.id, "completed")
        assert fleet.get(fleet.app.AsyncResult(result.id))["attempt"] == 1
        assert fleet.record(result.id).num_interruptions == 0
    fleet.wait_outbox(result.id for result in results)
    fleet.expect_once(result.id for result in results)


@pytest.mark.parametrize(
    ("point", "away_s"),
    [
        ("after_complete", AWAY_S),
        ("post_store", AWAY_S),
        *((point, 0.0) for point in ("after_complete", "pre_publish", "post_publish", "post_store", "pre_done")),
    ],
)
def test_an_outage_in_the_middle_of_the_bookkeeping_delays_it_and_leaks_no_slot(
    fleet: Fleet, point: str, away_s: float
) -> None:
    # What follows is a job: an ordinary task that was received as Redis died has no ledger to bring it back.
    job, name = fleet.run_job, f"out-{point}-{away_s:g}"
    following = job.s(definition(f"{name}-next", **PATIENT))
    if point == "post_store":
        parts = [job.s(definition(f"{name}-part", **PATIENT)), job.s(definition(name, 0.5, **PATIENT))]
        canvas: Any = chord(parts, following)
    else:
        canvas = chain(job.s(definition(name, **PATIENT)), following)
    fleet.arm(point, name, target=fleet.server.pid)
    result: Any = canvas.on_error(fleet.plain(tag=f"{name}-error")).apply_async()
    fleet.wait("Redis is dead", lambda: not fleet.server.running)
    away(fleet, away_s)
    jobs = [part.id for part in result.parent.results] if point == "post_store" else [result.parent.id]
    jobs.append(result.id)
    fleet.wait_status(result.id, "completed")
    fleet.wait_outbox(jobs)
    fleet.expect_once(jobs)
    assert [fleet.state(job_id) for job_id in jobs] == ["SUCCESS"] * len(jobs)
    assert [fleet.record(job_id).attempt for job_id in jobs] == [1] * len(jobs)
    assert fleet.notes.count(f"plain:{name}-error") == 0
    expect_every_slot_free(fleet)
