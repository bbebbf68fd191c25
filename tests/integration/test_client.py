"""The client against a real server: what a fake cannot show."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kelpie_celery.client import Kelpie
from kelpie_celery.errors import LedgerUnavailable
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.types import Ending, Granted
from kelpie_celery.lifecycle import Outcome, Reason, Status
from kelpie_celery.local.ports import reserve
from kelpie_celery.local.servers import ValkeyServer
from kelpie_celery.replay import UntrustedStep, replay

BOUND_S = 60.0


def definition(**more: Any) -> dict[str, Any]:
    return {"command": "true", "container_group_id": "g", "sync": {}, **more}


def complete(kelpie: Kelpie, job_id: str) -> None:
    granted = kelpie.app.ledger.claim(job_id, uuid.uuid4().hex, "m", "w@m", None, may_run=True)
    assert isinstance(granted, Granted)
    kelpie.app.ledger.end_attempt(granted.token, Ending(Outcome.COMPLETED, Reason.DONE, result={"exit_code": 0}))


@pytest.fixture
def kelpie(redis_url: str) -> Iterator[Kelpie]:
    with Kelpie(redis_url) as client:
        yield client


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A Redis that the test may take away."""
    with ValkeyServer(tmp_path / "redis") as own:
        yield own


@pytest.fixture
def nobodys_port() -> Iterator[int]:
    """A port on which nobody listens."""
    block = reserve()
    yield block[0]
    block.release()


def test_thousands_of_jobs_are_submitted_listed_and_purged(kelpie: Kelpie) -> None:
    jobs = kelpie.submit_many([definition()] * 2_000)
    assert len({job.id for job in jobs}) == 2_000
    assert kelpie.counts("g").pending == 2_000
    assert kelpie.app.ledger.redis.llen("kelpie.g:5") == 2_000
    assert {record.id for record in kelpie.list(limit=500)} == {job.id for job in jobs[-500:]}
    assert kelpie.purge("g").canceled == 2_000
    assert kelpie.counts("g").pending == 0


@pytest.mark.parametrize("status", [None, *Status])
def test_every_status_can_be_listed_on_an_empty_server(kelpie: Kelpie, status: Status | None) -> None:
    if status is Status.DRAFT:
        with pytest.raises(ValueError, match="no status"):
            kelpie.list(status=status)
    else:
        assert kelpie.list("g", status) == []


def test_jobs_are_listed_by_status_and_age(kelpie: Kelpie) -> None:
    ids = [kelpie.submit(definition(priority=priority)).id for priority in (9, 0, 5, 1)]
    complete(kelpie, ids[0])
    granted = kelpie.app.ledger.claim(ids[1], "n", "m", "w@m", None, may_run=True)
    assert isinstance(granted, Granted)
    assert [record.id for record in kelpie.list(status="completed")] == ids[:1]
    assert [record.id for record in kelpie.list(status="running")] == ids[1:2]
    assert [record.id for record in kelpie.list(status="pending")] == [ids[3], ids[2]]
    assert [record.id for record in kelpie.list(status="pending", newest_first=False, limit=1)] == [ids[2]]


def test_celery_knows_the_job_by_the_same_id(kelpie: Kelpie) -> None:
    job = kelpie.submit(definition())
    assert kelpie.app.AsyncResult(job.id).state == "PENDING"
    assert job.cancel() == "canceled"
    replay(kelpie.app, job.id, "test@host")
    assert str(kelpie.app.AsyncResult(job.id).state) == "REVOKED"


def step(task: str, *args: Any, **options: Any) -> dict[str, Any]:
    return {"task": task, "args": list(args), "kwargs": {}, "options": options, "subtask_type": None, "immutable": True}


def tamper(kelpie: Kelpie, job_id: str, task: str, **embed: Any) -> None:
    """Write another message into the record, as any worker of the group may."""
    key = keys.job("g", job_id)
    message = json.loads(str(kelpie.app.ledger.redis.hget(key, "message")))
    args, kwargs, held = json.loads(base64.b64decode(message["body"]))
    message["headers"]["task"] = task
    message["body"] = base64.b64encode(json.dumps([args, kwargs, held | embed]).encode()).decode()
    kelpie.app.ledger.redis.hset(key, "message", json.dumps(message))
    kelpie.app.ledger.redis.hdel(key, "outbox_until")  # nobody else is about to tell Celery


EVIL = step("kelpie.run_job", definition(container_group_id="theirs"), task_id="evil", queue="kelpie.theirs")
FOREIGN = [
    ("kelpie.run_job", {"chain": [EVIL]}),
    ("kelpie.run_job", {"callbacks": [EVIL]}),
    ("kelpie.run_job", {"chain": [{**step("celery.group"), "kwargs": {"tasks": [EVIL]}, "subtask_type": "group"}]}),
    ("kelpie.run_job", {"chain": [step("celery.group", [EVIL], "r", [], queue="kelpie.theirs")]}),
    ("kelpie.run_job", {"chain": [step("kelpie.scale", queue="kelpie.control")]}),
    ("kelpie.run_job", {"chain": [step("x", exchange="kelpie.theirs", routing_key="kelpie.theirs")]}),
    ("celery.backend_cleanup", {}),
]


@pytest.mark.parametrize(("task", "embed"), FOREIGN)
def test_what_workers_wrote_into_a_message_is_replayed_into_no_other_group(
    kelpie: Kelpie, task: str, embed: dict[str, Any]
) -> None:
    job = kelpie.submit(definition())
    complete(kelpie, job.id)
    tamper(kelpie, job.id, task, **embed)
    with contextlib.suppress(UntrustedStep):
        replay(kelpie.app, job.id, "test@host")
    redis = kelpie.app.ledger.redis
    assert kelpie.counts("theirs").pending == 0
    assert [key for key in redis.keys("kelpie.theirs*") + redis.keys("kelpie.control*") if redis.llen(key)] == []
    assert not kelpie.get(job.id).celery_done, "nothing of it was told"


def test_wait_sits_out_the_death_and_the_return_of_redis(server: ValkeyServer) -> None:
    with Kelpie(server.url) as kelpie, Kelpie(server.url) as elsewhere:
        job = kelpie.submit(definition())
        looked, ended = threading.Event(), []
        waiter = threading.Thread(
            target=lambda: ended.append(kelpie.wait(job.id, BOUND_S, poll_s=0.2, on_look=lambda _: looked.set()))
        )
        waiter.start()
        assert looked.wait(BOUND_S)
        server.kill()
        server.start()
        complete(elsewhere, job.id)
        waiter.join(BOUND_S)
        assert ended
        assert ended[0].status is Status.COMPLETED


def test_a_submit_survives_a_restart_of_redis_and_creates_each_job_once(server: ValkeyServer) -> None:
    with Kelpie(server.url, retry_s=BOUND_S) as kelpie:
        restarted = threading.Event()

        def restart() -> None:
            server.kill()
            server.start()
            restarted.set()

        killer = threading.Thread(target=restart)
        jobs = kelpie.submit_many([definition()] * 2000, lambda done, _: killer.start() if done == 500 else None)
        assert restarted.wait(BOUND_S)
        killer.join(BOUND_S)
        assert all(job.created for job in jobs)
        assert kelpie.counts("g").pending == len({job.id for job in jobs}) == 2000


def test_a_server_that_is_not_there_is_told_in_time(nobodys_port: int) -> None:
    with Kelpie(f"redis://:secret-word@127.0.0.1:{nobodys_port}/0", retry_s=0.5) as kelpie:
        with pytest.raises(LedgerUnavailable, match="nothing was submitted") as caught:
            kelpie.submit(definition())
        assert "secret-word" not in str(caught.value)


def test_a_wrong_password_is_told_as_such(server: ValkeyServer) -> None:
    url = server.url.replace("redis://", "redis://nobody:secret-word@")
    with Kelpie(url) as kelpie:
        with pytest.raises(LedgerUnavailable, match="refuses the user or the password") as caught:
            kelpie.list()
        assert "secret-word" not in str(caught.value)


def test_threads_may_share_a_client(kelpie: Kelpie) -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.extend(kelpie.submit(definition()).id for _ in range(20)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    assert len(set(found)) == 160
    assert kelpie.counts("g").pending == 160
