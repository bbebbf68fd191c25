"""Celery's own command line on a real stack: it starts whole workers, looks into them, cancels, drains, purges."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from kelpie_celery.ledger import keys
from kelpie_celery.local.servers import SeaweedServer
from kelpie_celery.local.stack import QUIET
from tests.harness.looking import outputs_under
from tests.harness.stack import GROUP, Stack

CANARY = "secret-canary-of-a-job"
MISSPELT = {"KELPIE_SLOT": CANARY, "KELPIE_MINE": CANARY}
CELERY = (sys.executable, "-m", "celery", "-A", "kelpie_celery")
QUEUE = keys.queue_name(GROUP)
REPORT = """echo '{"progress": 0.25, "message": "a quarter"}' >> $KELPIE_REPORT; """
LOOP = "while :; do sleep 0.1; done"


class CeleryStack(Stack):
    """A stack whose workers are started through Celery's command line."""

    def start(self) -> Self:
        self.local.start_servers()
        for name in ("control", "beat"):
            self.local.start_helper(name)
        return self.start_workers(1, 2)

    def start_workers(self, *numbers: int) -> Self:
        """Start workers, and wait until all are ready."""
        for number in numbers:
            extra = () if number == 1 else QUIET  # both ways have to work
            self.local._worker_command = [*CELERY, "worker", "-Q", QUEUE, "-n", self.node(number), *extra]
            self.local.start_worker(number)
        self.local.wait_ready()
        return self

    @staticmethod
    def node(number: int) -> str:
        return f"kelpie@node-{number}"

    def celery(self, *argv: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run the command line; it ends with ``code``, and tells once which of its settings is misspelt."""
        env = {**os.environ, **self.env(), "NO_COLOR": "1"}
        done = subprocess.run([*CELERY, *argv], env=env, capture_output=True, text=True, timeout=150, check=False)
        assert done.returncode == code, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}\n{self.dump()}"
        told = "KELPIE_SLOT is not a setting, and is ignored; did you mean 'KELPIE_SLOTS'?"
        assert done.stderr.count(told) == ("Usage:" not in done.stderr), done.stderr
        assert "KELPIE_MINE" not in done.stderr
        assert CANARY not in done.stdout + done.stderr
        return done

    def inspect(self, number: int) -> dict[str, Any]:
        """What one worker tells of itself."""
        return dict(self.asked("jobs", self.node(number)))

    def asked(self, command: str, *destination: str, **arguments: str) -> Any:
        """The answer of one worker to a command."""
        broadcast: Any = self.app.control.broadcast

        def ask() -> Any:
            # One that has just come up may not listen yet, and what it did not hear is gone.
            return broadcast(command, arguments, destination=destination, reply=True, timeout=10, limit=1)

        (answer,) = self.wait(f"{destination} answers", ask, 90.0)
        return next(iter(answer.values()))


@pytest.fixture(scope="module")
def whole(servers_directory: Path, s3_server: SeaweedServer) -> Iterator[CeleryStack]:
    """A control worker, beat, and two workers with one slot each."""
    stack = CeleryStack(
        servers_directory / "celery-cli", s3_server, workers=0, bucket=f"cli-{uuid.uuid4().hex[:12]}", env=MISSPELT
    )
    try:
        yield stack.start()
    finally:
        stack.close()


@pytest.fixture
def stack(whole: CeleryStack) -> Iterator[CeleryStack]:
    """The same, whole again: both workers take jobs, and no job of another test is left."""
    yield whole
    for job_id in whole.submitted:
        whole.ledger.cancel(job_id)
    for job_id in whole.submitted:
        whole.wait(f"{job_id} has ended", lambda one=job_id: whole.get(one).status.ended)  # type: ignore[misc]
    whole.submitted.clear()


def restart(stack: CeleryStack, *numbers: int) -> None:
    """End workers in good order, and start them again."""
    for number in numbers:
        stack.local.stop_worker(number)
    stack.start_workers(*numbers)


def running_on(stack: CeleryStack, job_id: str) -> int:
    stack.wait_executing(job_id)
    return stack.worker_of(job_id)


# -- a worker -----------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_a_worker_that_celery_starts_does_all_that_a_worker_does(stack: CeleryStack) -> None:
    places: dict[str, Any] = {f"{role}_bucket": stack.bucket for role in ("input", "checkpoint", "output")}
    places |= {f"{role}_prefix": f"whole/{role}/" for role in ("input", "checkpoint", "output")}
    stack.s3.put_object(Bucket=stack.bucket, Key="whole/input/a", Body=b"alpha")
    script = (
        f"cp $INPUT_DIR/a $OUTPUT_DIR/b; echo 1 >> $CHECKPOINT_DIR/tries; {REPORT}"
        f"[ $KELPIE_ATTEMPT -gt 1 ] && exec cp $CHECKPOINT_DIR/tries $OUTPUT_DIR/tries; trap 'exit 0' TERM; {LOOP}"
    )
    result = stack.submit_async(stack.shell(script, **places))
    first = running_on(stack, result.id)
    stack.wait("a checkpoint is stored", lambda: stack.get(result.id).num_commits > 0)
    # One slot each: the second job has the other worker, the third waits.
    others = [stack.submit(stack.shell(LOOP)) for _ in range(2)]
    stack.wait_executing(others[0])
    assert stack.get(others[1]).status == "pending"
    assert stack.worker_of(others[0]) != first

    stack.ledger.cancel(others[1])
    stack.ledger.cancel(others[0])
    stack.wait_status(others[0], "canceled")  # heard of with the pulse
    assert stack.local.stop_worker(first)  # SIGTERM: the job is handed over
    assert stack.local.worker(first).exit_code == 0
    assert result.get(timeout=60)["exit_code"] == 0
    record = stack.get(result.id)
    assert [a.outcome for a in record.attempts] == ["interruption", "completed"]
    assert (record.num_failures, record.completions) == (0, 1)
    assert len({a.machine for a in record.attempts}) == 2
    found = outputs_under(stack.s3, stack.bucket, "whole/output/")
    assert found == {"b": b"alpha", "tries": b"1\n1\n"}
    stack.start_workers(first)


# -- what Celery's own commands show ------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_jobs_are_shown_by_inspect_and_nothing_secret_is(stack: CeleryStack) -> None:
    job = stack.submit(stack.shell(f"{REPORT}{LOOP}", environment={"TOKEN": CANARY}))
    number = running_on(stack, job)
    stack.wait("it has said something", lambda: stack.get(job).progress)
    node, one = stack.node(number), ("-t", "60", "-d", stack.node(number))

    told = json.loads(stack.celery("inspect", "jobs", "--json", *one).stdout)[node]
    assert (told["takes_jobs"], told["why_not"], told["container_groups"], told["slots"]) == (True, [], [GROUP], 1)
    (entry,) = told["jobs"]
    assert 0 < entry.pop("seconds") < 300
    assert entry == {
        "id": job, "attempt": 1, "phase": "executing", "progress": 0.25, "message": "a quarter",
        "machine_id": machine_of(stack, number),
    }  # fmt: skip
    assert stack.inspect(3 - number)["jobs"] == []
    control = stack.asked("jobs", f"control@{socket.gethostname()}")
    assert (control["takes_jobs"], control["why_not"]) == (False, ["it serves no container group"])

    assert job in stack.celery("inspect", "jobs", *one).stdout
    assert job in stack.celery("inspect", "active", *one).stdout
    assert "kelpie.run_job" in stack.asked("registered", node)
    assert stack.asked("stats", node)["pool"]["implementation"] == "kelpie_celery.pool:TaskPool"
    assert f"{node}: OK" in stack.celery("status", *one).stdout


@pytest.mark.timeout(300)
def test_events_show_what_becomes_of_a_job(stack: CeleryStack) -> None:
    argv = [*CELERY, "events", "--dump"]
    env = {**os.environ, **stack.env(), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as events:
        try:
            assert events.stdout is not None
            lines = iter(events.stdout.readline, "")
            next(line for line in lines if "heartbeat" in line or "worker-" in line)  # it hears
            job = stack.submit(stack.shell("true", environment={"TOKEN": CANARY}))
            seen = []
            for line in lines:
                seen.append(line)
                if "task-succeeded" in line or "task succeeded" in line:
                    break
        finally:
            events.send_signal(signal.SIGKILL)
    text = "".join(seen)
    assert job in text
    assert CANARY not in text


# -- cancel_job ---------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_cancel_job_cancels_whatever_waits_or_runs_anywhere(stack: CeleryStack) -> None:
    running, quick = stack.submit(stack.shell(LOOP)), stack.submit(stack.shell("true"))
    stack.wait_executing(running)
    stack.wait_status(quick, "completed")
    elsewhere = stack.submit(stack.shell("true", container_group_id="elsewhere"))

    told = stack.celery("control", "cancel_job", running, "no-such-job", elsewhere, quick, "-t", "3", code=2)
    assert f"{running}: canceling" in told.stdout
    assert f"{elsewhere}: canceled" in told.stdout
    assert f"{quick}: completed" in told.stdout  # an ended job stays what it is
    assert "no job has the id 'no-such-job'; 'kelpie list' shows the ids" in told.stderr
    assert stack.wait_status(running, "canceled").num_failures == 0
    assert (stack.get(elsewhere).status, stack.get(quick).status) == ("canceled", "completed")

    # Nobody answers: the cancel is on record all the same, and the others' worker will read it there.
    lonely = stack.submit(stack.shell("true", container_group_id="elsewhere"))
    told = stack.celery("control", "cancel_job", lonely, "-d", "nobody@nowhere", "--json")
    assert (json.loads(told.stdout), stack.get(lonely).status) == ([], "canceled")
    assert "the cancel is recorded" in told.stderr


@pytest.mark.timeout(300)
def test_a_worker_cancels_no_job_of_another_group_whoever_asks(stack: CeleryStack) -> None:
    foreign = stack.submit(stack.shell("true", container_group_id="elsewhere"))

    answer = stack.asked("cancel_job", stack.node(1), job_id=foreign)
    assert answer == {"ok": f"{foreign}: a job of another container group, left to its own workers"}
    assert stack.get(foreign).status == "pending"
    assert "no job has the id 'nope'" in stack.asked("cancel_job", stack.node(1), job_id="nope")["error"]
    mine = stack.submit(stack.shell(LOOP))
    stack.wait_executing(mine)
    other = stack.node(3 - stack.worker_of(mine))
    assert stack.asked("cancel_job", other, job_id=mine) == {"ok": f"{mine}: canceling"}
    stack.wait_status(mine, "canceled")


# -- drain --------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_a_drained_worker_finishes_its_job_and_takes_no_other_whatever_the_scaler_does(stack: CeleryStack) -> None:
    go = stack.local.directory / "go"
    job = stack.submit(stack.shell(f"{REPORT} until [ -e {go} ]; do sleep 0.1; done"))
    number = running_on(stack, job)
    assert "-d kelpie@node-1 drains that worker alone" in stack.celery("control", "drain", stack.node(1), code=2).stderr

    told = stack.celery("control", "drain", "-d", stack.node(number), "-t", "60")
    assert f"takes no more jobs until it is started again; jobs at work: {job}" in told.stdout
    drained = stack.inspect(number)
    assert (drained["takes_jobs"], drained["why_not"]) == (False, ["drained by hand"])
    assert [entry["id"] for entry in drained["jobs"]] == [job]
    assert stack.inspect(3 - number)["takes_jobs"]

    go.touch()
    stack.wait_status(job, "completed")
    stack.wait("the ledger knows", lambda: stack.ledger.workers(GROUP).facts.withdrawn == 1)
    facts = stack.ledger.workers(GROUP).facts
    assert (facts.workers, facts.busy, facts.draining) == (2, 0, 0)
    # The scaler would take this one first, and takes its own drain back.
    assert stack.ledger.drain(GROUP, 1).chosen == 1
    holder = next(w.id for w in stack.ledger.worker_entries(GROUP) if w.machine == machine_of(stack, number))
    assert stack.ledger.redis.hget(keys.worker(GROUP, holder), "draining")
    assert stack.ledger.drain(GROUP, 0).taken_back == 1
    jobs = [stack.submit(stack.shell("true")) for _ in range(4)]
    for one in jobs:
        assert stack.wait_status(one, "completed").machine_id == machine_of(stack, 3 - number)
    assert stack.inspect(number)["why_not"] == ["drained by hand"]

    restart(stack, number)
    assert stack.inspect(number)["takes_jobs"]


def machine_of(stack: CeleryStack, number: int) -> str:
    return stack.local.machines[number].machine_id


@pytest.mark.timeout(300)
def test_a_purge_loses_no_job(stack: CeleryStack) -> None:
    # Nobody serves this group; the control worker maintains all.
    jobs = [stack.submit(stack.shell("true", priority=number, container_group_id="unserved")) for number in (0, 5)]

    def lengths() -> list[int]:
        return [stack.ledger.redis.llen(keys.queue_list("unserved", number)) for number in (0, 5)]

    assert lengths() == [1, 1]
    # Without -Q it empties the queues that the app knows, and knows none of ours.
    assert "No messages purged" in stack.celery("purge", "-f").stdout
    assert lengths() == [1, 1]
    assert "Purged 2 messages" in stack.celery("purge", "-f", "-Q", keys.queue_name("unserved")).stdout
    assert {stack.get(job).status for job in jobs} == {"pending"}
    stack.wait("their messages are back", lambda: lengths() == [1, 1], 60.0)


# -- kelpie below celery ------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_the_kelpie_commands_are_below_celerys(stack: CeleryStack) -> None:
    definition = stack.local.directory / "job.json"
    definition.write_text(json.dumps(stack.shell("exit 3", max_failures=1)))
    job = stack.celery("kelpie", "submit", str(definition)).stdout.strip()
    stack.submitted.append(job)
    waited = stack.celery("kelpie", "wait", job, "--timeout", "100", "--json", code=1)
    assert [(one["id"], one["status"]) for one in json.loads(waited.stdout)] == [(job, "failed")]
    assert "kelpie: error: no job has the id 'nope'" in stack.celery("kelpie", "get", "nope", code=2).stderr
    stack.celery("kelpie", "list", "--redis-url", "redis://127.0.0.1:1/0", code=69)


# -- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["control", "beat", "worker-1"])
def test_a_misspelt_setting_is_told_once_in_the_log_of_who_serves(stack: CeleryStack, name: str) -> None:
    text = stack.local.processes[name].log.read_text()  # the file goes on where a worker is started again
    starts = text.count("action=unknown_setting setting=KELPIE_MINE")
    assert starts >= 1
    assert text.count("action=unknown_setting setting=KELPIE_SLOT did_you_mean=KELPIE_SLOTS") == starts
    assert text.count("KELPIE_SLOT is not a setting") == starts
    assert CANARY not in text
