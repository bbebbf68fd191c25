"""The ledger's contract: each status of a job with a webhook is noted once, in the call that changes it, until sent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kelpie_celery.errors import WebhookNotFound
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.scripts import text
from kelpie_celery.ledger.webhooks import Webhook
from kelpie_celery.lifecycle import Status
from tests.contract.ledger_cases import GROUP, World, again, completed, failure, interruption
from tests.contract.ledger_fixtures import any_redis, ledger_valkey, w

__all__ = ["any_redis", "ledger_valkey", "w"]

URL = "https://hooks.example/secret-path"
LEASE_S = 60.0


def submit(w: World, job_id: str = "j1", **given: Any) -> None:
    w.submit(job_id, **{"webhook": URL, **given})


def told(w: World, job_id: str = "j1") -> dict[str, tuple[str, int, str | None, str]]:
    """Of each status that was noted: state, attempt, machine, reason."""
    return {
        hook.status.value: (hook.told.state, hook.told.attempt, hook.told.machine, hook.told.reason)
        for hook in w.ledger.webhooks_of([job_id])
    }


def take(w: World, limit: int = 10) -> list[Webhook]:
    return w.ledger.take_webhooks(GROUP, limit, LEASE_S)


def test_a_job_without_a_webhook_notes_nothing(w: World) -> None:
    w.submit()
    w.ledger.end_attempt(w.claim(), completed())
    assert told(w) == {}
    assert take(w) == []
    assert not w.redis.exists(keys.index(GROUP, "webhooks"))


def test_start_and_end_of_a_job_are_told(w: World) -> None:
    submit(w)
    token = w.claim(machine="m7")
    assert told(w) == {"running": ("waiting", 1, "m7", "")}
    w.ledger.end_attempt(token, completed())
    assert told(w)["completed"] == ("waiting", 1, "m7", "")


def test_each_status_is_told_once_however_many_attempts_there_are(w: World) -> None:
    submit(w, max_failures=2)
    w.ledger.end_attempt(w.claim(machine="m1"), interruption())
    w.ledger.end_attempt(w.claim(machine="m2"), again())
    w.ledger.end_attempt(w.claim(machine="m3"), failure())
    token = w.claim(machine="m4")
    w.ledger.end_attempt(token, failure())
    w.ledger.end_attempt(token, failure())
    assert told(w) == {"running": ("waiting", 1, "m1", ""), "failed": ("waiting", 4, "m4", "exit_code")}
    assert sorted(hook.status for hook in take(w)) == [Status.FAILED, Status.RUNNING]


def test_a_claim_whose_answer_was_lost_tells_once(w: World) -> None:
    submit(w)
    w.claim(nonce="n")
    [hook] = take(w)
    w.ledger.settle_webhook(hook, "sent", code=200)
    w.claim(nonce="n")
    assert take(w) == []


def test_a_cancel_is_told_of_a_pending_and_of_a_running_job(w: World) -> None:
    submit(w, "waits")
    w.ledger.cancel("waits")
    assert told(w, "waits") == {"canceled": ("waiting", 0, None, "canceled")}
    submit(w, "runs")
    w.start("runs")
    w.ledger.cancel("runs")
    w.wait(120)
    assert told(w, "runs")["canceled"] == ("waiting", 1, "m1", "canceled")


def test_a_poisoned_job_is_told_as_failed(w: World) -> None:
    submit(w)
    w.alive("m1")
    for _ in range(10):
        w.start()
        w.wait(31)
    assert told(w)["failed"] == ("waiting", 10, "m1", "poisoned")


def test_a_step_of_a_workflow_that_was_canceled_before_it_was_reached_is_told(w: World) -> None:
    w.ledger.draft("step2", GROUP, "{}")
    w.ledger.cancel("step2")
    submit(w, "step2", definition="")
    assert told(w, "step2") == {"canceled": ("waiting", 0, None, "canceled")}


def test_what_is_taken_is_nobody_elses_until_its_lease_is_over(w: World) -> None:
    submit(w)
    w.claim()
    [first] = take(w)
    assert (first.url, first.told.tries, first.job_id) == (URL, 1, "j1")
    assert URL not in repr(first)
    assert take(w) == []
    w.clock.advance(LEASE_S + 1)
    [second] = take(w)
    assert second.told.tries == 2


def test_a_webhook_is_recorded_as_sent_once_by_whichever_try_got_through(w: World) -> None:
    submit(w)
    w.claim()
    [slow] = take(w)
    w.clock.advance(LEASE_S + 1)
    [newer] = take(w)
    assert w.ledger.settle_webhook(slow, "dead", error="too late") == "waiting"
    assert w.ledger.settle_webhook(slow, "sent", code=204) == "sent"
    assert w.ledger.settle_webhook(newer, "sent", code=500) == "sent"
    assert w.ledger.settle_webhook(newer, "again", code=500) == "sent"
    w.clock.advance(10 * LEASE_S)
    assert take(w) == []
    [sent] = w.ledger.webhooks_of(["j1"])
    assert (sent.told.state, sent.told.code, sent.due) == ("sent", 204, None)


def test_a_webhook_that_was_not_taken_comes_again_after_the_pause(w: World) -> None:
    submit(w)
    w.claim()
    [hook] = take(w)
    assert w.ledger.settle_webhook(hook, "again", delay_s=100, code=503, error="answered 503") == "waiting"
    w.clock.advance(99)
    assert take(w) == []
    w.clock.advance(2)
    [hook] = take(w)
    assert (hook.told.tries, hook.told.code, hook.told.error) == (2, 503, "answered 503")
    assert hook.told.tried is not None


def test_a_try_that_was_not_made_does_not_count(w: World) -> None:
    submit(w)
    w.claim()
    [hook] = take(w)
    w.ledger.settle_webhook(hook, "unsent", delay_s=1)
    w.clock.advance(2)
    [hook] = take(w)
    assert hook.told.tries == 1


def test_a_dead_one_is_listed_until_it_is_tried_again(w: World) -> None:
    submit(w)
    w.claim()
    [hook] = take(w)
    assert w.ledger.settle_webhook(hook, "dead", error="gone") == "dead"
    assert (w.ledger.webhook_ids(GROUP, dead=True, limit=9), w.ledger.webhook_ids(GROUP, dead=False, limit=9)) == (
        ["j1"],
        [],
    )
    w.clock.advance(10 * LEASE_S)
    assert take(w) == []
    assert w.ledger.steer_webhook("j1", Status.RUNNING, "retry") == "dead"
    [hook] = take(w)
    assert hook.told.tries == 1
    assert w.ledger.webhook_ids(GROUP, dead=True, limit=9) == []


def test_a_dropped_one_is_not_sent_unless_it_is_asked_for_again(w: World) -> None:
    submit(w)
    w.claim()
    assert w.ledger.steer_webhook("j1", Status.RUNNING, "drop") == "waiting"
    assert take(w) == []
    assert w.ledger.steer_webhook("j1", Status.RUNNING, "retry") == "dropped"
    assert len(take(w)) == 1


def test_one_that_was_sent_stays_so(w: World) -> None:
    submit(w)
    w.claim()
    [hook] = take(w)
    w.ledger.settle_webhook(hook, "sent", code=200)
    assert w.ledger.steer_webhook("j1", Status.RUNNING, "retry") == "sent"
    assert w.ledger.steer_webhook("j1", Status.RUNNING, "drop") == "sent"
    assert take(w) == []


@pytest.mark.parametrize(("job_id", "status"), [("j1", Status.FAILED), ("nonesuch", Status.RUNNING)])
def test_what_is_not_there_can_neither_be_retried_nor_dropped(w: World, job_id: str, status: Status) -> None:
    submit(w)
    w.claim()
    with pytest.raises(WebhookNotFound, match=job_id):
        w.ledger.steer_webhook(job_id, status, "retry")


def test_webhooks_go_with_their_job(w: World) -> None:
    submit(w)
    w.ledger.end_attempt(w.claim(), completed())
    [first, second] = take(w)
    w.ledger.settle_webhook(first, "dead")
    w.ledger.celery_done("j1")
    w.wait(w.ledger.timings.job_retention_s + 10, step_s=86400)
    assert not w.redis.exists(keys.index(GROUP, "webhooks"), keys.index(GROUP, "webhooks_dead"))
    assert w.ledger.webhooks_of(["j1"]) == []
    assert w.ledger.settle_webhook(second, "sent", code=200) == ""


def test_a_clock_that_is_put_back_keeps_no_webhook_waiting(w: World) -> None:
    submit(w)
    w.claim()
    w.tick()
    w.clock.advance(-3600)
    w.tick()
    assert len(take(w)) == 1


def test_as_many_as_are_asked_for_are_taken_the_oldest_first(w: World) -> None:
    for n in range(5):
        submit(w, f"j{n}")
        w.claim(f"j{n}")
        w.clock.advance(1)
    assert [hook.job_id for hook in take(w, 3)] == ["j0", "j1", "j2"]
    assert [hook.job_id for hook in take(w, 3)] == ["j3", "j4"]


# -- a group's workers may write all its keys ----------------------------------------------------------------------


def test_a_worker_cannot_have_a_webhook_sent_in_the_name_of_another_groups_job(w: World) -> None:
    w.submit("theirs", group="other")
    forged: dict[Any, Any] = {
        "webhook": "https://evil.example",
        "told:completed": json.dumps({"state": "waiting", "tries": 0, "at": 1}),
    }
    w.ledger.watching = False
    w.redis.hset(keys.job(GROUP, "theirs"), mapping=forged)
    w.redis.zadd(keys.index(GROUP, "webhooks"), {"theirs:completed": 1})
    assert take(w) == []
    assert w.redis.zcard(keys.index(GROUP, "webhooks")) == 0


@pytest.mark.parametrize("entry", [
    "", "[", "1", "{}", '{"state":"waiting"}', '{"state":"waiting","tries":"x"}', '{"state":"waiting","tries":-5}',
    '{"state":"waiting","tries":0,"at":1e300}', '{"state":"waiting","tries":0,"at":"x","machine":{}}',
    '{"state":"waiting","tries":0,"at":1,"reason":"' + "x" * 1000 + '"}',
])  # fmt: skip
@pytest.mark.parametrize("member", ["j1:running", "j1:nonsense", "", "::", "nonesuch:running"])
def test_what_no_operation_of_ours_wrote_is_not_sent_and_stops_nothing(w: World, entry: str, member: str) -> None:
    submit(w, "good")
    submit(w)
    w.redis.hset(keys.job(GROUP, "j1"), "told:running", entry)
    w.redis.zadd(keys.index(GROUP, "webhooks"), {member: 1})
    w.claim("good")
    assert [hook.job_id for hook in take(w)] == ["good"]
    assert [hook.job_id for hook in w.ledger.webhooks_of(["j1", "good"])] == ["good"]


def test_a_due_time_that_no_clock_knows_breaks_no_listing(w: World) -> None:
    submit(w)
    w.claim()
    w.redis.zadd(keys.index(GROUP, "webhooks"), {"j1:running": float("inf")})
    assert w.ledger.webhooks_of(["j1"]) == []
    assert text(w.redis.hget(keys.job(GROUP, "j1"), "webhook")) == URL
