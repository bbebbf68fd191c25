"""The ledger's contract: submit, drafts, idempotency, priorities, and what may be asked."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import json

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from kelpie_celery.errors import JobNotFound, LedgerUnavailable
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.types import GroupCounts, Refused, Submitted
from kelpie_celery.lifecycle import Phase, Status
from tests.contract.ledger_cases import GROUP, START, World, completed, failure
from tests.contract.ledger_fixtures import any_redis, ledger_valkey, w  # noqa: F401

RETENTION_S = 30 * 86400


# -- submit --------------------------------------------------------------------------------------------------------


def test_submit_writes_a_pending_record_and_one_message_with_the_time_in_its_tag(w: World) -> None:
    assert w.submit(name="sim") == Submitted("created", "j1", Status.PENDING)
    record = w.ledger.get("j1")
    assert (record.status, record.name, record.priority, record.created) == (Status.PENDING, "sim", 4, START)
    assert (record.attempt, record.num_failures, record.max_failures, record.attempts) == (0, 0, 3, [])
    assert record.definition == {"command": "sim", "job": "j1"}
    assert record.container_group_id == GROUP
    [message] = w.messages()
    assert json.loads(message)["properties"]["delivery_tag"] == f"{START:.6f}.j1"


def test_only_the_first_tag_of_a_message_is_filled_in(w: World) -> None:
    w.submit(message='{"properties":{"delivery_tag":"@KELPIE_TAG@"},"body":"50%% @KELPIE_TAG@ %1"}')
    assert json.loads(w.messages()[0])["body"] == "50%% @KELPIE_TAG@ %1"
    assert w.pop() == ("j1", START)


def test_the_second_submit_of_an_id_changes_and_publishes_nothing(w: World) -> None:
    w.submit(submission="a")
    assert w.submit(submission="b", definition='{"command":"other"}') == Submitted("exists", "j1", Status.PENDING)
    assert len(w.messages()) == 1
    assert w.ledger.get("j1").definition["command"] == "sim"


def test_a_submit_whose_answer_was_lost_is_answered_created_again_with_one_message(w: World) -> None:
    w.submit(submission="a")
    assert w.submit(submission="a").what == "created"
    w.claim()
    assert w.submit(submission="a") == Submitted("created", "j1", Status.RUNNING)
    assert len(w.messages()) == 1


def test_an_ended_job_is_not_started_again_by_its_id(w: World) -> None:
    w.submit()
    w.ledger.end_attempt(w.start(), completed())
    assert w.submit() == Submitted("exists", "j1", Status.COMPLETED)


def test_the_same_idempotency_key_and_definition_is_the_same_job(w: World) -> None:
    w.submit("j1", idempotency_key="k", digest="d")
    assert w.submit("j2", idempotency_key="k", digest="d") == Submitted("exists", "j1", Status.PENDING)
    assert w.ledger.group_of("j2") is None
    assert len(w.messages()) == 1


def test_the_same_idempotency_key_with_another_definition_is_a_conflict(w: World) -> None:
    w.submit("j1", idempotency_key="k", digest="d")
    assert w.submit("j2", idempotency_key="k", digest="e") == Submitted("conflict", "j1", Status.PENDING)
    assert w.ledger.group_of("j2") is None


def test_idempotency_keys_belong_to_a_group(w: World) -> None:
    w.submit("j1", idempotency_key="k")
    assert w.submit("j2", idempotency_key="k", group="other").what == "created"


def test_an_idempotency_key_holds_after_the_end_of_its_job(w: World) -> None:
    w.submit("j1", idempotency_key="k")
    w.ledger.end_attempt(w.start(), completed())
    assert w.submit("j2", idempotency_key="k") == Submitted("exists", "j1", Status.COMPLETED)


def test_each_priority_has_its_own_list(w: World) -> None:
    w.submit("high", priority=0)
    w.submit("low", priority=9)
    assert w.pop(priority=0) == ("high", START)
    assert w.pop(priority=9) == ("low", START)
    assert w.redis.exists(f"kelpie.{GROUP}:4") == 0


def test_pending_jobs_are_listed_by_priority_and_then_by_age(w: World) -> None:
    for job_id, priority in (("c", 9), ("a", 2), ("b", 2)):
        w.submit(job_id, priority=priority)
        w.clock.advance(0.5)
    assert w.ledger.ids(GROUP, "pending", 0, -1) == ["a", "b", "c"]
    assert w.ledger.ids(GROUP, "created", 0, 1, newest_first=True) == ["b", "a"]


def test_a_delayed_job_is_published_when_it_is_due_and_not_before(w: World) -> None:
    w.submit(delay_s=60.0)
    assert w.messages() == []
    assert w.ledger.get("j1").not_before == START + 60
    assert w.ask() == Refused("delayed")
    assert w.wait(59).promoted == 0
    assert w.wait(1).promoted == 1
    assert w.pop() == ("j1", START + 60)
    assert w.ledger.get("j1").not_before is None


def test_many_are_submitted_in_batches_each_with_its_own_answer(w: World) -> None:
    w.submit("m7")
    w.ledger.watching = False
    answers = w.ledger.submit_many([w.new(f"m{n}") for n in range(25)], batch=10)
    assert [a.what for a in answers] == ["exists" if n == 7 else "created" for n in range(25)]
    assert [a.job_id for a in answers] == [f"m{n}" for n in range(25)]
    assert len(w.messages()) == 25
    assert w.ledger.submit_many([]) == []


def test_a_definition_left_to_a_draft_that_does_not_exist_is_refused(w: World) -> None:
    with pytest.raises(JobNotFound, match="workflow"):
        w.submit(definition="")
    assert w.redis.keys("kelpie*") == []


# -- drafts --------------------------------------------------------------------------------------------------------


def draft_key(job_id: str) -> str:
    return keys.job(GROUP, job_id)


def test_a_draft_keeps_a_definition_and_is_no_job_yet(w: World) -> None:
    assert w.ledger.draft("step2", GROUP, '{"command":"two"}')
    assert w.ledger.definition_of("step2") == '{"command":"two"}'
    assert w.ledger.status_of("step2") is Status.DRAFT
    assert w.ledger.get("step2").definition == {"command": "two"}
    assert w.ledger.counts(GROUP) == GroupCounts()
    assert w.messages() == []
    assert w.ask("step2") == Refused("draft")


def test_the_id_of_a_draft_is_taken_once_in_whatever_group(w: World) -> None:
    w.submit("j1")
    assert not w.ledger.draft("j1", GROUP, "{}")
    assert not w.ledger.draft("j1", "other", "{}")
    assert w.ledger.group_of("j1") == GROUP


def test_a_draft_becomes_a_job_with_its_own_definition_and_the_parents_results(w: World) -> None:
    w.ledger.draft("step2", GROUP, '{"command":"two"}')
    assert w.submit("step2", definition="", parents="[41]").what == "created"
    assert w.redis.ttl(draft_key("step2")) == w.redis.ttl(keys.where("step2")) == -1
    answer = w.ask("step2")
    assert (getattr(answer, "definition", ""), getattr(answer, "parents", "")) == ('{"command":"two"}', "[41]")


def test_a_draft_that_nobody_refers_to_goes_after_retention(w: World) -> None:
    w.ledger.draft("step2", GROUP, "{}")
    for key in (draft_key("step2"), keys.where("step2")):
        assert RETENTION_S - 10 <= w.redis.ttl(key) <= RETENTION_S


def test_a_draft_lives_as_long_as_the_last_of_the_jobs_that_refer_to_it(w: World) -> None:
    w.ledger.draft("body", GROUP, "{}")
    for part in ("p1", "p2"):
        w.submit(part, drafts=(draft_key("body"),))
    kept = (draft_key("body"), keys.where("body"))
    assert [w.redis.ttl(key) for key in kept] == [-1, -1]
    w.ledger.end_attempt(w.start("p1"), completed())
    assert [w.redis.ttl(key) for key in kept] == [-1, -1]
    w.ledger.cancel("p2")
    assert all(RETENTION_S - 10 <= w.redis.ttl(key) <= RETENTION_S for key in kept)
    assert w.submit("body", definition="").what == "created"
    assert [w.redis.ttl(key) for key in kept] == [-1, -1]


def test_a_draft_that_became_a_job_does_not_expire_with_the_jobs_that_referred_to_it(w: World) -> None:
    w.ledger.draft("step2", GROUP, "{}")
    w.submit("j1", drafts=(draft_key("step2"),))
    token = w.start("j1")
    w.submit("step2", definition="")
    w.ledger.end_attempt(token, completed())
    assert w.redis.ttl(draft_key("step2")) == -1


def test_a_reference_to_a_draft_that_is_gone_does_no_harm(w: World) -> None:
    w.submit("j1", drafts=(draft_key("gone"),))
    w.ledger.end_attempt(w.start("j1"), completed())
    assert w.redis.exists(draft_key("gone")) == 0


def test_a_canceled_draft_ends_like_a_job_when_its_workflow_reaches_it(w: World) -> None:
    w.ledger.draft("step2", GROUP, "{}")
    assert w.ledger.cancel("step2", "not needed") == "canceled"
    assert w.ledger.status_of("step2") is Status.CANCELED
    assert 0 < w.redis.ttl(draft_key("step2")) <= RETENTION_S
    assert w.tick().outbox == ()
    assert w.submit("step2", definition="") == Submitted("exists", "step2", Status.CANCELED)
    assert w.redis.ttl(draft_key("step2")) == w.redis.ttl(keys.where("step2")) == -1
    record = w.ledger.get("step2")
    assert (record.status, record.message, record.celery_done) == (Status.CANCELED, "not needed", False)
    assert w.tick().outbox == ("step2",), "Celery is to be told"
    assert w.submit("step2", definition="").what == "exists"
    assert w.ledger.counts(GROUP).canceled == 1


# -- questions -----------------------------------------------------------------------------------------------------


def test_an_unknown_job_is_named_in_the_error(w: World) -> None:
    with pytest.raises(JobNotFound, match="nope"):
        w.ledger.get("nope")
    with pytest.raises(JobNotFound, match="nope"):
        w.ledger.cancel("nope")
    assert w.ledger.status_of("nope") is None
    assert w.ledger.definition_of("nope") is None
    assert w.ledger.message_of("nope") is None
    assert w.ledger.group_of("nope") is None
    assert w.ask("nope") == Refused("unknown")
    assert not w.ledger.celery_done("nope")


def test_many_records_come_in_the_order_asked_for_without_those_that_do_not_exist(w: World) -> None:
    w.submit("a")
    w.submit("b", group="other")
    assert [r.id for r in w.ledger.get_many(["b", "nope", "a"])] == ["b", "a"]
    assert w.ledger.get_many([]) == []


def test_the_stored_message_is_the_one_that_was_given(w: World) -> None:
    w.submit()
    assert w.ledger.message_of("j1") == w.new().message


def test_groups_are_listed_by_name(w: World) -> None:
    assert w.ledger.groups() == []
    w.submit("a", group="zeta")
    w.submit("b", group="alpha")
    assert w.ledger.groups() == ["alpha", "zeta"]


def test_counts_follow_every_job_to_its_end(w: World) -> None:
    for n in range(6):
        w.submit(f"j{n}")
    w.submit("later", delay_s=5)
    w.ledger.end_attempt(w.start("j0"), completed())
    w.ledger.end_attempt(w.start("j1"), failure(final=True))
    w.ledger.cancel("j2")
    w.start("j3")
    counts = w.ledger.counts(GROUP)
    assert counts == GroupCounts(pending=3, delayed=1, running=1, completed=1, failed=1, canceled=1)
    assert w.ledger.counts("nowhere") == GroupCounts()


def test_a_record_shows_phase_and_progress_while_it_runs(w: World) -> None:
    w.submit()
    token = w.start()
    w.ledger.renew(token, Phase.UPLOADING, '{"progress":0.5,"message":"half","eta_s":3}')
    record = w.ledger.get("j1")
    assert (record.phase, record.machine_id, record.worker, record.num_heartbeats) == (Phase.UPLOADING, "m1", "w@m1", 2)
    assert record.progress is not None
    assert (record.progress.progress, record.progress.message) == (0.5, "half")
    assert (record.started, record.heartbeat) == (START, START)
    assert "sim" not in repr(record)


def test_a_server_that_is_away_is_one_kind_of_error_that_says_what_to_do() -> None:
    nobody = Ledger(Redis(host="127.0.0.1", port=1, password="hunter2", retry=Retry(NoBackoff(), 0)))
    with pytest.raises(LedgerUnavailable, match="KELPIE_REDIS_URL") as caught:
        nobody.cancel("j1")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(LedgerUnavailable):
        nobody.get("j1")
