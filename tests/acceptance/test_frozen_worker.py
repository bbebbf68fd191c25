"""A worker stands still past its lease, another one takes its job, the first comes back: it changes nothing (P1)."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from kelpie_celery.ledger.records import JobRecord
from tests.harness.looking import (
    Stored,
    is_gone,
    log_lines,
    outputs_under,
    processes_of,
    stored_job_fields,
    stored_under,
)
from tests.harness.stack import Stack

LARGE_BYTES = 3_000_000
LEASE_S = 3.0
# Every attempt leaves other bytes. The first one goes on writing where its worker is to be frozen while it runs.
SCRIPT = f"""
    echo "attempt $KELPIE_ATTEMPT" > $CHECKPOINT_DIR/who
    echo "attempt $KELPIE_ATTEMPT" > $OUTPUT_DIR/who
    head -c {LARGE_BYTES} /dev/zero | tr '\\0' $KELPIE_ATTEMPT > $OUTPUT_DIR/large
    echo here
    while [ $KELPIE_ATTEMPT = $ENDLESS ]; do
        date +%s.%N | tee $CHECKPOINT_DIR/late > $OUTPUT_DIR/late
        sleep 1
    done
"""


class Frozen:
    """One job whose worker is frozen."""

    def __init__(self, stack: Stack, prefix: str, *, endless: bool) -> None:
        self._stack, self._prefix, self.name = stack, prefix, prefix.strip("/")
        self.id = stack.submit(
            stack.shell(
                SCRIPT,
                environment={"ENDLESS": "1" if endless else "none"},
                tags={"name": self.name},
                **stored_job_fields(stack, prefix),
            )
        )

    def wait_taken_over(self) -> JobRecord:
        """Wait until another worker has completed the job and Celery knows of it; the record."""
        self._stack.wait_status(self.id, "completed", timeout_s=60)
        return self._stack.wait("Celery knows", lambda: r if (r := self._stack.get(self.id)).celery_done else None)

    def stored(self) -> dict[str, Stored]:
        """All that lies on the storage for this job, our own records too."""
        return stored_under(self._stack.s3, self._stack.bucket, self._prefix)

    def outputs(self) -> dict[str, bytes]:
        """The job's outputs."""
        return outputs_under(self._stack.s3, self._stack.bucket, f"{self._prefix}output/")

    def expect_nothing_changed(self, record: JobRecord, stored: dict[str, Stored]) -> None:
        """The record and every object are what they were."""
        assert self._stack.get(self.id) == record
        now = self.stored()
        assert now.keys() == stored.keys()
        assert [key for key in stored if now[key] != stored[key]] == []

    def wait_given_up(self, number: int) -> None:
        """Wait until the worker has noticed that the job is not its own any more, and nothing of it is left."""
        log = self._stack.local.worker(number).log
        self._stack.wait("the worker has lost its lease", lambda: log_lines(log, "lease_lost", self.id))
        self._stack.wait("its command is gone", lambda: not processes_of(self.id))


def machine_number(stack: Stack, record: JobRecord, attempt: int) -> int:
    machine = record.attempts[attempt - 1].machine
    return next(m.number for m in stack.local.machines.values() if m.machine_id == machine)


@pytest.mark.timeout(150)
def test_a_worker_that_was_stopped_past_its_lease_changes_nothing_and_kills_its_command_when_it_goes_on(
    stack: Stack, prefix: str, record_property: Callable[[str, object], None]
) -> None:
    frozen = Frozen(stack, prefix, endless=True)
    stack.wait("a first checkpoint is stored", lambda: stack.get(frozen.id).num_commits >= 1)
    number = stack.worker_of(frozen.id)
    processes = processes_of(frozen.id)
    stack.local.worker(number).pause()
    paused = time.monotonic()
    record = frozen.wait_taken_over()
    assert [(a.outcome, a.reason) for a in record.attempts] == [
        ("interruption", "lease_expired"),
        ("completed", "done"),
    ]
    assert (record.completions, record.attempt, record.num_failures) == (1, 2, 0)
    assert frozen.outputs()["who"] == b"attempt 2\n"
    stored = frozen.stored()
    assert stored["checkpoint/who"].body == b"attempt 2\n"
    # Only the worker stood still: its command went on, and has something new to be sent.
    late = stack.local.machines[number].directory / "checkpoint" / "late"
    written = late.read_text()
    stack.wait("the command goes on", lambda: late.read_text() != written)

    stack.wait("three leases are over", lambda: time.monotonic() - paused > 3 * LEASE_S)
    began = time.monotonic()
    stack.local.worker(number).resume()
    frozen.wait_given_up(number)
    seconds = time.monotonic() - began
    assert all(is_gone(process) for process in processes)
    record_property("gone_s", seconds)
    print(f"from SIGCONT until the lost attempt's command is gone: {seconds:.2f} s")
    frozen.expect_nothing_changed(record, stored)

    # The worker is of use again, and what it does now is not what it had left to do.
    follower = stack.submit(stack.shell("true", container_group_id=stack.group))
    stack.wait_status(follower, "completed")
    frozen.expect_nothing_changed(record, stored)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("point", ["before_marker", "before_report"])
def test_a_worker_that_stood_still_in_the_final_upload_changes_nothing_when_it_goes_on(
    stack: Stack, prefix: str, point: str
) -> None:
    stack.arm(point, "stop", job=prefix.strip("/"))
    frozen = Frozen(stack, prefix, endless=False)
    stack.wait_fired(point, frozen.name)
    record = frozen.wait_taken_over()
    # Before the report everything was stored, so that the second attempt has nothing to do but to say so.
    finished_by, reason = (1, "adopted") if point == "before_report" else (2, "done")
    assert [(a.outcome, a.reason) for a in record.attempts] == [
        ("interruption", "lease_expired"),
        ("completed", reason),
    ]
    assert (record.completions, record.attempt, record.num_failures) == (1, 2, 0)
    outputs = frozen.outputs()
    assert outputs["who"] == f"attempt {finished_by}\n".encode()
    assert outputs["large"] == str(finished_by).encode() * LARGE_BYTES
    stored = frozen.stored()

    number = machine_number(stack, record, 1)
    stack.local.worker(number).resume()
    frozen.wait_given_up(number)
    frozen.expect_nothing_changed(record, stored)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("point", ["in_upload", "in_body"])
def test_a_worker_that_goes_on_uploading_while_it_cannot_ask_whose_the_job_is_changes_nothing(
    stack: Stack, prefix: str, point: str
) -> None:
    stack.arm(point, "stop", job=prefix.strip("/"))
    frozen = Frozen(stack, prefix, endless=False)
    stack.wait_fired(point, frozen.name)
    record = frozen.wait_taken_over()
    stored = frozen.stored()
    assert stored["output/large"].body == b"2" * LARGE_BYTES

    number = machine_number(stack, record, 1)
    redis, log = stack.local.redis, stack.local.worker(number).log
    assert redis is not None
    redis.pause()
    try:
        stack.local.worker(number).resume()
        stack.wait("a heartbeat has failed", lambda: log_lines(log, "heartbeat_missed", frozen.id))
        assert frozen.stored() == stored
    finally:
        redis.resume()
    frozen.wait_given_up(number)
    frozen.expect_nothing_changed(record, stored)
