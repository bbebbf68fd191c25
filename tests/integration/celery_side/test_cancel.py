"""Cancel by every way that Celery offers, whoever is online (P7)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError, TaskRevokedError

from tests.integration.celery_side.conftest import Listener
from tests.integration.celery_side.fleet import APP, GROUP, ROOT, Fleet
from tests.integration.celery_side.played import definition

LONG_S = 60.0
HEARD_WITHIN_S = 10.0


def expect_canceled(fleet: Fleet, job_id: str, timeout_s: float = 10.0) -> None:
    fleet.wait_status(job_id, "canceled", timeout_s=timeout_s)
    fleet.wait_outbox([job_id], timeout_s)
    assert fleet.state(job_id) == "REVOKED"
    with pytest.raises(TaskRevokedError):
        fleet.app.AsyncResult(job_id).get(timeout=5)


@pytest.mark.parametrize("terminate", [True, False])
def test_a_revoke_ends_a_running_job_long_before_its_time(fleet: Fleet, listener: Listener, terminate: bool) -> None:
    result = fleet.run_job.delay(definition("running", LONG_S))
    fleet.wait_started(result.id)
    fleet.wait("Flower saw it start", lambda: "task-started" in listener.of(result.id))
    before = time.monotonic()
    result.revoke(terminate=terminate)
    fleet.wait_status(result.id, "canceled")
    assert time.monotonic() - before < HEARD_WITHIN_S
    expect_canceled(fleet, result.id)
    fleet.wait("Flower heard", lambda: listener.of(result.id)[-1:] == ["task-revoked"])
    assert listener.of(result.id).count("task-revoked") == 1
    fleet.get(fleet.run_job.delay(definition("next")))


def test_a_job_that_no_worker_serves_can_be_revoked(fleet: Fleet) -> None:
    result = fleet.run_job.delay(definition("nobody", container_group_id="nobody"))
    result.revoke()
    fleet.wait_status(result.id, "canceled")
    fleet.wait("Celery knows", lambda: fleet.state(result.id) == "REVOKED")


def test_a_cancel_in_the_ledger_alone_reaches_the_worker_and_celery(fleet: Fleet) -> None:
    result = fleet.run_job.delay(definition("ledger", LONG_S))
    fleet.wait_started(result.id)
    assert fleet.app.ledger.cancel(result.id) == "canceling"
    expect_canceled(fleet, result.id)


def test_a_pending_job_behind_a_busy_worker_can_be_revoked(fleet: Fleet) -> None:
    busy = [fleet.run_job.delay(definition("busy", LONG_S)) for _ in range(3)]
    for job in busy:
        fleet.wait_started(job.id)
    waiting = fleet.run_job.delay(definition("waiting"))
    waiting.revoke()
    expect_canceled(fleet, waiting.id)
    assert fleet.runs(waiting.id) == 0
    group_result = fleet.app.GroupResult("busy", busy)
    group_result.revoke(terminate=True)
    for job in busy:
        expect_canceled(fleet, job.id)
    fleet.get(fleet.run_job.delay(definition("next")))


@pytest.mark.parametrize("words", [["revoke", "ID"], ["terminate", "SIGTERM", "ID"], ["revoke", "ID", "--terminate"]])
def test_celerys_own_command_line_cancels(fleet: Fleet, words: list[str]) -> None:
    running = fleet.run_job.delay(definition("by-cli", LONG_S))
    pending = fleet.run_job.delay(definition("by-cli-pending", container_group_id="nobody"))
    fleet.wait_started(running.id)
    for job_id in (running.id, pending.id):
        command = [job_id if word == "ID" else word for word in words]
        environment = {**os.environ, **fleet.env()}
        argv = [sys.executable, "-m", "celery", "-A", APP, "control", "--timeout", "0.3", *command]
        done = subprocess.run(argv, cwd=ROOT, env=environment, check=False, capture_output=True, text=True, timeout=60)
        # It says so when no worker has replied in time; the cancel counts all the same.
        assert done.returncode in (os.EX_OK, os.EX_UNAVAILABLE), done.stderr
    expect_canceled(fleet, running.id)
    fleet.wait_status(pending.id, "canceled")


def test_canceling_a_step_keeps_the_next_ones_from_running(fleet: Fleet) -> None:
    job = fleet.run_job
    result: Any = chain(
        job.s(definition("step1", LONG_S)), job.si(definition("step2")), fleet.plain(tag="x")
    ).apply_async()
    first = result.parent.parent
    fleet.wait_started(first.id)
    first.revoke(terminate=True)
    expect_canceled(fleet, first.id)
    with pytest.raises(TaskRevokedError):
        fleet.get(result)
    assert fleet.runs(result.parent.id) == 0
    assert fleet.record(result.parent.id).status == "draft"
    assert fleet.notes.count("plain:x") == 0


def test_canceling_a_later_step_ends_the_chain_when_it_gets_there(fleet: Fleet) -> None:
    job = fleet.run_job
    result: Any = chain(job.s(definition("early", 1.0)), job.si(definition("late"))).apply_async()
    result.revoke()
    fleet.get(result.parent)
    expect_canceled(fleet, result.id)
    assert fleet.runs(result.id) == 0


def test_canceling_a_part_fails_its_chord(fleet: Fleet) -> None:
    job = fleet.run_job
    parts = [job.s(definition("part1")), job.s(definition("part2", LONG_S))]
    result: Any = chord(parts, fleet.plain(tag="never")).apply_async()
    long = result.parent.results[1]
    fleet.wait_started(long.id)
    long.revoke(terminate=True)
    expect_canceled(fleet, long.id)
    with pytest.raises((ChordError, TaskRevokedError)):
        fleet.get(result)
    fleet.wait("the body is given up", lambda: fleet.state(result.id) == "FAILURE")
    assert fleet.notes.count("plain:never") == 0


def test_a_whole_group_can_be_revoked(fleet: Fleet) -> None:
    result: Any = group(fleet.run_job.s(definition("member", LONG_S)) for _ in range(5)).apply_async()
    fleet.wait("three of them run", lambda: sum(fleet.runs(r.id) for r in result.results) == 3)
    result.revoke(terminate=True)
    for member in result.results:
        expect_canceled(fleet, member.id)
    counts = fleet.app.ledger.counts(GROUP)
    assert (counts.pending, counts.running) == (0, 0)


def test_a_revoked_job_whose_worker_died_is_canceled_and_not_run_again(fleet: Fleet) -> None:
    result = fleet.run_job.delay(definition("dying", LONG_S))
    fleet.wait_started(result.id)
    worker = _process_of(fleet, result)
    worker.pause()
    fleet.app.ledger.cancel(result.id)
    worker.kill()
    expect_canceled(fleet, result.id)
    assert fleet.runs(result.id) == 1


def _process_of(fleet: Fleet, result: Any) -> Any:
    machine = fleet.record(result.id).machine_id or ""
    return fleet.processes[machine.removeprefix("machine-")].managed
