"""Outages at their real length, with every setting as it is in production: ``make test-long``, a quarter of an hour.

What the other tests show within seconds, by scaled times, is seen here unscaled.
"""

from __future__ import annotations

import time
from typing import Any

import psutil
import pytest

from kelpie_celery.settings import Settings, variables
from tests.harness.blackhole import Blackhole
from tests.harness.looking import log_lines
from tests.harness.stack import FAST, Stack, StackFactory

pytestmark = pytest.mark.long

REDIS_AWAY_S = 600.0
CUT_OFF_S = 180.0
_DEFAULTS = {names[0]: Settings.model_fields[field].default for field, names in variables().items()}
PRODUCTION: dict[str, Any] = {name: str(_DEFAULTS[name]) for name in FAST}


def history(stack: Stack, job_id: str) -> list[tuple[str, str | None, str | None]]:
    return [(a.machine, a.outcome, a.reason) for a in stack.get(job_id).attempts]


@pytest.mark.timeout(1200)
def test_redis_is_away_for_ten_minutes_and_no_job_notices(make_stack: StackFactory) -> None:
    stack = make_stack(workers=2, appendfsync="always", **PRODUCTION)
    running = [stack.submit(stack.shell(f"echo $$ > alive; sleep {REDIS_AWAY_S + 60}; echo done")) for _ in range(2)]
    for job_id in running:
        stack.wait_executing(job_id)
    waiting = [stack.submit(stack.shell("true")) for _ in range(20)]
    alive = [machine.directory / "work" / "alive" for machine in stack.local.machines.values()]
    stack.wait("both commands run", lambda: all(path.exists() for path in alive))
    pids = [int(path.read_text()) for path in alive]
    assert stack.local.redis is not None
    stack.local.redis.kill()
    began = time.monotonic()
    while time.monotonic() - began < REDIS_AWAY_S:
        assert all(psutil.pid_exists(pid) for pid in pids), stack.dump()
        time.sleep(5)
    stack.local.redis.start()
    for job_id in (*running, *waiting):
        stack.wait_status(job_id, "completed", timeout_s=240)
    for job_id in (*running, *waiting):
        record = stack.get(job_id)
        assert (record.attempt, record.completions) == (1, 1), history(stack, job_id)
        assert (record.num_interruptions, record.num_failures) == (0, 0), history(stack, job_id)


@pytest.mark.timeout(900)
def test_a_worker_whose_connections_are_half_open_for_three_minutes_loses_its_job_once(
    make_stack: StackFactory,
) -> None:
    stack = make_stack(0, control=True, beat=True, appendfsync="no", **PRODUCTION)
    assert stack.local.redis is not None
    with Blackhole(stack.local.redis.url) as proxy:
        stack.start_worker(1, KELPIE_REDIS_URL=proxy.url)
        job = stack.submit(stack.shell("[ $KELPIE_ATTEMPT -gt 1 ] || sleep 1000"))
        stack.wait_executing(job)
        stack.start_worker(2)
        assert proxy.swallow(new_ones=True) >= 3
        began = time.monotonic()
        stack.wait_status(job, "completed", timeout_s=CUT_OFF_S)
        print(f"completed elsewhere {time.monotonic() - began:.1f} s after the connections went dark")
        others = [stack.submit(stack.shell("true")) for _ in range(5)]
        for other in others:
            stack.wait_status(other, "completed")
        while time.monotonic() - began < CUT_OFF_S:
            assert stack.local.worker(1).running
            time.sleep(1)
        proxy.let_new_ones_pass()
        log = stack.local.worker(1).log
        stack.wait("the worker hears that it lost its job", lambda: log_lines(log, "lease_lost", job), timeout_s=120)
        stack.kill_worker(2)
        last = stack.submit(stack.shell("true"))
        assert stack.wait_status(last, "completed", timeout_s=120).machine_id == "local-machine-1"
        assert history(stack, job) == [
            ("local-machine-1", "interruption", "lease_expired"),
            ("local-machine-2", "completed", "done"),
        ]
        for each in (job, *others, last):
            record = stack.get(each)
            assert (record.status, record.completions, record.num_failures) == ("completed", 1, 0)
            assert record.num_interruptions == (1 if each == job else 0)
