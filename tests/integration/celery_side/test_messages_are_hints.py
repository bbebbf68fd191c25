"""Messages may be lost or doubled: the ledger decides."""

from __future__ import annotations

from tests.integration.celery_side.fleet import GROUP, Fleet
from tests.integration.celery_side.played import definition

LIST = f"kelpie.{GROUP}:5"
WORKERS = ("a", "b", "c")


def test_messages_that_were_deleted_by_hand_come_back(fleet: Fleet) -> None:
    with fleet.paused(*WORKERS):
        results = [fleet.run_job.delay(definition(f"lost{i}")) for i in range(8)]
        assert fleet.redis.llen(LIST) > 0
        fleet.redis.delete(LIST)
    for result in results:
        fleet.get(result)
    fleet.expect_once(result.id for result in results)


def test_doubled_messages_run_a_job_once(fleet: Fleet) -> None:
    # Their leases outlast a busy machine: nothing but the messages makes a second run.
    jobs = [definition(f"twice{i}", 0.2, heartbeat_interval=10) for i in range(8)]
    with fleet.paused(*WORKERS):
        results = [fleet.run_job.delay(job) for job in jobs]
        for message in fleet.redis.lrange(LIST, 0, -1):
            fleet.redis.lpush(LIST, message, message)
    for result in results:
        fleet.get(result)
    fleet.wait("every message was received", lambda: fleet.redis.llen(LIST) == 0)
    fleet.get(fleet.run_job.delay(definition("after them")))
    fleet.expect_once(result.id for result in results)
    assert [fleet.runs(result.id) for result in results] == [1] * 8


def test_a_message_of_an_ended_job_changes_nothing(fleet: Fleet) -> None:
    result = fleet.run_job.delay(definition("ended"))
    fleet.get(result)
    fleet.wait_outbox([result.id])
    message = (fleet.app.ledger.message_of(result.id) or "").replace("@KELPIE_TAG@", "1.0.again")
    fleet.redis.lpush(LIST, message)
    fleet.get(fleet.run_job.delay(definition("behind it")))
    fleet.expect_once([result.id])
    assert (fleet.runs(result.id), fleet.state(result.id)) == (1, "SUCCESS")
