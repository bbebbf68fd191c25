"""The ledger's contract: cancel, outbox, pulse, messages that go out once."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import pytest

from kelpie_celery.errors import LeaseLost
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.types import Ended
from kelpie_celery.lifecycle import Phase, Status
from tests.contract.ledger_cases import GROUP, World, completed, failure, interruption
from tests.contract.ledger_fixtures import any_redis, ledger_valkey, w  # noqa: F401


def test_a_pending_job_is_canceled_at_once_and_celery_is_told_by_whoever_comes_first(w: World) -> None:
    w.submit()
    assert w.ledger.cancel("j1", "typo") == "canceled"
    record = w.ledger.get("j1")
    assert (record.status, record.reason, record.message) == (Status.CANCELED, "canceled", "typo")
    assert w.tick().outbox == ("j1",)
    assert w.ask(may_run=False) == Ended(Status.CANCELED, None, "canceled", "typo")


def test_a_delayed_job_is_canceled_and_never_comes_back(w: World) -> None:
    w.submit(delay_s=5)
    assert w.ledger.cancel("j1") == "canceled"
    assert w.wait(30).promoted == 0
    assert w.messages() == []


def test_a_running_job_is_told_and_every_further_cancel_changes_nothing(w: World) -> None:
    w.submit()
    token = w.start()
    assert w.ledger.cancel("j1", "first") == "canceling"
    assert w.ledger.cancel("j1", "second") == "canceling"
    record = w.ledger.get("j1")
    assert record.status is Status.RUNNING
    assert record.cancel_requested
    assert w.ledger.renew(token, Phase.EXECUTING).cancel
    w.ledger.end_attempt(token, interruption())
    assert w.ledger.get("j1").message == "first"


def test_an_ended_job_stays_what_it_is(w: World) -> None:
    for job_id, ending in (("a", completed()), ("b", failure(final=True))):
        w.submit(job_id)
        w.ledger.end_attempt(w.start(job_id), ending)
    w.submit("c")
    w.ledger.cancel("c")
    assert [w.ledger.cancel(job_id) for job_id in "abc"] == ["completed", "failed", "canceled"]


def test_a_job_whose_lease_ran_out_is_canceled_while_it_waits_and_its_old_attempt_is_refused(w: World) -> None:
    w.submit()
    token = w.start()
    w.wait(31)
    assert w.ledger.cancel("j1") == "canceled"
    with pytest.raises(LeaseLost, match="canceled"):
        w.ledger.renew(token, Phase.EXECUTING)
    assert isinstance(w.ask(machine="m2"), Ended), "the reaper's message lets Celery be told"


def test_a_canceled_job_whose_lease_runs_out_becomes_canceled_never_pending(w: World) -> None:
    w.submit()
    w.start()
    w.ledger.cancel("j1", "enough")
    done = w.wait(31)
    assert (done.reaped, w.ledger.status_of("j1")) == (1, Status.CANCELED)
    assert done.outbox == ("j1",)
    assert w.ledger.get("j1").message == "enough"
    assert len(w.messages()) == 1, "only the message of the submit"


def test_a_pulse_tells_which_jobs_are_to_be_canceled(w: World) -> None:
    for job_id in ("a", "b"):
        w.submit(job_id)
        w.start(job_id)
    w.ledger.cancel("b")
    assert w.ledger.pulse(GROUP, "m1", ["a", "b", "nope"], alive=False).cancel == ("b",)
    assert w.ledger.pulse(GROUP, "m1", [], alive=False).cancel == ()


def test_only_a_pulse_that_says_so_is_a_sign_of_life(w: World) -> None:
    w.ledger.pulse(GROUP, "m1", [], alive=False)
    assert w.redis.zcard(keys.index(GROUP, "machines")) == 0
    w.ledger.pulse(GROUP, "m1", [], alive=True)
    assert w.score("machines", "m1") == w.clock.now


def test_signs_of_life_are_forgotten_after_a_week(w: World) -> None:
    w.alive("m1")
    w.clock.advance(604801)
    w.tick()
    assert w.redis.zcard(keys.index(GROUP, "machines")) == 0


def test_the_outbox_is_due_again_and_again_until_celery_is_told(w: World) -> None:
    w.submit()
    w.ledger.end_attempt(w.start(), completed())
    assert w.tick().outbox == (), "its own worker has ten seconds"
    assert w.wait(10, step_s=10).outbox == ("j1",)
    assert w.wait(5).outbox == (), "somebody replays it right now"
    assert w.wait(6, step_s=6).outbox == ("j1",)
    assert w.ledger.celery_done("j1")
    assert w.ledger.celery_done("j1"), "a repeat is answered the same"
    assert w.wait(30).outbox == ()
    assert w.ledger.get("j1").celery_done


def test_an_outbox_is_not_closed_before_the_end(w: World) -> None:
    w.submit()
    assert not w.ledger.celery_done("j1")
    assert not w.ledger.get("j1").celery_done


def test_a_message_of_a_plain_task_goes_out_once_by_its_id(w: World) -> None:
    assert w.ledger.publish_once("t1", "celery", '{"n":1}', remember_s=60)
    assert not w.ledger.publish_once("t1", "celery", '{"n":1}', remember_s=60)
    assert w.ledger.publish_once("t2", "celery", '{"n":2}', remember_s=60)
    assert w.redis.llen("celery") == 2
    assert 0 < w.redis.ttl("kelpie:once:t1") <= 60
