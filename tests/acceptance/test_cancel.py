"""A job is canceled wherever it stands, by each of the ways in, and its processes end (P7)."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from kelpie_celery.client import Kelpie
from kelpie_celery.ledger.records import JobRecord
from kelpie_celery.local.flower import FlowerServer
from kelpie_celery.settings import load_settings
from tests.harness.looking import OWN_FOLDER, is_gone, processes_of, said, stored_job_fields, stored_under
from tests.harness.stack import Stack

KELPIE = str(Path(sys.executable).with_name("kelpie"))
SIGNAL_LIMIT_S = 2.0
# With the storage away nothing is waited for; the rest is a busy test machine.
BOUND_S = 15.0
Record = Callable[[str, object], None]


@dataclass
class Ways:
    """The ways to cancel, each on a stack."""

    flower: FlowerServer

    def python(self, stack: Stack, job_ids: Sequence[str]) -> None:
        with Kelpie(settings=load_settings(stack.env())) as kelpie:
            for job_id in job_ids:
                assert kelpie.cancel(job_id) in {"canceled", "canceling"}

    def command_line(self, stack: Stack, job_ids: Sequence[str]) -> None:
        self._run(stack, KELPIE, "cancel", *job_ids)

    def celery_control(self, stack: Stack, job_ids: Sequence[str]) -> None:
        argv = [sys.executable, "-m", "celery", "-A", "kelpie_celery", "control", "revoke", *job_ids, "--terminate"]
        # Workers that hear of it after more than the second that Celery waits for their replies cancel all the same.
        self._run(stack, *argv, codes=(0, os.EX_UNAVAILABLE))

    def flowers_api(self, stack: Stack, job_ids: Sequence[str]) -> None:
        password = base64.b64encode(self.flower.env()["FLOWER_BASIC_AUTH"].encode()).decode()
        for job_id in job_ids:
            url = f"{self.flower.url}/api/task/revoke/{job_id}?terminate=true"
            request = urllib.request.Request(url, method="POST", headers={"Authorization": f"Basic {password}"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                assert answer.status == 200

    @staticmethod
    def _run(stack: Stack, *argv: str, codes: Sequence[int] = (0,)) -> None:
        env = {**os.environ, **stack.env()}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode in codes, done.stdout + done.stderr


WAYS = ["python", "command_line", "celery_control", "flowers_api"]


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, FlowerServer]]:
    """Flowers by the stack's Redis: one, as long as no stack had to be replaced."""
    found: dict[str, FlowerServer] = {}
    yield found
    for flower in found.values():
        flower.kill()
        flower.close()


@pytest.fixture
def cancel(
    request: pytest.FixtureRequest,
    stack: Stack,
    flowers: dict[str, FlowerServer],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Sequence[str]], None]:
    """Cancels jobs by the way that the test is for."""
    way, env = request.param, stack.env()
    flower = flowers.get(env["KELPIE_REDIS_URL"])
    if flower is None:
        flower = FlowerServer(tmp_path_factory.mktemp("flower"), lambda: {**os.environ, **env})
    if way == "flowers_api" and not flower.running:
        flowers[env["KELPIE_REDIS_URL"]] = flower
        flower.start()
    ways = Ways(flower)

    def by_this_way(job_ids: Sequence[str]) -> None:
        getattr(ways, way)(stack, job_ids)

    return by_this_way


def expect_canceled(stack: Stack, result: AsyncResult[Any], timeout_s: float = BOUND_S) -> JobRecord:
    """The job has ended as canceled, and Celery says REVOKED."""
    record = stack.wait_status(result.id, "canceled", timeout_s=timeout_s)
    assert (record.completions, record.num_failures, record.reason) == (0, 0, "canceled")
    assert all(a.outcome == "canceled" for a in record.attempts), stack.dump()
    expect_revoked(stack, result)
    return record


def expect_revoked(stack: Stack, result: AsyncResult[Any]) -> None:
    stack.wait(f"Celery says REVOKED of {result.id}", lambda: str(result.state) == "REVOKED")
    with pytest.raises(TaskRevokedError):
        result.get(timeout=10)


class Stubborn:
    """A command that writes a last checkpoint on SIGTERM, with a grandchild in a session of its own that ignores it."""

    def __init__(self, stack: Stack, directory: Path, fields: dict[str, Any]) -> None:
        self._stack, self._fields = stack, fields
        self._told, self._pid = said(directory, "told"), said(directory, "pid")
        script = f"""
            trap 'date +%s.%N > {directory}/told; echo last > $CHECKPOINT_DIR/last; exit 0' TERM
            setsid sh -c 'trap "" TERM INT HUP; echo $$ > {directory}/pid; while :; do sleep 0.1; done' &
            echo first > $CHECKPOINT_DIR/first
            while :; do sleep 0.1; done
        """
        self.result = stack.submit_async(stack.shell(script, **fields))

    def wait_running(self) -> list[psutil.Process]:
        """Wait until all of it runs and a checkpoint is stored; its processes."""
        self._stack.wait("the grandchild runs", self._pid)
        self._stack.wait("a checkpoint is stored", lambda: self._stack.get(self.result.id).num_commits)
        processes = processes_of(self.result.id)
        assert int(self._pid()) in {process.pid for process in processes}
        return processes

    @property
    def told_at(self) -> float:
        """When SIGTERM reached the command, seconds since the epoch."""
        return float(self._stack.wait("the command is told", self._told))

    @property
    def checkpoints(self) -> set[str]:
        """The names of the checkpoint's objects."""
        return set(stored_under(self._stack.s3, self._stack.bucket, self._fields["checkpoint_prefix"])) - {OWN_FOLDER}


@pytest.mark.timeout(150)
@pytest.mark.parametrize("cancel", WAYS, indirect=True)
def test_a_running_a_delayed_and_a_pending_job_are_canceled(
    stack: Stack, prefix: str, tmp_path: Path, cancel: Callable[[Sequence[str]], None], record_property: Record
) -> None:
    running = Stubborn(stack, tmp_path, stored_job_fields(stack, prefix))
    delayed = stack.run_job.apply_async((stack.shell("true"),), countdown=600)
    pending = stack.submit_async(stack.shell("true", container_group_id="nobody-serves-it"))
    processes = running.wait_running()
    called = time.time()
    cancel([running.result.id, delayed.id, pending.id])
    answered = time.time()
    signal_s = running.told_at - answered
    assert signal_s < SIGNAL_LIMIT_S

    record = expect_canceled(stack, running.result)
    ended_s = record.ended - answered if record.ended else 0.0
    assert all(is_gone(process) for process in processes)
    assert processes_of(running.result.id) == []
    assert running.checkpoints >= {"first", "last"}
    for result in (delayed, pending):
        assert expect_canceled(stack, result).attempts == []
    figures = {"call_s": answered - called, "signal_s": signal_s, "canceled_s": ended_s}
    record_property("cancel", figures)
    print("the call took, SIGTERM and `canceled` came after it:", {k: round(v, 2) for k, v in figures.items()})


@pytest.mark.timeout(150)
@pytest.mark.parametrize("cancel", WAYS, indirect=True)
def test_a_restoring_and_an_uploading_job_are_canceled_while_the_storage_is_away(
    stack: Stack, prefix: str, tmp_path: Path, cancel: Callable[[Sequence[str]], None], record_property: Record
) -> None:
    go, server = tmp_path / "go", stack.local.s3
    assert server is not None
    script = f"echo result > $OUTPUT_DIR/result; while [ ! -e {go} ]; do sleep 0.05; done"
    uploading = stack.submit_async(stack.shell(script, **stored_job_fields(stack, f"{prefix}up/")))
    fields = stored_job_fields(stack, f"{prefix}down/")
    stack.wait_executing(uploading.id)
    server.pause()
    go.touch()
    restoring = stack.submit_async(stack.shell("true", **fields))
    stack.wait("one restores", lambda: stack.get(restoring.id).phase == "restoring")
    stack.wait("one uploads", lambda: stack.get(uploading.id).phase == "uploading")
    cancel([restoring.id, uploading.id])
    answered = time.time()
    records = [expect_canceled(stack, result) for result in (restoring, uploading)]
    took = [record.ended - answered for record in records if record.ended]
    record_property("canceled_s", took)
    print("restoring and uploading, with the storage away, canceled after", [round(s, 2) for s in took], "s")
    server.resume()
    stored = stored_under(stack.s3, stack.bucket, f"{prefix}up/output/")
    assert not [key for key in stored if key.endswith("completed.json")]


def test_a_command_that_ignores_sigterm_is_killed_after_its_grace_period(stack: Stack, tmp_path: Path) -> None:
    script = f"trap '' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.1; done"
    result = stack.submit_async(stack.shell(script, grace_period=1))
    stack.wait("the command runs", said(tmp_path, "pid"))
    processes = processes_of(result.id)
    asked = time.time()
    assert stack.ledger.cancel(result.id) == "canceling"
    record = expect_canceled(stack, result)
    assert all(is_gone(process) for process in processes)
    assert record.attempts[0].signal == 9
    assert record.ended is not None
    print(f"a command that ignores SIGTERM, with a grace period of 1 s, ended after {record.ended - asked:.2f} s")
    assert record.ended - asked >= 1


@pytest.mark.parametrize("first", ["killed", "canceled"])
def test_a_canceled_job_whose_worker_was_killed_ends_as_canceled_and_never_runs_again(stack: Stack, first: str) -> None:
    result = stack.submit_async(stack.shell("sleep 60"))
    stack.wait_executing(result.id)
    number = stack.worker_of(result.id)
    stack.local.worker(number).pause()  # so that it cannot be the one that obeys
    if first == "killed":
        stack.kill_worker(number)
    assert stack.ledger.cancel(result.id) == "canceling"
    if first == "canceled":
        stack.kill_worker(number)
    record = stack.wait_status(result.id, "canceled", timeout_s=30)
    assert [(a.outcome, a.reason) for a in record.attempts] == [("interruption", "lease_expired")]
    assert (record.completions, record.num_failures) == (0, 0)
    expect_revoked(stack, result)
    stack.wait("its processes are gone", lambda: not processes_of(result.id))


def test_a_canceled_job_whose_worker_stands_still_is_canceled_and_its_command_ends_when_the_worker_goes_on(
    stack: Stack,
) -> None:
    result = stack.submit_async(stack.shell("sleep 60"))
    stack.wait_executing(result.id)
    worker = stack.local.worker(stack.worker_of(result.id))
    worker.pause()
    assert stack.ledger.cancel(result.id) == "canceling"
    record = stack.wait_status(result.id, "canceled", timeout_s=30)
    expect_revoked(stack, result)
    assert processes_of(result.id)
    worker.resume()
    stack.wait("its processes are gone", lambda: not processes_of(result.id))
    assert stack.get(result.id).ended == record.ended
