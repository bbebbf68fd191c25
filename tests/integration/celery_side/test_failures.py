"""Failures in workflows: who hears of them, and that a worker's death makes none of them happen twice."""

from __future__ import annotations

from typing import Any

import pytest
from celery import chain, chord
from celery.exceptions import ChordError

from kelpie_celery.errors import JobFailed
from tests.integration.celery_side.conftest import Listener
from tests.integration.celery_side.fleet import Fleet
from tests.integration.celery_side.played import definition


def failing(name: str, *times: int, max_failures: int = 1) -> dict[str, object]:
    return definition(name, 0.02, *times, mode="fail", max_failures=max_failures)


def test_a_failed_step_ends_its_chain_and_calls_an_errback_of_the_old_style(fleet: Fleet) -> None:
    job = fleet.run_job
    steps = chain(job.s(failing("fa")), job.si(definition("fb")), fleet.plain(tag="fc"))
    result: Any = steps.on_error(fleet.plain(tag="fe")).apply_async()
    first, second = result.parent.parent, result.parent
    with pytest.raises(JobFailed) as raised:
        fleet.get(result)
    assert (raised.value.job_id, raised.value.reason) == (first.id, "exit_code")
    fleet.wait_outbox([first.id])
    fleet.wait("the errback ran", lambda: fleet.notes.count("plain:fe"))
    assert fleet.notes.all("plain:fe")[0]["results"] == [first.id]
    assert [fleet.state(r.id) for r in (first, second, result)] == ["FAILURE"] * 3
    assert fleet.runs(second.id) == 0
    assert fleet.record(second.id).status == "draft"
    assert fleet.notes.count("plain:fc") == 0


def test_errbacks_may_be_of_the_new_style_and_may_be_jobs(fleet: Fleet) -> None:
    rescue = fleet.run_job.si(definition("rescue"))
    rescue.freeze()
    result: Any = fleet.run_job.apply_async((failing("fn"),), link_error=[fleet.app.tasks["errback_new"].s(), rescue])
    with pytest.raises(JobFailed):
        fleet.get(result)
    assert fleet.get(fleet.app.AsyncResult(rescue.id))["name"] == "rescue"
    notes = [note for note in fleet.notes.all("plain:errback_new") if note["id"] == result.id]
    assert len(notes) == 1
    assert "JobFailed" in notes[0]["error"]


def test_a_worker_that_dies_before_it_tells_of_a_failure_makes_nobody_hear_of_it_twice(fleet: Fleet) -> None:
    fleet.arm("after_fail", "ka")
    job = fleet.run_job
    result: Any = chain(job.s(failing("ka")), job.si(definition("kb"))).on_error(fleet.plain(tag="ke")).apply_async()
    with pytest.raises(JobFailed):
        fleet.get(result)
    fleet.wait_outbox([result.parent.id])
    assert fleet.armed() == []
    fields = fleet.fields(result.parent.id)
    assert (fields["status"], fields["endings"], fields["num_failures"]) == ("failed", "1", "1")
    fleet.wait("the errback ran", lambda: fleet.notes.count("plain:ke"))
    assert fleet.notes.count("plain:ke") == 1


@pytest.mark.parametrize("point", ["none", "post_store"])
def test_a_failed_part_fails_its_chord_once(fleet: Fleet, point: str) -> None:
    tag = f"cf-{point}"
    if point != "none":
        fleet.arm(point, f"{tag}-bad")
    job = fleet.run_job
    workflow = chord([job.s(definition(f"{tag}-ok")), job.s(failing(f"{tag}-bad"))], job.s(definition(f"{tag}-body")))
    workflow.link_error(fleet.plain(tag=tag))
    result: Any = workflow.apply_async()
    with pytest.raises((ChordError, JobFailed)):
        fleet.get(result)
    fleet.wait("the body is given up", lambda: fleet.state(result.id) == "FAILURE")
    fleet.wait_outbox([part.id for part in result.parent.results])
    assert fleet.armed() == []
    fleet.wait("the errback ran", lambda: fleet.notes.count(f"plain:{tag}"))
    assert fleet.notes.count(f"plain:{tag}") == 1
    assert fleet.runs(result.id) == 0


def test_a_failed_try_is_a_retry_to_celery_and_goes_on_on_another_machine(fleet: Fleet, listener: Listener) -> None:
    result = fleet.run_job.delay(failing("retried", 1, max_failures=3))
    assert fleet.get(result)["attempt"] == 2
    record = fleet.record(result.id)
    assert record.num_failures == 1
    assert [attempt.outcome for attempt in record.attempts] == ["failure", "completed"]
    assert record.attempts[0].machine != record.attempts[1].machine
    fleet.wait("Flower heard", lambda: listener.of(result.id)[-1:] == ["task-succeeded"])
    heard = [kind for kind in listener.of(result.id) if kind != "task-received"]
    assert heard == ["task-started", "task-retried", "task-started", "task-succeeded"]
