"""A worker is killed at every step of a job's life inside chains and groups; no helper process is alive."""

from __future__ import annotations

import itertools

import pytest
from celery import chain, group

from tests.integration.celery_side.fleet import Fleet, ids_of
from tests.integration.celery_side.played import definition

POINTS = [None, "run", "after_complete", "pre_publish", "between", "post_publish", "pre_done"]
_number = itertools.count()


@pytest.mark.parametrize("point", POINTS)
def test_a_chain_goes_on_once_whatever_kills_the_worker_of_its_second_step(fleet: Fleet, point: str | None) -> None:
    tag = f"c{next(_number)}"
    if point:
        fleet.arm(point, f"{tag}-2")
    job = fleet.run_job
    steps = [job.s(definition(f"{tag}-1")), job.si(definition(f"{tag}-2")), job.s(definition(f"{tag}-3"))]
    result = chain(*steps, fleet.plain(tag=tag)).apply_async()
    jobs = ids_of(result.parent)
    assert fleet.get(result) == tag
    fleet.wait_outbox(jobs)
    assert fleet.armed() == []
    fleet.expect_once(jobs)
    assert [fleet.state(i) for i in jobs] == ["SUCCESS"] * 3
    assert fleet.notes.count(f"plain:{tag}") == 1
