"""A worker whose Redis user may touch its own group alone does all that a worker does; the user can do nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord
from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

from kelpie_celery.errors import LedgerRefused
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.rules import Rules
from kelpie_celery.ledger.types import Ending, FencingToken, NewOutput
from kelpie_celery.lifecycle import Outcome, Phase, Reason, Status
from kelpie_celery.local.servers import SeaweedServer
from tests.acceptance.test_secrets import EventTap
from tests.harness.acl import PASSWORD, make_user, refusals
from tests.harness.looking import outputs_under
from tests.harness.stack import GROUP, Stack


@pytest.fixture(scope="module")
def limited(servers_directory: Path, s3_server: SeaweedServer) -> Iterator[Stack]:
    """A control worker with all rights, and two workers with the rules of their group."""
    stack = Stack(servers_directory / "acl", s3_server, workers=0, bucket="acl-stack")
    try:
        stack.start()
        assert stack.local.redis is not None
        url = make_user(stack.local.redis.url, GROUP)
        for _ in range(2):
            stack.local.start_worker(env={"KELPIE_REDIS_URL": url})
        stack.local.wait_ready()
        yield stack
    finally:
        stack.close()


def unexpected(stack: Stack) -> set[tuple[str, str, str]]:
    """What was refused but for what the ledger leaves to the control worker."""
    assert stack.local.redis is not None
    left = ("kelpie:where:", "kelpie:groups", "client|setinfo")
    return {row for row in refusals(stack.local.redis.url) if not row[1].startswith(left)}


@pytest.mark.timeout(180)
def test_a_worker_with_the_rules_of_its_group_does_all_that_a_worker_does(limited: Stack) -> None:
    stack = limited
    tap = EventTap(stack)
    tap.start()
    assert tap.connected.wait(20)
    places: dict[str, Any] = {f"{role}_bucket": stack.bucket for role in ("input", "checkpoint", "output")}
    places |= {f"{role}_prefix": f"{role}/" for role in ("input", "checkpoint", "output")}
    stack.s3.put_object(Bucket=stack.bucket, Key="input/a", Body=b"alpha")
    run = stack.run_job

    script = "echo said; cp $INPUT_DIR/a $OUTPUT_DIR/b; echo 1 > $CHECKPOINT_DIR/s; sleep 2; [ $KELPIE_ATTEMPT -gt 1 ]"
    stored = stack.submit_async(stack.shell(script, **places))
    canceled = stack.submit(stack.shell("sleep 600"))
    killed = stack.submit(stack.shell("[ $KELPIE_ATTEMPT -gt 1 ] || sleep 600"))
    stack.wait_executing(canceled)
    stack.ledger.cancel(canceled)
    stack.wait_status(canceled, "canceled")
    stack.wait_executing(killed, attempt=1)
    number = stack.worker_of(killed)
    stack.kill_worker(number, signal.SIGKILL)
    assert stored.get(timeout=60)["exit_code"] == 0
    stack.wait_status(killed, "completed")
    steps = chain(run.s(stack.shell("true")), run.s(stack.shell("true")), run.s(stack.shell("true"))).apply_async()
    gathered = chord([run.s(stack.shell("true")), run.s(stack.shell("true"))], run.s(stack.shell("true"))).apply_async()
    assert steps.get(timeout=60)["exit_code"] == 0
    assert gathered.get(timeout=60)["exit_code"] == 0
    pongs = stack.app.control.ping(timeout=5, limit=2) or []
    tap.stop()

    record = stack.get(stored.id)
    assert (record.num_failures, record.attempt) == (1, 2)
    assert record.num_commits > 0
    assert stack.ledger.output(stored.id).lines == ("said",)
    assert record.num_heartbeats > 0
    assert outputs_under(stack.s3, stack.bucket, "output/") == {"b": b"alpha"}
    assert {e["type"] for e in tap.seen} >= {"task-started", "task-succeeded", "task-retried", "task-revoked"}
    assert len(pongs) == 2
    assert unexpected(stack) == set()


@pytest.mark.timeout(120)
def test_a_workflow_that_goes_on_in_another_group_is_carried_over_by_the_control_worker(limited: Stack) -> None:
    stack = limited
    assert stack.local.redis is not None
    other = make_user(stack.local.redis.url, "other-group")
    stack.start_worker(KELPIE_REDIS_URL=other, SALAD_CONTAINER_GROUP_ID="other-group")
    run, there = stack.run_job, {"container_group_id": "other-group"}

    steps = [stack.shell("true"), stack.shell("true", **there), stack.shell("true")]
    assert chain(*(run.s(step) for step in steps)).apply_async().get(timeout=90)["exit_code"] == 0


@pytest.fixture(scope="module")
def foreign(limited: Stack) -> dict[str, str]:
    """A running job of another group, all that a worker could know of it, and what the scaler keeps."""
    stack = limited
    stack.ledger.redis.hset(keys.RULES, "elsewhere", "{}")
    job_id = stack.submit(stack.shell("true", container_group_id="elsewhere"))
    stack.submitted.remove(job_id)
    return {"id": job_id, "job": keys.job("elsewhere", job_id), "where": keys.where(job_id)}


def test_what_workers_do_when_they_are_asked_through_celery_ends_at_their_group(
    limited: Stack, foreign: dict[str, str]
) -> None:
    stack = limited
    assert stack.local.redis is not None
    url = make_user(stack.local.redis.url, GROUP)
    # Other tests kill some of the fixture's, and start others.
    for number in stack.local.workers:
        stack.kill_worker(number)
    numbers = [stack.start_worker(KELPIE_REDIS_URL=url) for _ in range(2)]
    names = sorted(f"kelpie@{stack.local.machines[number].machine_id}" for number in numbers)
    broadcast: Any = stack.app.control.broadcast

    def asked(command: str, within_s: float = 60.0, **arguments: str) -> dict[str, Any]:
        answers = broadcast(command, arguments, destination=names, reply=True, timeout=within_s, limit=2)
        return {name: said for answer in answers for name, said in answer.items()}

    # A worker may run jobs a moment before it has subscribed to what it is asked.
    stack.wait("both answer", lambda: sorted(asked("ping", within_s=2.0)) == names)

    mine = stack.submit(stack.shell("sleep 600"))
    stack.wait_executing(mine)
    told = asked("jobs")
    assert sorted(told) == names
    assert [job["id"] for said in told.values() for job in said["jobs"]] == [mine]
    refused = {"ok": f"{foreign['id']}: a job of another container group, left to its own workers"}
    assert asked("cancel_job", job_id=foreign["id"]) == dict.fromkeys(names, refused)
    assert stack.get(foreign["id"]).status == "pending"
    assert {said["ok"].split(": ")[0] for said in asked("cancel_job", job_id=mine).values()} == {mine}
    stack.wait_status(mine, "canceled")


@pytest.fixture
def intruder(limited: Stack, foreign: dict[str, str]) -> Iterator[Redis]:
    """A node's owner with the password of its worker."""
    assert limited.local.redis is not None
    with Redis.from_url(make_user(limited.local.redis.url, GROUP), decode_responses=True) as client:
        assert client.get(foreign["where"]) == "elsewhere"  # known to whoever knows the id, and no more than that
        yield client


FORBIDDEN = [
    "HGETALL {job}", "HGET {job} status", "HSET {job} status completed", "DEL {job}", "EXPIRE {job} 1", "TTL {job}",
    "SET {where} test-group", "DEL {where}", "EXPIRE {where} 0", "PERSIST {where}", "LRANGE kelpie.elsewhere:5 0 -1",
    "BRPOP kelpie.elsewhere:5 1", "LPUSH kelpie.elsewhere x", "DEL kelpie.elsewhere:5", "LPUSH kelpie.control x",
    "BRPOP kelpie.control 1", "LPUSH celery x", "RPOP celery", "ZRANGE kelpie:g:elsewhere:pending 0 -1",
    "HGETALL kelpie:g:elsewhere:totals", "HINCRBYFLOAT kelpie:g:elsewhere:stats:19700 1:useful_s 9",
    "ZADD kelpie:g:elsewhere:webhooks 1 x", "SMEMBERS kelpie:groups", "HGETALL kelpie:rules",
    "LRANGE kelpie:g:elsewhere:output:{id} 0 -1",
    "HSET kelpie:rules test-group x", "GET kelpie:beat:lock", "DEL kelpie:beat::schedule", "HGETALL kelpie:unacked",
    "HGETALL kelpie:g:elsewhere:unacked", "SMEMBERS _kombu.binding.kelpie.elsewhere",
    "LRANGE x.reply.celery.pidbox 0 -1", "RPOP x.reply.celery.pidbox", "KEYS *", "SCAN 0", "RANDOMKEY", "DBSIZE",
    "FLUSHALL", "FLUSHDB", "SWAPDB 0 1", "MOVE {job} 1", "COPY {job} kelpie:g:{group}:x",
    "RENAME kelpie:g:{group}:x {job}", "SORT kelpie:g:{group}:x", "DUMP {job}", "CONFIG GET *", "ACL LIST",
    "ACL WHOAMI", "CLIENT LIST", "CLIENT KILL ID 1", "MONITOR", "SHUTDOWN", "REPLICAOF NO ONE", "SLOWLOG GET", "SAVE",
    "FUNCTION LIST", "SCRIPT FLUSH", "PUBLISH /0.celery.pidbox x", "PSUBSCRIBE *", "PSUBSCRIBE /0.celeryev/*",
    "SUBSCRIBE /0.celeryev/task.received", "PSUBSCRIBE celery-task-meta-*",
    "EVAL return(redis.call('HGETALL','{job}')) 0", "EVAL return(redis.call('LPUSH','kelpie.control','x')) 0",
    "EVAL return(redis.call('KEYS','*')) 0",
]  # fmt: skip


@pytest.mark.parametrize("command", FORBIDDEN)
def test_the_users_password_opens_nothing_of_other_groups(
    intruder: Redis, foreign: dict[str, str], command: str
) -> None:
    anybody: Any = intruder
    words = [word.format(**foreign, group=GROUP) for word in command.split(" ")]
    with pytest.raises(ResponseError, match=r"(?i)no permissions|ACL failure|user executing the script"):
        anybody.execute_command(*words)


def test_the_ledgers_own_operations_are_refused_for_jobs_of_other_groups(
    limited: Stack, intruder: Redis, foreign: dict[str, str]
) -> None:
    before = limited.ledger.redis.hgetall(foreign["job"])
    theirs, token = Ledger(intruder), FencingToken(foreign["id"], 1, "nonce")
    attempts: list[Callable[[], object]] = [
        lambda: theirs.claim(foreign["id"], "nonce", "m", "w", None, may_run=True),
        lambda: theirs.renew(token, Phase.EXECUTING, output=NewOutput(("a line",), 1, 1)),
        lambda: theirs.output(foreign["id"]),
        lambda: theirs.end_attempt(token, Ending(Outcome.COMPLETED, Reason.DONE)),
        lambda: theirs.commit(token, [], {}),
        lambda: theirs.cancel(foreign["id"]),
        lambda: theirs.get(foreign["id"]),
        lambda: theirs.celery_done(foreign["id"]),
        lambda: theirs.steer_webhook(foreign["id"], Status.RUNNING, "drop"),
        lambda: theirs.take_webhooks("elsewhere", 1, 1.0),
        lambda: theirs.tick("elsewhere", uptime_s=1e6, saw_outage=False, fresh=False),
        lambda: theirs.pulse("elsewhere", "m", [], alive=True),
        lambda: theirs.publish_once("a", "kelpie.elsewhere", "{}"),
        lambda: Rules(intruder).all(),
    ]
    for attempt in attempts:
        with pytest.raises(LedgerRefused):
            attempt()
    assert limited.ledger.redis.hgetall(foreign["job"]) == before
    assert not limited.ledger.redis.exists("kelpie:once:a")  # nobody else is kept from publishing it


def test_the_command_prints_what_makes_the_user(limited: Stack, tmp_path: Path) -> None:
    assert limited.local.redis is not None
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    argv = [
        sys.executable,
        "-m",
        "kelpie_celery",
        "redis-acl",
        GROUP,
        "--user",
        "printed",
        "--password-file",
        str(file),
    ]
    printed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert PASSWORD not in printed
    with Redis.from_url(limited.local.redis.url) as admin:
        assert admin.execute_command(*printed.split())
    url = limited.local.redis.url.replace("redis://", f"redis://printed:{PASSWORD}@")
    with Redis.from_url(url) as client:
        assert client.hset(f"{keys.group_prefix(GROUP)}x", "a", "b") == 1
        with pytest.raises(NoPermissionError):
            client.keys("*")
