"""No value of a job's environment is anywhere but in its own record (P9)."""

from __future__ import annotations

import json
from typing import Any

from celery import chain, chord, group

from tests.integration.celery_side.conftest import Listener
from tests.integration.celery_side.fleet import Fleet, dump
from tests.integration.celery_side.played import definition

CANARY = "canary-7f3a91c2"


def secret(name: str, *args: object, **fields: Any) -> dict[str, Any]:
    environment = {"TOKEN": CANARY, "URL": f"https://user:{CANARY}@host"}
    return definition(name, 0.02, *args, environment=environment, **fields)


def leaks(fleet: Fleet) -> list[str]:
    found = []
    for key, text in dump(fleet.redis):
        held = json.loads(text)
        if ":job:" in key:
            held.pop("definition", None)
        if CANARY in json.dumps(held):
            found.append(key)
    return found


def test_an_environment_value_is_in_the_definition_of_its_record_and_nowhere_else(
    fleet: Fleet, listener: Listener
) -> None:
    job, plain = fleet.run_job, fleet.plain
    waiting = chain(
        job.s(secret("w1", container_group_id="nobody")),
        group(job.s(secret("w2")), chain(job.s(secret("w3")), job.s(secret("w4")))),
        job.s(secret("w5")),
    )
    waiting.apply_async(link_error=[job.si(secret("w6"))])
    assert leaks(fleet) == [], "while it is pending"
    ran = [
        chain(job.s(secret("c1")), job.s(secret("c2")), plain(tag="sec"), job.s(secret("c3"))).apply_async(),
        chord([job.s(secret("h1")), job.s(secret("h2"))], job.s(secret("body"))).apply_async(),
        group(job.s(secret(f"g{i}")) for i in range(2)).apply_async(),
        job.apply_async((secret("head"),), link=[job.s(secret("link1")), job.s(secret("link2"))]),
        job.delay(secret("retried", 1, mode="fail")),
    ]
    failed = job.apply_async((secret("bad", mode="fail", max_failures=1),), link_error=job.si(secret("onerr")))
    canceled = job.delay(secret("canceled", container_group_id="nobody"))
    canceled.revoke(terminate=True)
    for result in ran:
        fleet.get(result)
    fleet.wait_status(failed.id, "failed")
    fleet.wait_status(canceled.id, "canceled")
    fleet.wait("Flower heard of the failure", lambda: "task-failed" in listener.of(failed.id))
    names = {row for key, row in dump(fleet.redis) if ":job:" in key}
    assert sum(CANARY in row for row in names) > 15, "the canary was planted"
    assert leaks(fleet) == []
    assert len(listener.seen) > 30
    assert CANARY not in json.dumps(listener.seen, default=str)
    logs = [path.read_text() for path in fleet.directory.glob("*.log")]
    assert any(failed.id in log for log in logs)
    assert not any(CANARY in log for log in logs)
    inspected = fleet.app.control.inspect(timeout=0.5)
    assert CANARY not in json.dumps([inspected.active(), inspected.reserved(), inspected.query_task(failed.id)])
