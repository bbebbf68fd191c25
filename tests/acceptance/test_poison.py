"""What ends as poisoned and what never does; and interruptions that are neither a death nor a shutdown (P6)."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from tests.harness.gate import Gate
from tests.harness.looking import log_lines, outputs_under, stored_job_fields
from tests.harness.stack import Stack, StackFactory

DEATHS = 3
AWAY = "storage-away"
# The command's parent is its supervisor, whose parent is the worker.
KILLS_ITS_WORKER = "kill -9 $(sed 's/.*) //' /proc/$PPID/stat | cut -d ' ' -f 2); sleep 60"


@pytest.mark.timeout(180)
def test_a_job_that_kills_its_worker_ends_poisoned_and_ten_storage_outages_do_not_poison(
    make_stack: StackFactory, prefix: str, record_property: Callable[[str, object], None]
) -> None:
    stack = make_stack(workers=1, KELPIE_POISON_DEATHS=str(DEATHS), KELPIE_MIN_LEASE_S="2")
    server = stack.local.s3
    assert server is not None
    with Gate(urlsplit(server.env()["AWS_ENDPOINT_URL"]).port or 0) as gate:
        stack.start_worker(
            SALAD_CONTAINER_GROUP_ID=AWAY, AWS_ENDPOINT_URL=f"http://127.0.0.1:{gate.port}", TEST_GIVE_UP_S="0.1"
        )
        script = "cp $INPUT_DIR/input.txt $OUTPUT_DIR/copy"
        fields = stored_job_fields(stack, prefix)
        unlucky = stack.submit(stack.shell(script, container_group_id=AWAY, max_failures=1, **fields))
        poison = stack.submit(stack.shell(KILLS_ITS_WORKER, max_failures=1))
        expect_poisoned(stack, poison)
        stack.wait("the storage was away ten times", lambda: stack.get(unlucky).num_interruptions >= 10, timeout_s=60)
        gate.open()
        record = stack.wait_status(unlucky, "completed", timeout_s=60)
    record_property("interruptions", record.num_interruptions)
    assert gate.refused >= 10
    assert (record.num_failures, record.completions) == (0, 1)
    assert {(a.outcome, a.reason) for a in record.attempts[:-1]} == {("interruption", "storage_unavailable")}
    assert all(stack.bucket in (a.message or "") for a in record.attempts[:-1])
    assert outputs_under(stack.s3, stack.bucket, f"{prefix}output/") == {"copy": b"input"}


def expect_poisoned(stack: Stack, job_id: str) -> None:
    """Play the platform, which starts a container again when its worker has died."""
    worker = stack.local.worker(1)

    def ended() -> bool:
        nonlocal worker
        if not worker.running and not stack.get(job_id).status.ended:
            stack.local.start_worker(1)
            worker = stack.local.worker(1)
        return stack.get(job_id).status.ended

    stack.wait("the job ends", ended, timeout_s=90)
    record = stack.get(job_id)
    assert (record.status, record.reason) == ("failed", "poisoned")
    assert (record.num_failures, record.num_interruptions, record.attempt) == (0, DEATHS, DEATHS)
    assert [(a.outcome, a.reason) for a in record.attempts] == [("interruption", "lease_expired")] * DEATHS
    assert f"{DEATHS} times in a row" in (record.message or "")
    result = stack.app.AsyncResult(job_id)
    stack.wait("Celery knows", lambda: result.state == "FAILURE")


@pytest.mark.timeout(120)
def test_a_worker_that_hears_nothing_of_redis_for_too_long_gives_the_job_up_as_interrupted(
    make_stack: StackFactory,
) -> None:
    stack = make_stack(workers=1, control=False, beat=False, KELPIE_BLIND_S="0")
    job_id = stack.submit(stack.shell("[ $KELPIE_ATTEMPT -gt 1 ] || sleep 60", max_failures=1))
    stack.wait_executing(job_id)
    redis, log = stack.local.redis, stack.local.worker(1).log
    assert redis is not None
    redis.pause()
    try:
        stack.wait("the attempt is given up", lambda: log_lines(log, "attempt_ended", job_id), timeout_s=60)
    finally:
        redis.resume()
    record = stack.wait_status(job_id, "completed", timeout_s=60)
    first = record.attempts[0]
    assert (first.outcome, first.reason) == ("interruption", "broker_unavailable")
    assert "Redis gave no answer" in (first.message or "")
    assert (record.num_failures, record.num_interruptions, record.completions) == (0, 1, 1)


@pytest.mark.timeout(120)
def test_a_failure_that_a_rule_sets_free_is_tried_again_and_does_not_count(stack: Stack) -> None:
    retry = [{"on_exit_code": [42], "action": "free"}, {"on_reason": "signal", "action": "fail"}]
    script = "[ $KELPIE_ATTEMPT -gt 3 ] || exit 42"
    lucky = stack.submit(stack.shell(script, max_failures=1, retry=retry))
    killed = stack.submit(stack.shell("[ $KELPIE_ATTEMPT -gt 1 ] && kill -9 $$; exit 42", max_failures=9, retry=retry))
    record = stack.wait_status(lucky, "completed", timeout_s=60)
    assert (record.num_failures, record.num_free, record.num_interruptions, record.completions) == (0, 3, 0, 1)
    assert [(a.outcome, a.reason) for a in record.attempts[:-1]] == [("free", "exit_code")] * 3
    record = stack.wait_status(killed, "failed", timeout_s=60)
    assert (record.reason, record.num_failures, record.num_free) == ("signal", 1, 1)
    assert "retry[1] ends the job" in (record.message or "")
