"""Metrics of real workers, scraped while jobs run, die and Redis is frozen."""

from __future__ import annotations

import os
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from kelpie_celery.client import Kelpie
from kelpie_celery.local.ports import PortBlock, reserve
from kelpie_celery.local.processes import ManagedProcess
from kelpie_celery.local.servers import SeaweedServer
from tests.harness.acl import make_user
from tests.harness.stack import GROUP, Stack
from tests.unit.test_metrics import parsed

BOUND_S = 10.0
"""A scrape waits for Redis for 2 s; the rest is for a busy machine."""


@pytest.fixture(scope="module")
def ports() -> Iterator[PortBlock]:
    block = reserve()
    yield block
    block.release()


@pytest.fixture(scope="module")
def metered(servers_directory: Path, s3_server: SeaweedServer, ports: PortBlock) -> Iterator[Stack]:
    """A worker that may see its own group alone, one to be killed, and a control worker."""
    stack = Stack(
        servers_directory / "metrics", s3_server, workers=0, bucket="metrics-stack",
        env={"KELPIE_METRICS_PORT": str(ports[0])},
    )  # fmt: skip
    try:
        stack.start()
        assert stack.local.redis is not None
        limited = make_user(stack.local.redis.url, GROUP)
        stack.start_worker(KELPIE_METRICS_PORT=str(ports[1]), KELPIE_REDIS_URL=limited)
        # Its port is taken, which must not keep it from working.
        stack.start_worker(KELPIE_METRICS_PORT=str(ports[1]))
        yield stack
    finally:
        stack.close()


def scrape(port: int) -> dict[str, float]:
    began = time.monotonic()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=BOUND_S) as answer:
        text = answer.read().decode()
    assert time.monotonic() - began < BOUND_S
    return parsed(text)


def scraped(stack: Stack, port: int, name: str, at_least: float) -> dict[str, float]:
    """What is told once a value is there: what the ledger tells is up to 5 s old."""

    def look() -> dict[str, float] | None:
        told = scrape(port)
        return told if told.get(name, 0.0) >= at_least else None

    return stack.wait(f"{name} is at least {at_least}", look)


@pytest.mark.timeout(180)
def test_workers_tell_of_jobs_that_run_die_and_complete(metered: Stack, ports: PortBlock) -> None:
    stack, running = metered, f"kelpie_jobs{{group={GROUP},status=running}}"
    assert "KELPIE_METRICS_PORT of its own" in stack.local.workers[2].log.read_text()

    both = [stack.submit(stack.shell("[ $KELPIE_ATTEMPT -gt 1 ] || sleep 600")) for _ in range(2)]
    for job in both:
        stack.wait_executing(job, attempt=1)
    for port in (ports[0], ports[1]):
        assert scraped(stack, port, running, 2)["kelpie_ledger_up"] == 1
    told = scraped(stack, ports[1], "kelpie_lease_renewals_total{result=ok}", 2)
    assert (told["kelpie_slots"], told["kelpie_running_attempts"]) == (1, 1)
    assert told["kelpie_lease_renewal_seconds_count"] >= 2
    assert not [name for name in scrape(ports[0]) if name.startswith("kelpie_lease")]

    victim = next(job for job in both if stack.worker_of(job) == 2)
    other = next(job for job in both if job != victim)
    stack.kill_worker(2, signal.SIGKILL)
    stack.ledger.cancel(other)
    stack.wait_status(other, "canceled")
    stack.wait_status(victim, "completed")

    # A job with storage, on the worker that is left.
    script = "cat $INPUT_DIR/a; echo 12345 > $CHECKPOINT_DIR/s; sleep 1.5; echo result > $OUTPUT_DIR/o"
    places = {f"{role}_bucket": stack.bucket for role in ("input", "checkpoint", "output")}
    places |= {f"{role}_prefix": f"metrics/{role}/" for role in ("input", "checkpoint", "output")}
    stack.s3.put_object(Bucket=stack.bucket, Key="metrics/input/a", Body=b"alpha")
    stored = stack.submit(stack.shell(script, **places))
    stack.wait_status(stored, "completed")

    lost = f"kelpie_attempts_total{{group={GROUP},outcome=interruption,reason=lease_expired}}"
    done = f"kelpie_attempts_total{{group={GROUP},outcome=completed,reason=done}}"
    told = scraped(stack, ports[1], done, 2)
    assert (told[lost], told[done]) == (1, 2)
    assert told[f"kelpie_job_seconds_total{{group={GROUP},kind=lost}}"] > 0
    assert told["kelpie_transfer_bytes_total{direction=down,stage=restore}"] == 5
    assert told["kelpie_transfer_bytes_total{direction=up,stage=outputs}"] >= 7
    assert told["kelpie_commit_seconds_count"] >= 1
    assert told["kelpie_transfer_seconds_total{direction=up,stage=commit}"] > 0
    assert not [name for name in told if any(job in name for job in (*both, stored))]
    assert scraped(stack, ports[0], done, 2)[lost] == 1

    with Kelpie(stack.local.env()["KELPIE_REDIS_URL"]) as kelpie:
        found = kelpie.stats(GROUP)
    records = [stack.get(job) for job in (*both, stored)]
    over = [one for record in records for one in record.attempts]
    assert found.ends == {"canceled:canceled": 1, "completed:done": 2, "interruption:lease_expired": 1}
    assert found.lost_s == pytest.approx(sum(one.lost_s or 0 for one in over), abs=0.01)
    assert found.slot_s + found.silent_s == pytest.approx(sum((one.ended or 0) - one.started for one in over), abs=0.05)
    [last] = stack.get(stored).attempts
    assert 1.4 <= (last.execute_s or 0) <= (last.ended or 0) - last.started
    assert last.lost_s == 0


@pytest.mark.timeout(120)
def test_a_frozen_redis_holds_up_no_scrape(metered: Stack, ports: PortBlock) -> None:
    stack = metered
    assert stack.local.redis is not None
    # Nothing is told of a group that never had a job; the other tests may be another process's.
    stack.wait_status(stack.submit(stack.shell("true")), "completed")
    for port in (ports[0], ports[1]):
        scraped(stack, port, f"kelpie_workers{{group={GROUP}}}", 1)
    stack.local.redis.pause()
    try:
        for port in (ports[0], ports[1]):

            def away(port: int = port) -> dict[str, float] | None:
                told = scrape(port)
                return told if told["kelpie_ledger_up"] == 0 else None

            told = stack.wait("the outage is told", away)
            assert told[f"kelpie_workers{{group={GROUP}}}"] >= 1, "what was known is told still"
            assert told["kelpie_ledger_age_seconds"] > 0
    finally:
        stack.local.redis.resume()
    for port in (ports[0], ports[1]):
        scraped(stack, port, "kelpie_ledger_up", 1)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_control_worker_with_another_pool_tells_what_the_ledger_tells(
    metered: Stack, ports: PortBlock, pool: str, tmp_path: Path
) -> None:
    stack, completed = metered, f"kelpie_jobs{{group={GROUP},status=completed}}"
    stack.wait_status(stack.submit(stack.shell("true")), "completed")
    command = [sys.executable, "-m", "celery", "-A", "kelpie_celery", "worker", "-Q", "kelpie.control",
               "-n", f"{pool}@%h", "-P", pool, "-c", "1"]  # fmt: skip
    env = {**os.environ, **stack.env(), "KELPIE_METRICS_PORT": str(ports[2])}
    process = ManagedProcess(pool, command, env=env, cwd=tmp_path, log=tmp_path / "log")
    process.start()
    try:

        def look() -> dict[str, float] | None:
            try:
                told = scrape(ports[2])
            except OSError:
                return None  # it does not listen yet
            return told if told["kelpie_ledger_up"] and told.get(completed) else None

        told = stack.wait(f"a {pool} control worker serves metrics", look)
    finally:
        process.kill()
    assert "kelpie_slots" not in told
