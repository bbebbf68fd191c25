"""The control worker and beat: what they add, and that one of two beats is enough."""

from __future__ import annotations

import os
import signal
from typing import Any

from celery import chain

from tests.integration.celery_side.fleet import GROUP, Fleet, Process, ids_of
from tests.integration.celery_side.played import definition
from tests.integration.celery_side.workflows import start_chain, start_chord

GPU_WORKERS = ("a", "b", "c")
HELD_S = 60.0


def control(fleet: Fleet) -> tuple[Process, Process]:
    """A control worker and a beat."""
    return fleet.worker("control", "kelpie.control"), fleet.beat("beat")


def maintained_by_control(fleet: Fleet) -> str | None:
    """When the control worker last ticked the group; its share is told by its limit of 100 entries."""
    found = fleet.redis.hget(f"kelpie:g:{GROUP}:tick", "last:100")
    return str(found) if found else None


def test_kills_do_no_more_harm_when_a_control_worker_replays_too(fleet: Fleet) -> None:
    with fleet.extra(*control(fleet)):
        fleet.wait("the control worker maintains", lambda: maintained_by_control(fleet))
        workflows = [start_chain(fleet, point) for point in ("run", "after_complete", "post_publish", "pre_done")]
        workflows += [start_chord(fleet, point, body_is_a_job=False) for point in ("post_store", "pre_done")]
        for workflow in workflows:
            workflow.expect_whole(fleet)


def test_with_every_gpu_worker_gone_the_control_worker_tells_celery_and_brings_jobs_back(fleet: Fleet) -> None:
    held = fleet.run_job.delay(definition("held", HELD_S, mode="hold"))
    fleet.wait_started(held.id)
    fleet.arm("after_complete", "told")
    told = fleet.run_job.s(definition("told", HELD_S, mode="hold"))
    result: Any = chain(told, fleet.plain(tag="told")).apply_async()
    for name in GPU_WORKERS:
        fleet.processes[name].leave_alone()
    fleet.notes.let_go("told")
    fleet.wait("the worker died", lambda: not fleet.armed())
    with fleet.without(*GPU_WORKERS), fleet.extra(*control(fleet)):
        assert fleet.get(result) == "told"
        fleet.wait_outbox(ids_of(result.parent))
        # Its worker is dead, and nobody is there to run it: it waits in its queue.
        fleet.wait_status(held.id, "pending")
        fleet.wait("it has a message", lambda: fleet.redis.llen(f"kelpie.{GROUP}:5"))
    fleet.notes.let_go("held")
    assert fleet.get(held)["attempt"] > 1


def test_a_job_is_canceled_durably_while_only_the_control_worker_is_online(fleet: Fleet) -> None:
    result = fleet.run_job.delay(definition("alone", container_group_id="nobody"))
    processes = control(fleet)
    with fleet.extra(*processes):
        processes[0].wait_ready()
        with fleet.paused(*GPU_WORKERS, "plain"):
            fleet.app.control.revoke(result.id)
            fleet.wait_status(result.id, "canceled")
            fleet.wait_outbox([result.id])
            assert fleet.state(result.id) == "REVOKED"


def test_a_second_beat_stands_by_and_takes_over_when_the_first_is_killed(fleet: Fleet) -> None:
    worker = fleet.worker("control", "kelpie.control")
    first = fleet.beat("first-beat")
    with fleet.extra(worker, first):
        fleet.wait("the first beat's task runs", lambda: maintained_by_control(fleet))
        second = fleet.beat("second-beat")
        with fleet.extra(second):
            fleet.wait("the second stands by", lambda: "Acquiring lock" in second.log.read_text())
            assert "Acquired lock" not in second.log.read_text()
            os.kill(first.managed.pid, signal.SIGKILL)
            fleet.wait("the second takes over", lambda: "Acquired lock" in second.log.read_text())
            before = maintained_by_control(fleet)
            fleet.wait("its task runs", lambda: maintained_by_control(fleet) != before)
