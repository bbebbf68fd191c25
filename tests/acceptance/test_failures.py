"""Commands that fail, limits that are exceeded, inputs that are missing; and what a job sees of its worker."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kelpie_celery.errors import JobFailed
from kelpie_celery.ledger.records import JobRecord
from tests.harness.looking import outputs_under, said, stored_job_fields
from tests.harness.stack import Stack

ALONE = "lonely-group"


def lonely_worker(stack: Stack, **env: str) -> int:
    """A worker that is the only one of its container group."""
    return stack.start_worker(None, machine_id=None, SALAD_CONTAINER_GROUP_ID=ALONE, **env)


def wait_failed(stack: Stack, *job_ids: str) -> list[JobRecord]:
    return [stack.wait_status(job_id, "failed", timeout_s=60) for job_id in job_ids]


def expect_three_tries(record: JobRecord, machines: int) -> None:
    assert (record.status, record.reason, record.num_failures, record.num_interruptions) == (
        "failed",
        "exit_code",
        3,
        0,
    )
    assert [(a.outcome, a.reason, a.exit_code) for a in record.attempts] == [("failure", "exit_code", 1)] * 3
    assert len({a.machine for a in record.attempts}) == machines


def test_a_job_that_exits_with_1_is_tried_on_three_machines_and_fails_with_its_reason(stack: Stack) -> None:
    result = stack.submit_async(stack.shell("echo the end is near; exit 1", max_failures=3))
    with pytest.raises(JobFailed) as failed:
        result.get(timeout=60)
    record = stack.get(result.id)
    expect_three_tries(record, machines=3)
    assert (failed.value.job_id, failed.value.reason) == (result.id, "exit_code")
    assert "code 1" in failed.value.message
    assert record.message is not None
    assert "code 1" in record.message
    assert all("the end is near" in (a.model_extra or {})["output_tail"] for a in record.attempts)
    assert result.state == "FAILURE"


def test_a_job_that_exits_with_1_ends_where_there_is_one_machine_only(stack: Stack) -> None:
    lonely_worker(stack)
    result = stack.submit_async(stack.shell("exit 1", max_failures=3, container_group_id=ALONE))
    with pytest.raises(JobFailed):
        result.get(timeout=60)
    expect_three_tries(stack.get(result.id), machines=1)


def test_a_command_that_cannot_be_started_or_is_killed_fails_with_a_reason_and_words_that_help(
    stack: Stack, tmp_path: Path
) -> None:
    plain_file = tmp_path / "run-me"
    plain_file.write_text("#!/bin/sh\n")
    plain_file.chmod(0o644)
    missing = stack.submit(stack.definition("no-such-command", max_failures=2))
    refused = stack.submit(stack.definition(str(plain_file), max_failures=1))
    killed = stack.submit(stack.shell("kill -SEGV $$", max_failures=1))
    not_found, not_executable, by_signal = wait_failed(stack, missing, refused, killed)
    assert [(r.reason, r.num_failures) for r in (not_found, not_executable, by_signal)] == [
        ("setup", 2),
        ("setup", 1),
        ("signal", 1),
    ]
    for record, words in (
        (not_found, ("no-such-command", "not found", "PATH")),
        (not_executable, ("run-me", "chmod +x")),
        (by_signal, ("SIGSEGV",)),
    ):
        assert record.message is not None
        assert all(word in record.message for word in words), record.message
    assert by_signal.attempts[0].signal == 11
    assert by_signal.attempts[0].exit_code is None


def test_time_limits_end_a_command_that_takes_too_long_or_says_nothing(
    stack: Stack, record_property: Callable[[str, object], None]
) -> None:
    slow = stack.submit(stack.shell("sleep 60", timeout=1, max_failures=2))
    silent = stack.submit(stack.shell("sleep 60", stall_timeout=1, max_failures=1))
    total = stack.submit(stack.shell("sleep 60", total_timeout=1, max_failures=5))
    talker = stack.submit(stack.shell("for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.5; done", stall_timeout=3))
    timeout, stalled, total_timeout = wait_failed(stack, slow, silent, total)
    assert [(r.reason, r.num_failures) for r in (timeout, stalled, total_timeout)] == [
        ("timeout", 2),
        ("stalled", 1),
        ("total_timeout", 1),  # whatever max_failures says
    ]
    for record, limit in ((timeout, "timeout"), (stalled, "stall_timeout"), (total_timeout, "total_timeout")):
        assert record.message is not None
        assert f"{limit} of 1 s" in record.message
    stack.wait_status(talker, "completed")
    ran = [(a.ended or 0) - a.started for r in (timeout, stalled, total_timeout) for a in r.attempts]
    record_property("limited_attempts_s", ran)
    print("attempts with a limit of 1 s took", [round(s, 2) for s in ran])


def test_exit_75_after_a_new_checkpoint_goes_on_and_counts_as_nothing(stack: Stack, prefix: str) -> None:
    script = """
        n=$(cat $CHECKPOINT_DIR/n 2>/dev/null || echo 0); n=$((n + 1))
        echo $n > $CHECKPOINT_DIR/n; echo $n > $OUTPUT_DIR/n
        [ $n = 3 ] || exit 75
    """
    job_id = stack.submit(stack.shell(script, max_failures=1, **stored_job_fields(stack, prefix)))
    record = stack.wait_status(job_id, "completed", timeout_s=60)
    assert (record.num_failures, record.num_interruptions, record.completions) == (0, 0, 1)
    assert [(a.outcome, a.reason) for a in record.attempts] == [
        ("continue", "checkpointed"),
        ("continue", "checkpointed"),
        ("completed", "done"),
    ]
    assert outputs_under(stack.s3, stack.bucket, f"{prefix}output/") == {"n": b"3\n"}


def test_exit_75_without_a_new_checkpoint_is_a_failure(stack: Stack, prefix: str) -> None:
    script = "[ -e $CHECKPOINT_DIR/once ] || echo 1 > $CHECKPOINT_DIR/once; exit 75"
    job_id = stack.submit(stack.shell(script, max_failures=2, **stored_job_fields(stack, prefix)))
    (record,) = wait_failed(stack, job_id)
    assert (record.reason, record.num_failures) == ("no_progress", 2)
    assert [(a.outcome, a.reason) for a in record.attempts] == [
        ("continue", "checkpointed"),
        ("failure", "no_progress"),
        ("failure", "no_progress"),
    ]
    assert record.message is not None
    assert "without a new checkpoint" in record.message


def test_what_a_job_reports_stands_in_its_record_while_it_runs(stack: Stack, tmp_path: Path) -> None:
    go = tmp_path / "go"
    script = f"""
        echo '{{"progress": 0.25, "message": "a quarter"}}' >> $KELPIE_REPORT
        while [ ! -e {go} ]; do sleep 0.05; done
        echo '{{"progress": 0.75}}' >> $KELPIE_REPORT
    """
    job_id = stack.submit(stack.shell(script))

    def reported() -> Any:
        progress = stack.get(job_id).progress
        return progress and progress.message == "a quarter" and progress.progress == 0.25

    stack.wait("a quarter is reported", reported)
    assert stack.get(job_id).status == "running"
    go.touch()
    stack.wait_status(job_id, "completed")


def test_a_missing_input_or_bucket_never_starts_the_command_and_fails_with_its_name(
    stack: Stack, prefix: str, tmp_path: Path
) -> None:
    nowhere = f"no-such-bucket-{os.getpid()}"
    given = stored_job_fields(stack, prefix, {"data.csv": b"1,2\n"})
    block = {"bucket": stack.bucket, "prefix": f"{prefix}input/", "local_path": "data", "direction": "download"}
    started = tmp_path / "started"
    fields: list[dict[str, Any]] = [
        {**given, "input_prefix": f"{prefix}nothing-here/"},
        {**given, "input_bucket": nowhere},
        {"sync": {"before": [{**block, "pattern": "[.]parquet$"}]}},
        {**given, "output_bucket": nowhere},
    ]
    jobs = [stack.submit(stack.shell(f"touch {started}-{i}", max_failures=2, **job)) for i, job in enumerate(fields)]
    for record, names in zip(
        wait_failed(stack, *jobs[:3]),
        [(stack.bucket, f"{prefix}nothing-here/"), (nowhere, f"{prefix}input/"), (stack.bucket, prefix, "parquet")],
        strict=True,
    ):
        assert (record.reason, record.num_failures, record.num_interruptions) == ("setup", 2, 0)
        assert record.message is not None
        assert all(name in record.message for name in names), record.message
        assert [a.exit_code for a in record.attempts] == [None, None]
    (no_output,) = wait_failed(stack, jobs[3])
    assert (no_output.reason, no_output.num_failures) == ("setup", 2)
    assert nowhere in (no_output.message or "")
    assert [path.name for path in tmp_path.glob("started-[012]")] == []


def test_a_job_sees_who_it_is_where_its_files_are_and_not_the_broker(stack: Stack, tmp_path: Path) -> None:
    seen = tmp_path / "environment"
    own = {"GREETING": "hello\nworld", "PATH": os.environ["PATH"], "LANG": "xx_XX"}
    script = f'echo "[]" | cmp -s - $KELPIE_PARENTS; pwd > {seen}.cwd; env -0 > {seen}'
    number = stack.start_worker(SALAD_CONTAINER_GROUP_ID=ALONE, IMAGE_SAYS="so", LANG="C.UTF-8")
    job_id = stack.submit(stack.shell(script, environment=own, container_group_id=ALONE))
    stack.wait_status(job_id, "completed")
    env = dict(entry.split("=", 1) for entry in seen.read_text().split("\0") if entry)
    machine = stack.local.machines[number].directory
    assert {name: env.get(name) for name in (*own, "IMAGE_SAYS")} == {**own, "IMAGE_SAYS": "so"}
    assert (env["KELPIE_JOB_ID"], env["KELPIE_ATTEMPT"]) == (job_id, "1")
    assert (env["INPUT_DIR"], env["OUTPUT_DIR"], env["CHECKPOINT_DIR"], env["KELPIE_STATE_FILE"]) == tuple(
        str(machine / name) for name in ("input", "output", "checkpoint", "kelpie-state.json")
    )
    assert {"KELPIE_REPORT", "KELPIE_PARENTS"} <= env.keys()
    assert Path(f"{seen}.cwd").read_text().strip() == str(machine / "work")
    # Jobs use the storage's credentials as they could in Kelpie; the broker, which holds all jobs, is not theirs.
    assert env["AWS_SECRET_ACCESS_KEY"] == stack.env()["AWS_SECRET_ACCESS_KEY"]
    assert stack.env()["KELPIE_REDIS_URL"] not in seen.read_text()


def test_two_slots_run_two_commands_at_once_on_a_gpu_each(stack: Stack, tmp_path: Path) -> None:
    lonely_worker(stack, KELPIE_SLOTS="", CUDA_VISIBLE_DEVICES="0,1")
    script = """
        echo $CUDA_VISIBLE_DEVICES > $MINE.draft; mv $MINE.draft $MINE
        while [ ! -s $OTHER ]; do sleep 0.05; done
    """
    files = [tmp_path / "one", tmp_path / "two"]
    jobs = [
        stack.submit(
            stack.shell(script, environment={"MINE": str(mine), "OTHER": str(other)}, container_group_id=ALONE)
        )
        for mine, other in (files, files[::-1])
    ]
    for job_id in jobs:
        stack.wait_status(job_id, "completed")
    assert sorted(file.read_text().strip() for file in files) == ["0", "1"]


def test_the_next_job_runs_while_the_outputs_of_the_last_one_go_up(stack: Stack, prefix: str, tmp_path: Path) -> None:
    number = lonely_worker(stack)
    go = tmp_path / "go"
    script = f"echo result > $OUTPUT_DIR/result; echo waiting; while [ ! -e {go} ]; do sleep 0.05; done"
    first = stack.submit(stack.shell(script, container_group_id=ALONE, **stored_job_fields(stack, prefix)))
    stack.wait_executing(first)
    second = stack.submit(stack.shell("pwd; exit 0", container_group_id=ALONE))
    output = said(stack.local.machines[number].directory / "output", "result")
    stack.wait("there is an output", output)
    server = stack.local.s3
    assert server is not None
    server.pause()
    began = time.monotonic()
    go.touch()
    stack.wait_status(second, "completed")
    stack.wait("the first one uploads", lambda: stack.get(first).phase == "uploading")
    assert stack.get(first).machine_id == stack.get(second).machine_id
    print(f"the next job had run {time.monotonic() - began:.2f} s after the command's end; its outputs still went up")
    server.resume()
    record = stack.wait_status(first, "completed", timeout_s=60)
    assert (record.completions, record.attempt, record.num_failures) == (1, 1, 0)
    assert outputs_under(stack.s3, stack.bucket, f"{prefix}output/") == {"result": b"result\n"}
