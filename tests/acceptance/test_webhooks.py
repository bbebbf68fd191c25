"""Webhooks of real jobs, sent by a real control worker, also over its death."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from standardwebhooks.webhooks import Webhook as Verifier

from kelpie_celery.ledger import keys
from kelpie_celery.ledger.webhooks import Webhook
from kelpie_celery.local.servers import SeaweedServer
from tests.acceptance.test_secrets import CANARY
from tests.harness.hooks import ANSWER, Got, Receiver
from tests.harness.stack import GROUP, Stack

KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
API_KEY = "salad-api-key-canary"


@pytest.fixture(scope="module")
def hooked(servers_directory: Path, s3_server: SeaweedServer) -> Iterator[Stack]:
    """One worker, and a control worker that may send to this machine."""
    env = {
        "KELPIE_WEBHOOK_ALLOW_PRIVATE": "1", "KELPIE_WEBHOOK_SECRET": KEY, "KELPIE_WEBHOOK_RETRY_BASE_S": "0.2",
        "KELPIE_WEBHOOK_TRIES": "3", "SALAD_API_KEY": API_KEY,
    }  # fmt: skip
    stack = Stack(servers_directory / "webhooks", s3_server, workers=1, bucket="webhooks", env=env)
    try:
        yield stack.start()
    finally:
        stack.close()


def told(stack: Stack, job_id: str) -> dict[str, Webhook]:
    return {hook.status.value: hook for hook in stack.ledger.webhooks_of([job_id])}


def wait_told(stack: Stack, job_id: str, **states: str) -> dict[str, Webhook]:
    """Wait until the statuses of a job have these states."""

    def look() -> dict[str, Webhook] | None:
        found = told(stack, job_id)
        return found if {status: hook.told.state for status, hook in found.items()} == states else None

    return stack.wait(f"the webhooks of job {job_id} are {states}", look, 60)


@pytest.mark.timeout(120)
def test_every_status_is_told_once_signed_and_without_a_secret(hooked: Stack) -> None:
    stack = hooked
    with Receiver() as receiver:
        more = {"webhook": receiver.url(f"/{CANARY}-path"), "environment": {"TOKEN": CANARY}}
        completed = stack.submit(stack.shell('echo "$TOKEN"', **more))
        failed = stack.submit(stack.shell('echo "$TOKEN" >&2; exit 3', max_failures=2, **more))
        canceled = stack.submit(stack.shell("sleep 600", **more))
        stack.wait_executing(canceled)
        stack.ledger.cancel(canceled, CANARY)
        wait_told(stack, completed, running="sent", completed="sent")
        wait_told(stack, failed, running="sent", failed="sent")
        wait_told(stack, canceled, running="sent", canceled="sent")
        got = list(receiver.got)

    statuses = sorted((one.document["job_id"], one.document["status"]) for one in got)
    ended = ((completed, "completed"), (failed, "failed"), (canceled, "canceled"))
    assert statuses == sorted([(job_id, status) for pair in ended for job_id, status in (pair, (pair[0], "running"))])
    machine = stack.get(failed).machine_id
    [end] = [one.document for one in got if one.document["status"] == "failed"]
    assert end == {
        "status": "failed", "job_id": failed, "machine_id": machine, "container_group_id": GROUP, "attempt": 2,
        "reason": "exit_code",
    }  # fmt: skip
    for one in got:
        Verifier(KEY).verify(one.body, one.headers)
        assert one.path == f"/{CANARY}-path"
        sent = f"{one.headers} {one.body!r}"
        assert CANARY not in sent
        assert API_KEY not in sent
        assert KEY.removeprefix("whsec_") not in sent
        assert "x-kelpie-key" not in one.headers
    for name, process in stack.local.processes.items():
        for secret in (CANARY, API_KEY, KEY.removeprefix("whsec_")):
            assert secret not in process.log.read_text(), name


@pytest.mark.timeout(120)
def test_a_control_worker_killed_between_the_post_and_its_record_sends_again_under_one_id(hooked: Stack) -> None:
    stack = hooked
    killed, arrived = threading.Event(), threading.Event()

    def answer(_got: Got, _sock: socket.socket) -> bytes:
        arrived.set()
        assert killed.wait(60)
        return ANSWER

    with Receiver(answer) as receiver:
        job_id = stack.submit(stack.shell("sleep 600", webhook=receiver.url()))
        assert arrived.wait(60)
        stack.local.processes["control"].send_signal(signal.SIGKILL)
        stack.wait("the control worker is gone", lambda: not stack.local.processes["control"].running)
        killed.set()
        assert told(stack, job_id)["running"].told.state == "waiting"
        # Its lease is over: minutes with production's time-outs.
        stack.ledger.redis.zadd(keys.index(GROUP, "webhooks"), {f"{job_id}:running": 0})
        stack.local.start_helper("control")
        stack.local.wait_ready()
        found = wait_told(stack, job_id, running="sent")
        stack.ledger.cancel(job_id)
        wait_told(stack, job_id, running="sent", canceled="sent")
        got = [one for one in receiver.got if one.document["status"] == "running"]

    assert found["running"].told.tries == 2
    assert len(got) == 2
    assert got[0].headers["webhook-id"] == got[1].headers["webhook-id"]
    assert got[0].body == got[1].body


@pytest.mark.timeout(120)
def test_a_receiver_that_never_takes_it_leaves_a_dead_one_that_a_person_can_send(hooked: Stack) -> None:
    stack = hooked
    healthy = threading.Event()

    def answer(_got: Got, _sock: socket.socket) -> bytes:
        return ANSWER if healthy.is_set() else b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n"

    with Receiver(answer) as receiver:
        job_id = stack.submit(stack.shell("true", webhook=receiver.url()))
        found = wait_told(stack, job_id, running="dead", completed="dead")
        assert (found["completed"].told.tries, found["completed"].told.code) == (3, 500)
        healthy.set()
        for status in found.values():
            stack.ledger.steer_webhook(job_id, status.status, "retry")
        wait_told(stack, job_id, running="sent", completed="sent")
