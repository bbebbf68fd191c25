"""Two hundred jobs while a worker dies every second."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest

from kelpie_celery.definition import parse_definition
from kelpie_celery.submission import plain_job
from tests.harness.stack import Stack, StackFactory

JOBS, WORKERS, MINUTE_S = 200, 4, 60.0


def submit_all(stack: Stack) -> list[str]:
    definition = parse_definition(stack.shell("sleep 1", heartbeat_interval=1))
    jobs = [plain_job(stack.app, definition) for _ in range(JOBS)]
    stack.ledger.submit_many(jobs)
    return [job.job_id for job in jobs]


def victims(stack: Stack) -> list[int]:
    """The live workers that run a job now, or all live ones."""
    busy = {r.machine_id for r in stack.ledger.get_many(stack.ledger.ids(stack.group, "running", 0, -1))}
    alive = [m for m in stack.local.machines.values() if stack.local.processes[f"worker-{m.number}"].running]
    return [m.number for m in alive if m.machine_id in busy] or [m.number for m in alive]


def kill_one_every_second(stack: Stack, seed: int) -> int:
    """For a minute, kill a random live worker each second and start dead ones again; how many were killed."""
    dice, killed, began = random.Random(seed), 0, time.monotonic()
    while time.monotonic() - began < MINUTE_S:
        if candidates := victims(stack):
            stack.kill_worker(dice.choice(candidates))
            killed += 1
        for number in list(stack.local.machines):
            if not stack.local.processes[f"worker-{number}"].running:
                stack.local.start_worker(number)
        time.sleep(1)
    return killed


@pytest.mark.timeout(580)
def test_200_jobs_complete_once_each_while_a_worker_dies_every_second(make_stack: StackFactory) -> None:
    stack = make_stack(workers=WORKERS)
    job_ids = submit_all(stack)
    began = time.monotonic()
    killed = kill_one_every_second(stack, seed=20261123)
    for number in list(stack.local.machines):
        if not stack.local.processes[f"worker-{number}"].running:
            stack.local.start_worker(number)
    stack.wait("all jobs have ended", lambda: stack.ledger.counts(stack.group).completed == JOBS, timeout_s=300)
    records = stack.ledger.get_many(job_ids)
    assert Counter(r.status.value for r in records) == {"completed": JOBS}
    assert {r.completions for r in records} == {1}
    assert {r.num_failures for r in records} == {0}
    interruptions = sum(r.num_interruptions for r in records)
    print(f"{killed} kills, {interruptions} interruptions, {time.monotonic() - began:.0f} s for {JOBS} jobs")
    assert interruptions > 0
