"""Flower shows jobs as they are, without a secret; its buttons cancel for good; strangers see nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.flower import Visitor
from tests.harness.stack import Stack

CANARY = "canary-5e5e9b0f"
SAYS_WITHIN_S = 30.0


def reporting(stack: Stack, hold: Path) -> dict[str, object]:
    """A job that says how far it is, and then waits until it is ended."""
    script = f"""
        echo '{{"progress": 0.42, "message": "epoch 3 <b> of '$TOKEN'"}}' >> $KELPIE_REPORT
        touch {hold}; while :; do sleep 0.1; done # {CANARY}-argument
    """
    return stack.shell(script, tags={"name": "md 7"}, environment={"TOKEN": f"{CANARY}-environment"})


@pytest.fixture
def visitor(flower_stack: Stack) -> Visitor:
    assert flower_stack.local.flower is not None
    return Visitor(flower_stack.local.flower)


def shows(stack: Stack, visitor: Visitor, job_id: str, state: str, **fields: str) -> dict[str, object]:
    """Wait until Flower shows a job in a state, with these words in these fields; all that it knows of it."""

    def look() -> dict[str, object] | None:
        task = visitor.task(job_id)
        fits = task.get("state") == state and all(word in str(task.get(name)) for name, word in fields.items())
        return task if fits else None

    return stack.wait(f"Flower shows {job_id} as {state} with {fields}", look, SAYS_WITHIN_S)


def page_with(visitor: Visitor, path: str, words: str) -> str:
    """A page, once it has these words; empty before."""
    page = visitor.page(path)
    return page if words in page else ""


def task_worker(visitor: Visitor, job_id: str) -> str:
    return str(visitor.task(job_id)["worker"])


@pytest.mark.timeout(120)
def test_a_running_job_is_described_without_its_secrets_and_terminate_cancels_it(
    flower_stack: Stack, visitor: Visitor, tmp_path: Path
) -> None:
    stack = flower_stack
    job_id = stack.submit(reporting(stack, tmp_path / "runs"))
    task = shows(stack, visitor, job_id, "STARTED", result="executing: 42 %: epoch 3 <b> of ***")
    assert task["args"] == f"name 'md 7', command 'sh', group '{stack.group}'"
    assert task["kwargs"] == "{}"
    assert task["retries"] == 0
    machine = stack.get(job_id).machine_id
    assert task["worker"] == f"kelpie@{machine}"
    assert float(str(task["started"])) == pytest.approx(stack.get(job_id).attempts[0].started, abs=30)

    table, page = visitor.table(), visitor.page(f"/task/{job_id}")
    assert "42 %: epoch 3" in table
    # The control worker's rounds, two every few seconds, would bury the jobs, and push them out of Flower's memory.
    assert {task["name"] for task in json.loads(table)["data"]} == {"kelpie.run_job"}
    assert "42 %: epoch 3 &lt;b&gt; of ***" in page
    assert 'id="task-terminate"' in page
    # The worker is asked for what it runs, and what it answers after a second is not shown.
    worker = stack.wait("its worker's page shows it", lambda: page_with(visitor, f"/worker/kelpie@{machine}", job_id))
    metrics = visitor.page("/metrics")
    # Though its start was announced several times.
    held = [line for line in metrics.splitlines() if line.startswith("flower_worker_prefetched_tasks{")]
    assert [float(line.split()[-1]) for line in held] == [0.0], held
    pages = [table, page, worker, visitor.page("/workers"), visitor.page("/broker"), metrics]
    everything = "\n".join([*pages, visitor.page("/api/workers?refresh=1"), str(visitor.task(job_id))])
    for secret in (CANARY, stack.env()["AWS_SECRET_ACCESS_KEY"], stack.env()["FLOWER_BASIC_AUTH"].split(":")[1]):
        assert secret not in everything

    visitor.revoke(job_id, terminate=True)
    record = stack.wait_status(job_id, "canceled")
    assert [a.outcome for a in record.attempts] == ["canceled"]
    shows(stack, visitor, job_id, "REVOKED", result="canceled")


@pytest.mark.timeout(120)
def test_a_failed_try_says_why_and_revoke_cancels_the_job_that_waits_for_the_next(
    flower_stack: Stack, visitor: Visitor
) -> None:
    stack = flower_stack
    job_id = stack.submit(stack.shell("exit 3", max_failures=2))
    task = shows(stack, visitor, job_id, "RETRY", exception="exit_code")
    assert task["exception"] == "JobFailed: exit_code: the command exited with code 3"
    assert task["result"] == f"attempt 1 ended: {task['exception']}"
    assert not task["traceback"]
    assert stack.get(job_id).status == "pending"
    assert 'id="task-revoke"' in visitor.page(f"/task/{job_id}")
    visitor.revoke(job_id, terminate=False)
    stack.wait_status(job_id, "canceled")
    shows(stack, visitor, job_id, "REVOKED", result="canceled")


@pytest.mark.timeout(150)
def test_a_killed_worker_an_interruption_and_the_queues_are_shown_as_they_are(
    flower_stack: Stack, visitor: Visitor, tmp_path: Path
) -> None:
    stack = flower_stack
    killed, queue = stack.submit(reporting(stack, tmp_path / "killed")), f"kelpie.{stack.group}"
    stack.wait_executing(killed)
    stack.kill_worker(1)
    task = shows(stack, visitor, killed, "RETRY", exception="lease_expired")
    assert str(task["result"]).startswith("attempt 1 ended: JobInterrupted: lease_expired: machine ")
    unserved = [stack.submit(stack.shell("true", container_group_id="unserved", priority=p)) for p in (0, 3, 9, 9)]
    lengths = visitor.queue_lengths()
    assert (lengths[queue], lengths["kelpie.unserved"]) == (1, 4)
    assert "kelpie.unserved" in visitor.page("/broker")
    for job_id in unserved:
        visitor.revoke(job_id, terminate=False)
        stack.wait_status(job_id, "canceled")
        # Flower had not heard of it before.
        assert "'sh'" in str(shows(stack, visitor, job_id, "REVOKED")["args"])

    stack.start_worker(1)
    stack.wait_executing(killed, attempt=2)
    assert shows(stack, visitor, killed, "STARTED", result="attempt 2")["retries"] == 1
    worker = stack.local.workers[1]
    status, text = visitor.ask(f"/api/worker/shutdown/{task_worker(visitor, killed)}", "POST")
    assert status == 200, text
    task = shows(stack, visitor, killed, "RETRY", exception="worker_shutdown")
    assert task["exception"] == "JobInterrupted: worker_shutdown: the worker was told to end"
    stack.wait("the worker ends", lambda: not worker.running)
    visitor.revoke(killed, terminate=True)
    stack.wait_status(killed, "canceled")
    shows(stack, visitor, killed, "REVOKED")
    stack.start_worker(1)


def test_without_the_password_nothing_is_shown(flower_stack: Stack, visitor: Visitor) -> None:
    assert flower_stack.local.flower is not None
    stranger, guesser = (Visitor(flower_stack.local.flower, given) for given in ("", "kelpie:guess"))
    for path in ("/", "/workers", "/tasks", "/broker", "/task/x", "/metrics", "/api/workers", "/api/queues/length"):
        assert [who.ask(path)[0] for who in (stranger, guesser)] == [401, 401], path
    assert stranger.ask("/api/task/revoke/x?terminate=true", "POST")[0] == 401
    assert stranger.ask("/healthcheck")[0] == 200
    assert "flower_worker_online" in visitor.page("/metrics")


def refused(stack: Stack, directory: Path, *options: str, code: int = 1) -> subprocess.CompletedProcess[str]:
    """Start Flower by Celery's own command, without a password; it does not start, and says why."""
    given = {**os.environ, **stack.env()}
    env = {name: value for name, value in given.items() if not name.startswith("FLOWER_")}
    argv = [sys.executable, "-m", "celery", "-A", "kelpie_celery", "flower", "--port=0", *options]
    done = subprocess.run(argv, env=env, cwd=directory, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_celerys_own_command_refuses_to_show_flower_to_everybody(flower_stack: Stack, tmp_path: Path) -> None:
    done = refused(flower_stack, tmp_path, "--address=0.0.0.0")
    assert "would listen on 0.0.0.0" in done.stderr
    assert "FLOWER_BASIC_AUTH=USER:PASSWORD" in done.stderr
    assert "Visit me" not in done.stderr


def test_what_flower_cannot_do_is_said_in_words(flower_stack: Stack, tmp_path: Path) -> None:
    assert flower_stack.local.flower is not None
    taken = flower_stack.local.flower.port
    done = refused(flower_stack, tmp_path, f"--port={taken}")
    assert f"cannot listen on 127.0.0.1:{taken}: Address already in use" in done.stderr
    done = refused(flower_stack, tmp_path, "--port=many", code=2)
    assert "an option of Flower's, or a FLOWER_... variable, is refused: " in done.stderr
    assert "'many'" in done.stderr
