"""Directories of jobs: two jobs never have one at once, and what a dead worker leaves is cleaned, not what lives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.harness.looking import outputs_under, stored_job_fields
from tests.harness.stack import Stack

ONE, TWO = "one-machine", "same-machine"


def output_to(stack: Stack, prefix: str, directory: Path) -> dict[str, Any]:
    block = {"bucket": stack.bucket, "prefix": prefix, "local_path": str(directory), "direction": "upload"}
    return {"sync": {"after": [block]}}


@pytest.fixture
def temporary(stack: Stack) -> Path:
    """What two workers of one machine share, and no worker of another test."""
    made = stack.local.directory / "machine-tmp"
    made.mkdir(exist_ok=True)
    return made


@pytest.mark.timeout(120)
def test_jobs_on_many_slots_and_two_workers_have_a_directory_one_after_the_other(
    stack: Stack, prefix: str, temporary: Path
) -> None:
    for group, slots in ((ONE, "4"), (TWO, "1")):
        stack.local.start_worker(
            env={"SALAD_CONTAINER_GROUP_ID": group, "KELPIE_SLOTS": slots, "TMPDIR": str(temporary)}
        )
    stack.local.wait_ready()
    shared = stack.local.directory / "shared-results"
    script = f"""
        [ -z "$(ls -A {shared})" ] || exit 9
        echo $KELPIE_JOB_ID > {shared}/who; sleep 0.4
        [ "$(ls {shared})" = who ] && [ "$(cat {shared}/who)" = $KELPIE_JOB_ID ] || exit 8
    """
    jobs = [
        stack.submit(
            stack.shell(script, container_group_id=group, max_failures=1, **output_to(stack, f"{prefix}{n}/", shared))
        )
        for n, group in enumerate((ONE, TWO, ONE, TWO, ONE, ONE))
    ]
    for n, job_id in enumerate(jobs):
        record = stack.wait_status(job_id, "completed", timeout_s=60)
        assert (record.num_failures, record.num_interruptions) == (0, 0)
        assert outputs_under(stack.s3, stack.bucket, f"{prefix}{n}/") == {"who": f"{job_id}\n".encode()}


@pytest.mark.timeout(120)
def test_two_slots_have_output_directories_of_their_own_at_the_same_time(
    stack: Stack, prefix: str, tmp_path: Path
) -> None:
    stack.start_worker(SALAD_CONTAINER_GROUP_ID=ONE, KELPIE_SLOTS="2")
    script = f"""
        echo $KELPIE_JOB_ID > $OUTPUT_DIR/who; touch {tmp_path}/$MINE
        while [ ! -e {tmp_path}/$OTHER ]; do sleep 0.05; done
        [ "$(ls $OUTPUT_DIR)" = who ] && [ "$(cat $OUTPUT_DIR/who)" = $KELPIE_JOB_ID ] || exit 8
    """
    jobs = {}
    for mine, other in (("a", "b"), ("b", "a")):
        fields = stored_job_fields(stack, f"{prefix}{mine}/")
        given = {"environment": {"MINE": mine, "OTHER": other}, "container_group_id": ONE, "max_failures": 1, **fields}
        jobs[mine] = stack.submit(stack.shell(script, **given))
    for mine, job_id in jobs.items():
        stack.wait_status(job_id, "completed", timeout_s=60)
        assert outputs_under(stack.s3, stack.bucket, f"{prefix}{mine}/output/") == {"who": f"{job_id}\n".encode()}


@pytest.mark.timeout(120)
def test_what_a_dead_worker_left_is_cleaned_by_the_next_one_and_what_a_living_one_uses_is_not(
    stack: Stack, prefix: str, temporary: Path, tmp_path: Path
) -> None:
    places = {ONE: tmp_path / "left", TWO: tmp_path / "busy"}
    numbers = {
        group: stack.local.start_worker(env={"SALAD_CONTAINER_GROUP_ID": group, "TMPDIR": str(temporary)})
        for group in places
    }
    stack.local.wait_ready()
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "own").touch()
    jobs = {}
    for group, place in places.items():
        script = f"echo x > {place}/file; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"
        jobs[group] = stack.submit(
            stack.shell(script, container_group_id=group, **output_to(stack, f"{prefix}{group}/", place))
        )
    for place in places.values():
        stack.wait("the command writes", (place / "file").exists)
    stack.kill_worker(numbers[ONE])
    assert (places[ONE] / "file").exists()
    # One of another group: it takes no job that would clean up for itself.
    stack.start_worker(numbers[ONE], SALAD_CONTAINER_GROUP_ID="third", TMPDIR=str(temporary))
    stack.wait("what the dead one left is gone", lambda: not list(places[ONE].iterdir()), timeout_s=30)
    assert (places[TWO] / "file").exists()
    assert (tmp_path / "users" / "own").exists()
    (tmp_path / "go").touch()
    stack.wait_status(jobs[TWO], "completed", timeout_s=60)
    assert outputs_under(stack.s3, stack.bucket, f"{prefix}{TWO}/") == {"file": b"x\n"}
    assert [folder.name for folder in temporary.glob("kelpie-worker-*") if not (folder / "lock").exists()] == []


@pytest.mark.timeout(120)
def test_a_job_that_waits_for_the_directories_of_another_one_says_so(
    stack: Stack, prefix: str, temporary: Path, tmp_path: Path
) -> None:
    group = "one-place"
    stack.local.start_worker(env={"SALAD_CONTAINER_GROUP_ID": group, "KELPIE_SLOTS": "2", "TMPDIR": str(temporary)})
    stack.local.wait_ready()
    go, shared = tmp_path / "go", stack.local.directory / "one-result"
    script = f"while [ ! -e {go} ]; do sleep 0.05; done"
    jobs = [
        stack.submit(stack.shell(script, container_group_id=group, **output_to(stack, f"{prefix}{n}/", shared)))
        for n in range(2)
    ]
    first, second = (stack.get(job) for job in jobs)

    def waiting() -> bool:
        nonlocal first, second
        first, second = sorted((stack.get(job) for job in jobs), key=lambda record: record.progress is not None)
        waits = second.progress is not None
        return waits and (first.phase, second.phase) == ("executing", "restoring")

    stack.wait("one of them says that it waits, while the other one runs", waiting)
    assert second.progress is not None
    assert second.progress.message == "waits for directories that another job of this machine uses"
    go.touch()
    for job in jobs:
        record = stack.wait_status(job, "completed", timeout_s=60)
        assert record.progress is None or not record.progress.message, "it does not wait any more"
