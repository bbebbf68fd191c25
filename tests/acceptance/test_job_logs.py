"""What jobs write: last lines from any machine, followed over kills; whole logs on the storage; no secret in either."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kelpie_celery.client import Kelpie
from kelpie_celery.errors import NoLog
from kelpie_celery.ledger import keys
from kelpie_celery.settings import load_settings
from tests.harness.stack import Stack, StackFactory

CANARY = "c4n4ry-in-a-log-file"


def kelpie_command(stack: Stack, *argv: str, **more: Any) -> subprocess.Popen[str]:
    env = {**os.environ, **stack.env(), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "kelpie_celery", *argv],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
    )  # fmt: skip


def run(stack: Stack, *argv: str) -> tuple[int, str, str]:
    with kelpie_command(stack, *argv) as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.fixture
def kelpie(stack: Stack) -> Iterator[Kelpie]:
    with Kelpie(settings=load_settings(stack.env())) as client:
        yield client


def logged(stack: Stack, prefix: str) -> dict[str, Any]:
    return {"log_bucket": stack.bucket, "log_prefix": f"{prefix}logs", "sync": {}}


def whole(stack: Stack, job_id: str, attempt: int) -> str:
    """The log of one attempt, as its history says where it is."""
    url = (stack.get(job_id).attempts[attempt - 1].model_extra or {})["log"]
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return stack.s3.get_object(Bucket=bucket, Key=key)["Body"].read().decode()


@pytest.mark.timeout(180)
def test_the_last_lines_are_read_while_it_runs_and_followed_over_a_kill_to_the_end(
    stack: Stack, kelpie: Kelpie, prefix: str
) -> None:
    script = """
    echo "attempt $KELPIE_ATTEMPT begins with $TOKEN"; printf '\\033[31mred\\033[0m\\n' >&2
    if [ $KELPIE_ATTEMPT = 1 ]; then sleep 600; fi
    for n in $(seq 300); do echo "line $n"; done; sleep 3; echo "all done"
    """
    job_id = stack.submit(stack.shell(script, environment={"TOKEN": CANARY}, **logged(stack, prefix)))
    follower = kelpie_command(stack, "logs", "-f", job_id)
    try:
        stack.wait("the first two lines are in the ledger", lambda: len(kelpie.logs(job_id).lines) >= 2)
        found = kelpie.logs(job_id)
        assert (found.attempt, found.first) == (1, 1)
        assert sorted(found.lines) == ["attempt 1 begins with ***", "red"]
        code, out, _ = run(stack, "logs", job_id, "--json")
        assert (code, sorted(json.loads(out)["lines"])) == (0, sorted(found.lines))
        with pytest.raises(NoLog, match="stored when the attempt ends"):
            kelpie.stored_log(job_id)

        stack.kill_worker(stack.worker_of(job_id), signal.SIGKILL)
        stack.wait_status(job_id, "completed", timeout_s=60)
        out, err = follower.communicate(timeout=30)
    finally:
        follower.kill()
        follower.communicate()
    assert follower.returncode == 0
    assert CANARY not in out + err
    assert "\x1b" not in out + err
    lines = out.splitlines()
    assert lines.count("attempt 1 begins with ***") == 1
    assert lines[-1] == "all done"
    # More lines than are kept came at once: what is left out is told, and nothing comes twice.
    numbers = [int(line.split()[1]) for line in lines if line.startswith("line ")]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 300
    missed = sum(int(number) for number in re.findall(r"(\d+) lines are left out", err))
    assert missed + len(lines) - 2 == 303, err
    assert re.search(r"attempt 1 on \S+\n(.*\n)*.*attempt 2 on \S+\n", err), err
    assert f"job {job_id} has ended: completed" in err

    # The node of the first attempt is gone, and its log with it; of a completed job 50 lines stay.
    assert "log" not in (stack.get(job_id).attempts[0].model_extra or {})
    log = whole(stack, job_id, 2)
    assert sorted(log.splitlines()) == sorted(
        ["attempt 2 begins with ***", "\x1b[31mred\x1b[0m", *(f"line {n}" for n in range(1, 301)), "all done"]
    )
    assert kelpie.logs(job_id).lines == (*(f"line {n}" for n in range(252, 301)), "all done")


@pytest.mark.timeout(120)
def test_whole_logs_are_stored_after_failures_a_cancel_and_a_shutdown_and_fetched(
    stack: Stack, kelpie: Kelpie, prefix: str, tmp_path: Path
) -> None:
    place = logged(stack, prefix)
    failing = stack.submit(stack.shell('echo "try $KELPIE_ATTEMPT"; echo $TOKEN >&2; exit 3', max_failures=2,
                                       environment={"TOKEN": CANARY}, **place))  # fmt: skip
    canceled = stack.submit(stack.shell("trap 'echo bye; exit 0' TERM; echo up; sleep 600 & wait", **place))
    stack.wait("it is up", lambda: kelpie.logs(canceled).lines)
    stack.ledger.cancel(canceled)
    record = stack.wait_status(canceled, "canceled")
    assert whole(stack, canceled, 1) == "up\nbye\n"
    assert kelpie.logs(canceled).lines == ("up", "bye")
    assert record.attempts[0].outcome == "canceled"

    assert stack.wait_status(failing, "failed").num_failures == 2
    for attempt in (1, 2):
        assert sorted(whole(stack, failing, attempt).split("\n")) == ["", "***", f"try {attempt}"]
    assert sorted(kelpie.logs(failing, 1).lines) == ["***", "try 1"]
    code, out, err = run(stack, "logs", "--whole", "--attempt", "1", failing)
    assert (code, sorted(out.splitlines())) == (0, ["***", "try 1"]), err
    target = tmp_path / "a.log"
    assert run(stack, "logs", "--whole", failing, "-o", str(target))[0] == 0
    assert sorted(target.read_text().splitlines()) == ["***", "try 2"]

    stopped = stack.submit(
        stack.shell('echo "try $KELPIE_ATTEMPT"; [ $KELPIE_ATTEMPT = 2 ] || exec sleep 600', **place)
    )
    stack.wait("it is up", lambda: kelpie.logs(stopped).lines)
    stack.kill_worker(stack.worker_of(stopped), signal.SIGTERM)
    stack.wait_status(stopped, "completed", timeout_s=60)
    assert [whole(stack, stopped, attempt) for attempt in (1, 2)] == ["try 1\n", "try 2\n"]
    assert CANARY not in str(stack.ledger.redis.lrange(keys.attempts(stack.group, failing), 0, -1))


@pytest.mark.timeout(120)
def test_a_flood_of_output_is_bounded_everywhere_and_slows_nothing(make_stack: StackFactory, tmp_path: Path) -> None:
    stack = make_stack(workers=1, beat=False, KELPIE_LOG_BYTES="1M", KELPIE_LOG_BUCKET="flood-logs")
    stack.s3.create_bucket(Bucket="flood-logs")
    script = """
import os, sys
block = (b"x" * 999 + b"\\n") * 1000
os.write(1, b"the beginning\\n")
for _ in range(300):
    view = memoryview(block)
    while view:
        view = view[os.write(1, view):]
os.write(1, b"\\xff\\x00\\x1b[2Jthe end\\n")
"""
    job_id = stack.submit(stack.definition(sys.executable, "-c", script))
    record = stack.wait_status(job_id, "completed", timeout_s=90)
    assert record.num_interruptions == 0
    facts = record.attempts[0].model_extra or {}
    assert facts["log"].startswith(f"s3://flood-logs/logs/{job_id}/1-")
    assert facts["log_bytes"] < (1 << 20) + 500
    body = stack.s3.get_object(Bucket="flood-logs", Key=facts["log"].removeprefix("s3://flood-logs/"))["Body"].read()
    assert body.startswith(b"the beginning\n")
    assert body.endswith(b"x\n\xff\x00\x1b[2Jthe end\n")
    assert b"bytes of output are left out here: a log keeps 1048576" in body
    kept = stack.ledger.redis.lrange(keys.output(stack.group, job_id), 0, -1)
    assert len(kept) <= 50
    assert kept[-1] == "\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}the end"
    memory_bytes = stack.ledger.redis.memory_usage(keys.output(stack.group, job_id))
    assert memory_bytes is not None
    assert memory_bytes < 32_768


@pytest.mark.timeout(120)
def test_a_log_that_cannot_be_stored_harms_no_job_and_is_told(stack: Stack, kelpie: Kelpie, prefix: str) -> None:
    job_id = stack.submit(stack.shell("echo hello", sync={}, log_bucket="there-is-no-such-bucket", log_prefix="logs"))
    began = time.monotonic()
    record = stack.wait_status(job_id, "completed")
    assert time.monotonic() - began < 25
    assert "there-is-no-such-bucket" in (record.attempts[0].model_extra or {})["log_failed"]
    with pytest.raises(NoLog, match="storing it failed"):
        kelpie.stored_log(job_id)
    assert kelpie.logs(job_id).lines == ("hello",)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("point", ["before_log", "before_report"])
def test_a_worker_that_dies_while_the_log_goes_up_has_no_job_run_twice(
    stack: Stack, prefix: str, point: str, tmp_path: Path
) -> None:
    runs, name = tmp_path / "runs", f"log-{prefix.strip('/')}"
    stack.arm(point, job=name)
    job_id = stack.submit(stack.shell(f"echo run >> {runs}", tags={"name": name}, **logged(stack, prefix)))
    record = stack.wait_status(job_id, "completed", timeout_s=60)
    assert not stack.armed(point, name), "no worker passed the point"
    assert runs.read_text() == "run\n"
    assert [str(a.reason) for a in record.attempts] == ["lease_expired", "adopted"]
    assert (record.completions, record.attempts[1].execute_s) == (1, 0)
    result = stack.run_job.AsyncResult(job_id).get(timeout=30)
    assert (result["attempt"], result["exit_code"]) == (1, 0)


@pytest.mark.timeout(120)
def test_an_interrupted_follower_ends_with_130_and_leaves_the_job_alone(stack: Stack) -> None:
    job_id = stack.submit(stack.shell("echo up; exec sleep 600"))
    follower = kelpie_command(stack, "logs", "-f", "--json", job_id)
    try:
        assert follower.stdout is not None
        assert json.loads(follower.stdout.readline()) == {"attempt": 1, "line": 1, "text": "up"}
        follower.send_signal(signal.SIGINT)
        _, err = follower.communicate(timeout=30)
    finally:
        follower.kill()
        follower.communicate()
    assert follower.returncode == 130
    assert "interrupted" in err
    assert stack.get(job_id).status == "running"
