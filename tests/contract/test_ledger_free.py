"""The ledger's contract: failures that a retry rule does not count; free, slower each time, and bounded."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

from dataclasses import replace

import pytest

from kelpie_celery.ledger.types import Banned, Ending
from kelpie_celery.lifecycle import Outcome, Reason, Status
from tests.contract.ledger_cases import GROUP, World, failure, interruption
from tests.contract.ledger_fixtures import any_redis, ledger_valkey, w  # noqa: F401


def free(delay_s: float = 0.0) -> Ending:
    return Ending(Outcome.FREE, Reason.EXIT_CODE, "exit code 42", facts={"exit_code": 42}, delay_s=delay_s)


def test_a_free_end_is_retried_and_does_not_count(w: World) -> None:
    w.submit(max_failures=1)
    for _ in range(5):
        assert w.ledger.end_attempt(w.start(), free()) == "pending"
    record = w.ledger.get("j1")
    assert (record.status, record.num_failures, record.num_free, record.num_interruptions) == (Status.PENDING, 0, 5, 0)
    assert (record.reason, record.message) == ("exit_code", "exit code 42")
    assert [(a.outcome, a.exit_code) for a in record.attempts] == [("free", 42)] * 5
    assert w.ledger.end_attempt(w.start(), failure()) == "failed"


def test_a_free_end_goes_to_another_machine(w: World) -> None:
    w.submit()
    w.alive("m1", "m2")
    w.ledger.end_attempt(w.start(machine="m1"), free())
    assert isinstance(w.ask(machine="m1"), Banned)


def test_a_free_end_is_a_failure_of_its_machine_for_people(w: World) -> None:
    w.alive("m1")
    w.submit()
    w.ledger.end_attempt(w.start(machine="m1"), free())
    (entry,) = w.ledger.machines(GROUP)
    assert (entry.failures, entry.others, entry.bans) == (1, 0, 1)


def test_free_ends_without_progress_count_after_a_bound(w: World) -> None:
    w.ledger.timings = replace(w.ledger.timings, max_free=3)
    w.submit(max_failures=2)
    answers = [w.ledger.end_attempt(w.start(), free()) for _ in range(5)]
    assert answers == ["pending"] * 4 + ["failed"]
    record = w.ledger.get("j1")
    assert (record.num_free, record.num_failures) == (3, 2)
    assert [a.outcome for a in record.attempts] == ["free"] * 3 + ["failure"] * 2
    assert record.message == record.attempts[-1].message
    assert "it counts, as the 3 before it in a row were free" in (record.message or "")


def test_the_bound_is_20(w: World) -> None:
    assert w.ledger.timings.max_free == 20


def test_a_checkpoint_of_an_attempt_that_was_interrupted_begins_the_row_anew(w: World) -> None:
    """Given a job that gets on between interruptions, and meets a bad node now and then."""
    w.ledger.timings = replace(w.ledger.timings, max_free=2)
    w.submit(max_failures=1)
    for n in range(4):
        assert w.ledger.end_attempt(w.start(), free()) == "pending"
        token = w.start()
        w.ledger.commit(token, [], {"n": n})
        w.ledger.end_attempt(token, interruption())
    assert w.ledger.get("j1").num_failures == 0


def test_a_new_checkpoint_begins_the_row_anew(w: World) -> None:
    w.ledger.timings = replace(w.ledger.timings, max_free=2)
    w.submit(max_failures=1)
    for attempt in range(1, 8):
        token = w.start()
        if attempt % 2 == 0:
            w.ledger.commit(token, [], {"n": attempt})
        assert w.ledger.end_attempt(token, free()) == "pending"
    assert w.ledger.get("j1").num_free == 7


def test_each_free_end_in_a_row_waits_twice_as_long_up_to_a_bound(w: World) -> None:
    w.ledger.timings = replace(w.ledger.timings, retry_max_s=100.0)
    w.submit()
    waits = []
    for _ in range(7):
        w.ledger.end_attempt(w.start(), free(delay_s=5.0))
        due = w.score("delayed", "j1")
        assert due is not None
        waits.append(due - w.clock.now)
        w.wait(waits[-1] + 1)
    assert waits == pytest.approx([5, 10, 20, 40, 80, 100, 100])


def test_a_delay_that_is_longer_than_the_bound_is_kept(w: World) -> None:
    w.ledger.timings = replace(w.ledger.timings, retry_max_s=1.0)
    w.submit()
    w.ledger.end_attempt(w.start(), free(delay_s=5.0))
    assert w.score("delayed", "j1") == pytest.approx(w.clock.now + 5)


def test_a_cancel_ends_it_whatever_the_rule_says(w: World) -> None:
    w.submit()
    token = w.start()
    w.ledger.cancel("j1")
    assert w.ledger.end_attempt(token, free()) == "canceled"
    assert w.ledger.get("j1").num_free == 0


def test_an_answer_that_was_lost_is_given_again_and_counts_once(w: World) -> None:
    w.submit()
    token = w.start()
    assert [w.ledger.end_attempt(token, free()) for _ in range(2)] == ["pending"] * 2
    assert w.ledger.get("j1").num_free == 1


def test_ten_storage_outages_do_not_poison(w: World) -> None:
    w.submit()
    w.alive("m1")
    away = Ending(Outcome.INTERRUPTION, Reason.STORAGE_UNAVAILABLE, "503", facts={"bucket": "b"})
    for _ in range(12):
        assert w.ledger.end_attempt(w.start(), away) == "pending"
    record = w.ledger.get("j1")
    assert (record.num_failures, record.num_interruptions, record.status) == (0, 12, Status.PENDING)
