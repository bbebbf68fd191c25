"""What users of Celery do with tasks, done with jobs: every way to call, and every canvas."""

from __future__ import annotations

import base64
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import chain, chord, group
from celery.canvas import StampingVisitor  # type: ignore[attr-defined]  # missing in celery-types

from kelpie_celery.errors import DefinitionError, JobExists, KelpieError
from kelpie_celery.ledger import keys
from tests.integration.celery_side.fleet import GROUP, Fleet, ids_of
from tests.integration.celery_side.played import definition

HELD_S = 60.0


def message_of(fleet: Fleet, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fleet.app.ledger.message_of(job_id) or "{}")
    return found


def test_results_reach_the_next_job_in_order(fleet: Fleet) -> None:
    job = fleet.run_job
    result: Any = chain(job.s(definition("n1")), job.s(definition("n2")), job.si(definition("n3"))).apply_async()
    fleet.get(result)
    assert [p["name"] for p in fleet.get(result.parent)["parents"]] == ["n1"]
    assert fleet.get(result)["parents"] == []


def test_a_nested_workflow_runs_each_of_its_parts_once(fleet: Fleet) -> None:
    job = fleet.run_job
    inner = chain(job.si(definition("n3")), job.s(definition("n4")))
    outer = group(fleet.plain(tag="n6"), job.s(definition("n7")))
    workflow = chain(job.s(definition("n1")), group(job.si(definition("n2")), inner), job.s(definition("n5")), outer)
    result: Any = workflow.apply_async()
    tag, last = fleet.get(result)
    assert (tag, last["name"]) == ("n6", "n7")
    assert [p["name"] for p in last["parents"][0]["parents"][0]] == ["n2", "n4"]
    jobs = [i for i in ids_of(result) if fleet.app.ledger.group_of(i)]
    fleet.wait_outbox(jobs)
    fleet.expect_once(jobs)
    assert fleet.notes.count("plain:n6") == 1


def test_chains_of_chords_and_a_plain_task_first(fleet: Fleet) -> None:
    job = fleet.run_job
    pair = [job.s(definition("a")), job.s(definition("b"))]
    result: Any = chain(
        fleet.plain(tag="first"), chord(pair, job.s(definition("c"))), fleet.plain(tag="last")
    ).apply_async()
    assert fleet.get(result) == "last"
    body = fleet.get(result.parent)
    assert [p["parents"] for p in body["parents"][0]] == [["first"], ["first"]]


def test_every_link_of_a_list_is_followed(fleet: Fleet) -> None:
    linked = fleet.run_job.s(definition("linked"))
    linked.freeze()
    result: Any = fleet.run_job.apply_async((definition("head"),), link=[linked, fleet.plain(tag="link")])
    fleet.get(result)
    assert fleet.get(fleet.app.AsyncResult(linked.id))["parents"][0]["name"] == "head"
    fleet.wait("the plain link ran", lambda: fleet.notes.count("plain:link"))


def test_stamps_reach_every_step(fleet: Fleet) -> None:
    class Stamp(StampingVisitor):  # type: ignore[misc]  # as above
        def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
            return {"who": "me"}

    workflow = chain(fleet.run_job.s(definition("st1")), fleet.run_job.si(definition("st2")))
    workflow.stamp(Stamp())
    result: Any = workflow.apply_async()
    fleet.get(result)
    assert [message_of(fleet, i)["headers"]["stamps"] for i in ids_of(result)] == [{"who": "me"}] * 2


def test_a_plain_task_may_be_replaced_by_a_job(fleet: Fleet) -> None:
    replaced = fleet.app.tasks["replaced"]
    result: Any = chain(replaced.s(definition("rp")), fleet.run_job.s(definition("after"))).apply_async()
    assert fleet.get(result)["parents"][0]["name"] == "rp"
    assert fleet.record(result.parent.id).name == "rp"


def test_a_plain_task_may_submit_a_job(fleet: Fleet) -> None:
    result = fleet.app.tasks["spawn"].delay(definition("sp"))
    job_id = fleet.get(result)
    assert fleet.get(fleet.app.AsyncResult(job_id))["name"] == "sp"
    headers = message_of(fleet, job_id)["headers"]
    assert (headers["parent_id"], headers["root_id"]) == (result.id, result.id)


def test_a_job_can_be_sent_by_name(fleet: Fleet) -> None:
    result = fleet.app.send_task("kelpie.run_job", [definition("by-name")])
    assert fleet.get(result)["name"] == "by-name"


def test_celerys_options_are_kept(fleet: Fleet) -> None:
    result: Any = fleet.run_job.apply_async(
        (definition("opts"),), ignore_result=True, shadow="nice name", headers={"x": "y"}, expires=600, priority=3
    )
    fleet.wait_status(result.id, "completed")
    fleet.wait_outbox([result.id])
    message = message_of(fleet, result.id)
    shown = {name: message["headers"].get(name) for name in ("shadow", "x", "ignore_result", "argsrepr")}
    described = f"name 'opts', command 'play', group '{GROUP}'"
    assert shown == {"shadow": "nice name", "x": "y", "ignore_result": True, "argsrepr": described}
    assert message["properties"]["priority"] == 3
    assert fleet.state(result.id) == "PENDING", "nothing was stored"


def test_urgent_jobs_are_served_first(fleet: Fleet) -> None:
    job, group_id = fleet.run_job, "urgent"
    with fleet.extra(fleet.worker(group_id, f"kelpie.{group_id}")):
        busy = job.delay(definition("busy-first", HELD_S, mode="hold", container_group_id=group_id))
        fleet.wait_started(busy.id)
        jobs = {n: definition(f"p{n}", container_group_id=group_id) for n in (9, 5, 0)}
        results = [job.apply_async((told,), priority=n) for n, told in jobs.items() for _ in range(3)]
        fleet.notes.let_go("busy-first")
        for result in results:
            fleet.get(result)
        fleet.wait_outbox([busy.id, *(result.id for result in results)])
    started = {r.id: fleet.record(r.id).started or 0 for r in results}
    order = [fleet.record(i).priority for i in sorted(started, key=lambda i: started[i])]
    assert order == sorted(order)


def test_a_countdown_waits_in_the_ledger_and_holds_no_slot(fleet: Fleet) -> None:
    countdown_s = 3.0
    asked = datetime.now(UTC)
    result: Any = fleet.run_job.apply_async((definition("later"),), countdown=countdown_s)
    by_eta = fleet.run_job.apply_async((definition("eta"),), eta=asked + timedelta(seconds=countdown_s))
    assert fleet.app.ledger.counts(GROUP).delayed == 2
    assert fleet.record(result.id).not_before is not None
    inspected = fleet.app.control.inspect(timeout=0.3)
    assert not any((inspected.scheduled() or {}).values())
    for job in (result, by_eta):
        fleet.get(job)
        assert (fleet.record(job.id).started or 0) - asked.timestamp() > countdown_s - 0.3


def test_an_expired_job_is_canceled(fleet: Fleet) -> None:
    result: Any = fleet.run_job.apply_async((definition("expired"),), expires=0.2, countdown=1.0)
    fleet.wait_status(result.id, "canceled")
    fleet.wait_outbox([result.id])
    assert fleet.runs(result.id) == 0
    assert fleet.state(result.id) == "REVOKED"


def test_a_job_that_started_in_time_does_not_expire_when_it_is_interrupted(fleet: Fleet) -> None:
    result = fleet.run_job.apply_async((definition("in-time", HELD_S, mode="hold"),), expires=600)
    fleet.wait_started(result.id)
    expire(fleet, result.id)
    fleet.arm("run", "in-time")
    fleet.wait("its worker died", lambda: not fleet.armed())
    fleet.notes.let_go("in-time")
    assert fleet.get(result)["attempt"] > 1
    fleet.expect_once([result.id])


def expire(fleet: Fleet, job_id: str) -> None:
    """Let the time be over in which a job may begin, in the message with which it comes back."""
    message = message_of(fleet, job_id)
    message["headers"]["expires"] = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    fleet.redis.hset(keys.job(GROUP, job_id), "message", json.dumps(message))


def test_an_idempotency_key_is_for_a_job_by_itself(fleet: Fleet) -> None:
    job, keyed = fleet.run_job, definition("keyed", idempotency_key="once")
    first = job.delay(keyed)
    assert job.delay(keyed).id == first.id
    with pytest.raises(DefinitionError, match="idempotency_key"):
        chain(job.s(definition("before")), job.si(keyed)).apply_async()
    with pytest.raises(JobExists, match="once"):
        group(job.s(keyed), job.s(keyed)).apply_async()
    fleet.get(first)
    fleet.expect_once([first.id])


def test_a_later_step_keeps_its_priority(fleet: Fleet) -> None:
    later = fleet.run_job.si(definition("urgent")).set(priority=0)
    result: Any = chain(fleet.run_job.s(definition("normal", priority=7)), later).apply_async()
    fleet.get(result)
    assert [fleet.record(i).priority for i in ids_of(result)] == [0, 7]


def test_the_next_step_may_belong_to_another_container_group(fleet: Fleet) -> None:
    job = fleet.run_job
    result: Any = chain(
        job.s(definition("here")), job.si(definition("there", container_group_id="elsewhere"))
    ).apply_async()
    fleet.get(result.parent)
    fleet.wait("it waits for a worker of its group", lambda: fleet.redis.llen("kelpie.elsewhere:5"))
    assert fleet.record(result.id).status == "pending"
    with fleet.extra(fleet.worker("elsewhere", "kelpie.elsewhere")):
        assert fleet.get(result)["name"] == "there"


@pytest.mark.parametrize("first", ["job", "plain"])
def test_a_fault_in_the_third_step_shows_when_the_chain_is_submitted(fleet: Fleet, first: str) -> None:
    job = fleet.run_job
    start = job.s(definition("v1")) if first == "job" else fleet.plain(tag="v")
    before = fleet.app.ledger.counts(GROUP)
    with pytest.raises(DefinitionError, match="container_group_id"):
        chain(start, job.si(definition("v2")), job.si({"command": "x", "sync": {}})).apply_async()
    assert fleet.app.ledger.counts(GROUP) == before
    assert fleet.notes.count("plain:v") == 0


def test_a_canvas_is_applied_once_and_its_clone_again(fleet: Fleet) -> None:
    job = fleet.run_job
    # Their leases outlast a busy machine: nothing but a second submission makes a second run.
    first_step, second_step = (definition(name, heartbeat_interval=10) for name in ("u1", "u2"))
    workflow = chain(job.s(first_step), job.si(second_step))
    copy = workflow.clone()
    first: Any = workflow.apply_async()
    with pytest.raises(JobExists, match="clone"):
        workflow.apply_async()
    second: Any = copy.apply_async()
    assert set(ids_of(first)).isdisjoint(ids_of(second))
    for result in (first, second):
        fleet.get(result)
        assert [fleet.runs(i) for i in ids_of(result)] == [1, 1]


def test_a_group_is_applied_once(fleet: Fleet) -> None:
    members = group(fleet.run_job.s(definition(f"w{i}")) for i in range(2))
    members.freeze()
    first: Any = members.apply_async()
    with pytest.raises(JobExists):
        members.apply_async()
    fleet.get(first)


def test_eager_mode_is_refused_in_words(fleet: Fleet) -> None:
    fleet.app.conf.task_always_eager = True
    try:
        with pytest.raises(KelpieError, match="task_always_eager"):
            fleet.run_job.delay(definition("eager"))
    finally:
        fleet.app.conf.task_always_eager = False


def test_the_next_job_starts_while_the_outputs_of_the_last_one_upload(fleet: Fleet) -> None:
    with fleet.extra(fleet.worker("uploader", "kelpie.uploads")):
        first = fleet.run_job.delay(definition("up1", 0.05, HELD_S, mode="upload", container_group_id="uploads"))
        second = fleet.run_job.delay(definition("up2", 0.05, container_group_id="uploads"))
        assert fleet.get(second)["name"] == "up2"
        assert fleet.record(first.id).status == "running"
        fleet.notes.let_go("up1")
        fleet.get(first)


def test_a_message_names_the_job_and_nothing_of_its_definition(fleet: Fleet) -> None:
    result: Any = fleet.run_job.apply_async((definition("quiet", container_group_id="nobody"),))
    body = json.loads(base64.b64decode(message_of(fleet, result.id)["body"]))
    assert body[0] == [result.id]
    fleet.app.ledger.cancel(result.id)


def test_many_workflows_at_once_are_served_in_time(fleet: Fleet) -> None:
    before = time.monotonic()
    results = [chain(fleet.run_job.s(definition("m1", 0)), fleet.plain(tag="m")).apply_async() for _ in range(20)]
    for result in results:
        assert fleet.get(result) == "m"
    assert time.monotonic() - before < 60
