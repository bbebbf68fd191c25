"""No scale-in ends a running job, also none that was claimed a moment before: fifty histories with changing load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from redis import Redis

from kelpie_celery.app import KelpieApp
from kelpie_celery.celery import create_app
from kelpie_celery.local.salad.behaviour import fixed
from kelpie_celery.settings import load_settings
from tests.integration.direct_cloud import HOST
from tests.integration.virtual_fleet import GROUP_ID, TICK_S, TIMINGS, Run

BATCHES, RUNS = 5, 10
LEAST = {
    "jobs": 150, "claims in between": 15, "claims refused: draining": 15, "interruptions": 2, "nodes given back": 15,
    "decided: drain": 10, "decided: undrain": 1, "decided: set_replicas": 15, "decided: start": 10, "decided: stop": 3,
}  # fmt: skip
"""What ten histories must have tried, or they have shown nothing; they try two to five times as much."""


@pytest.fixture
def app(redis_url: str) -> Iterator[KelpieApp]:
    named = {"SALAD_ORGANIZATION_NAME": "local", "SALAD_PROJECT_NAME": "default"}
    every = {"KELPIE_SCALE_INTERVAL_S": str(TICK_S)}
    app = create_app(load_settings({"KELPIE_REDIS_URL": redis_url, "KELPIE_SALAD_API_URL": HOST, **named, **every}))
    yield app
    app.close()


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.mark.timeout(400)
@pytest.mark.parametrize("batch", range(BATCHES))
def test_no_running_job_is_ended_by_a_scale_in(batch: int, redis: Redis, app: KelpieApp) -> None:
    seen: Counter[str] = Counter()
    for seed in range(batch * RUNS, (batch + 1) * RUNS):
        redis.flushdb()
        run = Run(redis, app, seed)
        run.play()
        run.check(seed)
        seen += run.seen
    print(dict(sorted(seen.items())))
    assert {what: seen[what] for what, least in LEAST.items() if seen[what] < least} == {}


def test_a_group_that_still_deploys_is_stopped_when_its_jobs_are_gone(redis: Redis, app: KelpieApp) -> None:
    """Kelpie's defect 12: only running groups were stopped, so that one without a free node was paid for later."""
    slow = replace(TIMINGS, allocate=fixed(3600))
    run = Run(redis, app, 1, timings=slow, calm=True, min_replicas=0, idle_threshold_seconds=0)
    for _ in range(3):
        run.submit()
    run.scaler.tick()
    assert run.group.status == "deploying"
    for job_id in run.durations:
        run.ledger.cancel(job_id)
    run.play()
    assert run.broken == []
    entries = run.ledger.decisions(GROUP_ID)
    (stop,) = [entry for entry in entries if entry["action"] == "stop"]
    assert (stop["fleet"]["status"], stop["fleet"]["running"]) == ("deploying", 0)
    assert (run.group.status, run.group.billed_s) == ("stopped", 0)
