"""Looks at a real server: what they cost, through outages, on a terminal, and with few rights."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain
from redis import Redis

from kelpie_celery.client import Kelpie
from kelpie_celery.ledger.types import WorkerSign
from kelpie_celery.lifecycle import Phase, Status
from kelpie_celery.local.servers import ValkeyServer
from kelpie_celery.scaling.rule import ScalingRule
from tests.harness.acl import make_user
from tests.integration.test_cli import BOUND_S, Cli, claim, definition, terminal


@pytest.fixture
def kelpie(redis_url: str) -> Iterator[Kelpie]:
    with Kelpie(redis_url) as client:
        yield client


def commands(redis: Redis) -> int:
    """How many commands the server has carried out."""
    stats: Any = redis.info("stats")
    return int(stats["total_commands_processed"])


def cost(kelpie: Kelpie, job_id: str) -> tuple[int, int]:
    """Commands that one `why` and one picture take, after the scripts are known."""
    redis = kelpie.app.ledger.redis
    counts = [commands(redis)]
    for look in (lambda: kelpie.why(job_id), kelpie.overview):
        look()
        counts.append(commands(redis))
    return counts[1] - counts[0], counts[2] - counts[1]


def test_a_look_costs_the_same_in_a_large_group(kelpie: Kelpie) -> None:
    few = kelpie.submit_many([definition() for _ in range(50)])
    for job in few[:25]:
        claim(kelpie, job.id)
    kelpie.why(few[-1])
    small = cost(kelpie, few[-1].id)
    many = kelpie.submit_many([definition() for _ in range(3000)])
    for job in many[:60]:
        claim(kelpie, job.id)
    kelpie.cancel(many[70])
    large = cost(kelpie, many[-1].id)
    ahead = kelpie.why(many[-1]).seen.ahead
    # Less by those that were submitted with the last one within the grain of the score, 0.1 ms.
    assert ahead is not None
    assert 0 <= 25 + 3000 - 61 - 1 - ahead <= 10
    # One job more that has ended is part of the picture: two commands.
    assert large[0] == small[0] < 40
    assert large[1] - small[1] <= 2
    assert large[1] < 150


def test_the_next_step_of_a_real_workflow_waits_for_the_one_before(kelpie: Kelpie) -> None:
    run: Any = kelpie.app.tasks["kelpie.run_job"]
    last: Any = chain(run.s(definition()), run.si(definition())).apply_async()
    found = kelpie.why(last.id)
    assert (found.status, found.because[0].code) == (Status.DRAFT, "parents")
    assert f"job {last.parent.id}, which is pending" in str(found)
    kelpie.cancel(last.parent.id)
    assert kelpie.why(last.id).because[0].code == "step_unreachable"


def test_a_groups_own_redis_user_is_told_what_it_may_not_know(kelpie: Kelpie, redis_url: str) -> None:
    kelpie.set_scaling_rule(ScalingRule(container_group_id="g"))
    job = kelpie.submit(definition())
    with Kelpie(make_user(redis_url, "g")) as limited:
        found = limited.why(job.id)
        assert found.because[0].code == "no_worker"
        assert "this Redis user may not read" in found.because[0].text
        assert (found.seen.group.rule_known, found.seen.group.beat) == (False, None)
        assert limited.overview("g").groups[0].counts.pending == 1
    assert "may not read" not in str(kelpie.why(job.id))


def test_a_watcher_sits_out_a_restart_of_redis_and_says_so(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path / "redis") as server, Kelpie(server.url) as kelpie:
        cli, job_id = Cli(server.url), kelpie.submit(definition()).id
        with cli.start("watch", "--every", "0.3") as process:
            assert process.stdout is not None
            wait_for(process.stdout, job_id)
            server.kill()
            assert "The jobs run on" in wait_for(process.stdout, "is away")
            assert job_id in wait_for(process.stdout, job_id)
            server.start()
            kelpie.cancel(job_id)
            wait_for(process.stdout, "canceled")
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=BOUND_S)
        assert process.returncode == 130
        assert "Traceback" not in said


def wait_for(lines: Iterator[str], words: str) -> str:
    """The first line that holds ``words``; the test's own time-out bounds it."""
    for line in lines:
        if words in line:
            return line
    raise AssertionError(f"the output ended without {words!r}")


def test_on_a_terminal_one_picture_is_kept_up_to_date(redis_url: str, kelpie: Kelpie) -> None:
    cli, job_id = Cli(redis_url), kelpie.submit(definition()).id
    sign = WorkerSign("w1", "kelpie@w1", "", 1)
    kelpie.app.ledger.pulse("g", "machine-1", [job_id], alive=True, sign=sign)
    token = claim(kelpie, job_id)
    with terminal(cli, "watch", "--every", "0.3") as (process, read_until):
        read_until("restoring")
        kelpie.app.ledger.renew(token, Phase.EXECUTING, '{"progress": 0.25, "message": "epoch 1"}')
        read_until("epoch 1")
        read_until("━")
        process.interrupt()
    assert process.returncode == 130
