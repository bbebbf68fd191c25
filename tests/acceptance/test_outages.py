"""Redis, S3, messages and helpers go away; jobs do not."""

from __future__ import annotations

import hashlib
import signal
import threading
import time
from collections.abc import Callable

import psutil
import pytest

from kelpie_celery.ledger import keys
from tests.harness.stack import Stack, StackFactory

AWAY_S = 30.0
"""Ten leases of these tests; ten real minutes are in ``test_long_outages``."""


def outage(away_s: float, begin: Callable[[], object], end: Callable[[], object]) -> threading.Thread:
    """Begin an outage now and end it after ``away_s``, whatever the test does meanwhile."""
    begin()
    thread = threading.Timer(away_s, end)
    thread.start()
    return thread


def assert_completed_once(stack: Stack, *job_ids: str, interruptions: int | None = 0) -> None:
    for job_id in job_ids:
        record = stack.get(job_id)
        assert (record.status, record.completions, record.num_failures) == ("completed", 1, 0), stack.dump()
        if interruptions is not None:
            assert record.num_interruptions == interruptions, stack.dump()


def wait_message(stack: Stack, job_id: str, message: str) -> None:
    """Wait until a job has said something through ``KELPIE_REPORT``."""

    def look() -> bool:
        progress = stack.get(job_id).progress
        return progress is not None and progress.message == message

    stack.wait(f"job {job_id} says {message!r}", look)


@pytest.mark.timeout(180)
def test_redis_is_killed_and_restarted_while_20_jobs_wait_and_3_run(make_stack: StackFactory) -> None:
    stack = make_stack(workers=3, appendfsync="always")
    running = [stack.submit(stack.shell("sleep 6")) for _ in range(3)]
    for job_id in running:
        stack.wait_executing(job_id)
    pending = [stack.submit(stack.shell("true")) for _ in range(20)]
    assert stack.local.redis is not None
    stack.local.redis.kill()
    stack.local.redis.start()
    for job_id in (*running, *pending):
        stack.wait_status(job_id, "completed", timeout_s=90)
    assert_completed_once(stack, *running, *pending)
    assert [stack.get(job_id).attempt for job_id in running] == [1, 1, 1]


@pytest.mark.timeout(300)
def test_running_jobs_run_on_while_redis_is_away_for_ten_leases(make_stack: StackFactory) -> None:
    stack = make_stack(workers=2)
    jobs = [
        stack.submit(stack.shell('echo $$ > alive; echo \'{"message": "up"}\' >> $KELPIE_REPORT; sleep 40; echo done'))
        for _ in range(2)
    ]
    for job_id in jobs:
        wait_message(stack, job_id, "up")
    pids = [int((machine.directory / "work" / "alive").read_text()) for machine in stack.local.machines.values()]
    assert stack.local.redis is not None
    waiting = outage(AWAY_S, stack.local.redis.pause, stack.local.redis.resume)
    while waiting.is_alive():
        assert all(psutil.pid_exists(pid) for pid in pids)
        waiting.join(5)
    for job_id in jobs:
        stack.wait_status(job_id, "completed", timeout_s=90)
    assert_completed_once(stack, *jobs)
    assert [stack.get(job_id).attempt for job_id in jobs] == [1, 1]


@pytest.mark.timeout(120)
def test_messages_that_are_deleted_by_hand_are_published_again(make_stack: StackFactory) -> None:
    stack = make_stack(workers=1)
    blocker = stack.submit(stack.shell("sleep 4"))
    stack.wait_executing(blocker)
    jobs = [stack.submit(stack.shell("true", priority=i % 3)) for i in range(6)]
    for priority in keys.PRIORITIES:
        stack.ledger.redis.delete(keys.queue_list(stack.group, priority))
    for job_id in (blocker, *jobs):
        stack.wait_status(job_id, "completed", timeout_s=60)
    assert_completed_once(stack, blocker, *jobs)


@pytest.mark.timeout(120)
def test_without_beat_and_control_worker_jobs_start_retry_recover_and_finish(make_stack: StackFactory) -> None:
    stack = make_stack(workers=2, control=False, beat=False)
    stack.arm("after_completed", job="told-later")
    told_later = stack.submit_async(stack.shell("true", tags={"name": "told-later"}))
    stack.wait_fired("after_completed", "told-later")
    assert told_later.get(timeout=30)["job_id"] == told_later.id
    killed = stack.submit(stack.shell("[ $KELPIE_ATTEMPT -gt 1 ] || exec sleep 60"))
    stack.wait_executing(killed)
    stack.kill_worker(stack.worker_of(killed))
    for number in stack.local.machines:
        if not stack.local.processes[f"worker-{number}"].running:
            stack.start_worker(number)
    retried = stack.submit(stack.shell("[ $KELPIE_ATTEMPT -gt 1 ]"))
    for job_id in (killed, retried):
        stack.wait_status(job_id, "completed", timeout_s=60)
    assert stack.get(retried).num_failures == 1
    assert stack.get(killed).num_interruptions == 1
    stack.wait("Celery knows of all", lambda: all(stack.get(j).celery_done for j in (told_later.id, killed, retried)))


@pytest.mark.timeout(180)
def test_s3_stops_for_20_s_during_the_final_upload(make_stack: StackFactory) -> None:
    stack = make_stack(workers=1)
    script = """
        for i in $(seq 20); do head -c 300000 /dev/urandom > $OUTPUT_DIR/$i; done
        cd $OUTPUT_DIR; sha256sum * | sort > ../sums; mv ../sums sums
        echo '{"message": "written"}' >> $KELPIE_REPORT; while [ ! -e ../go ]; do sleep 0.05; done
    """
    place = {"bucket": stack.bucket, "prefix": "out", "local_path": "results", "direction": "upload"}
    directory = stack.local.machines[1].directory / "work" / "results"
    script = script.replace("$OUTPUT_DIR", str(directory))
    job_id = stack.submit(stack.shell(f"mkdir -p {directory}; {script}", sync={"after": [place]}))
    wait_message(stack, job_id, "written")
    server = stack.local.s3
    assert server is not None
    waiting = outage(20, server.kill, server.start)
    (directory.parent / "go").touch()
    stack.wait("it uploads", lambda: stack.get(job_id).phase == "uploading")
    waiting.join()
    stack.wait_status(job_id, "completed", timeout_s=60)
    assert_completed_once(stack, job_id)
    bodies = {
        key.removeprefix("out/"): stack.s3.get_object(Bucket=stack.bucket, Key=key)["Body"].read()
        for key in [o["Key"] for o in stack.s3.list_objects_v2(Bucket=stack.bucket, Prefix="out/")["Contents"]]
    }
    sums = {name: digest for digest, name in (line.split() for line in bodies.pop("sums").decode().splitlines())}
    assert {name: hashlib.sha256(body).hexdigest() for name, body in bodies.items()} == sums
    assert len(sums) == 20


@pytest.mark.timeout(120)
def test_a_job_is_handed_over_within_a_second_of_sigterm(
    make_stack: StackFactory, record_property: Callable[[str, object], None]
) -> None:
    # None is started in between: beside one that still warms up, it would be the start that is measured.
    stack = make_stack(workers=4)
    times = []
    for _ in range(3):
        job_id = stack.submit(stack.shell("date +%s.%N; sleep 60"))
        stack.wait_executing(job_id)
        number = stack.worker_of(job_id)
        started = time.monotonic()
        stack.kill_worker(number, signal.SIGTERM)
        stack.wait_executing(job_id, attempt=2)
        times.append(time.monotonic() - started)
        stack.ledger.cancel(job_id)
        stack.wait_status(job_id, "canceled")
        assert stack.get(job_id).num_interruptions == 1
        assert stack.local.processes[f"worker-{number}"].wait(10) == 0
    record_property("handover_s", times)
    print("hand-over after SIGTERM, seconds:", [round(t, 3) for t in times])
    assert sorted(times)[1] < 1.0


@pytest.mark.timeout(120)
def test_a_job_goes_on_within_its_lease_and_two_seconds_of_sigkill(
    make_stack: StackFactory, record_property: Callable[[str, object], None]
) -> None:
    stack = make_stack(workers=2)
    job_id = stack.submit(stack.shell("sleep 60"))
    stack.wait_executing(job_id)
    started = time.monotonic()
    stack.kill_worker(stack.worker_of(job_id))
    stack.wait_executing(job_id, attempt=2)
    took_s = time.monotonic() - started
    record_property("recovery_s", took_s)
    print("recovery after SIGKILL, seconds:", round(took_s, 2), "with a lease of 3 s")
    assert took_s < 3 + 2
