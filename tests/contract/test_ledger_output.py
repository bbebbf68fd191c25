"""The ledger's contract: the last lines of output, bounded, told once, of the attempt that owns the job."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import pytest

from kelpie_celery.errors import JobNotFound, LeaseLost
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.output import OutputNow
from kelpie_celery.ledger.types import Ending, FencingToken, NewOutput
from kelpie_celery.lifecycle import Outcome, Phase, Reason, Status
from tests.contract.ledger_cases import GROUP, World, completed, failure
from tests.contract.ledger_fixtures import any_redis, ledger_valkey, real_redis, w  # noqa: F401


def new(first: int, last: int, kept: int | None = None) -> NewOutput:
    """Lines that are told of, with a text that says their number."""
    return NewOutput(tuple(f"line {n}" for n in range(first, last + 1)), last, kept or last)


def seen(w: World) -> tuple[int, int, tuple[str, ...]]:
    found = w.ledger.output("j1")
    return found.of_attempt, found.last, found.lines


def tell(w: World, token: FencingToken, output: NewOutput) -> None:
    w.ledger.renew(token, Phase.EXECUTING, output=output)


def test_a_job_that_wrote_nothing_has_nothing_in_redis(w: World) -> None:
    w.submit()
    assert w.ledger.output("j1") == OutputNow(Status.PENDING)
    token = w.claim()
    w.ledger.renew(token, Phase.EXECUTING)
    w.ledger.end_attempt(token, completed())
    assert w.redis.exists(keys.output(GROUP, "j1")) == 0
    assert w.redis.hexists(keys.job(GROUP, "j1"), "output") == 0


def test_a_job_that_does_not_exist_is_told(w: World) -> None:
    with pytest.raises(JobNotFound):
        w.ledger.output("nope")


def test_lines_come_one_after_the_other_and_are_bounded_as_the_worker_says(w: World) -> None:
    w.submit()
    token = w.claim()
    tell(w, token, new(1, 2))
    assert w.ledger.output("j1") == OutputNow(Status.RUNNING, Phase.EXECUTING, 1, "m1", 1, 2, ("line 1", "line 2"))
    assert w.ledger.output("j1").first == 1
    tell(w, token, new(3, 4, kept=3))
    assert seen(w) == (1, 4, ("line 2", "line 3", "line 4"))
    assert w.ledger.output("j1").first == 2


def test_told_again_since_the_answer_was_lost_nothing_comes_twice(w: World) -> None:
    w.submit()
    token = w.claim()
    tell(w, token, new(1, 2))
    tell(w, token, new(1, 2))
    tell(w, token, new(1, 3))
    assert seen(w) == (1, 3, ("line 1", "line 2", "line 3"))


def test_lines_before_a_gap_are_dropped(w: World) -> None:
    w.submit()
    token = w.claim()
    tell(w, token, new(1, 2))
    tell(w, token, new(1000, 1001, kept=2))
    assert seen(w) == (1, 1001, ("line 1000", "line 1001"))


def test_whatever_a_worker_says_200_lines_are_the_most(w: World) -> None:
    w.submit()
    token = w.claim()
    tell(w, token, new(1, 200))
    tell(w, token, new(201, 260, kept=1_000_000))
    assert len(seen(w)[2]) == 200
    tell(w, token, new(1, 500))
    assert seen(w)[1] == 260


def test_only_the_attempt_that_owns_the_job_tells_of_lines(w: World) -> None:
    w.submit()
    token = w.claim()
    tell(w, token, new(1, 1))
    stranger = FencingToken("j1", 1, "someone-else")
    with pytest.raises(LeaseLost):
        tell(w, stranger, new(2, 2))
    with pytest.raises(LeaseLost):
        w.ledger.end_attempt(stranger, Ending(Outcome.FAILURE, Reason.EXIT_CODE, output=new(2, 2)))
    assert seen(w) == (1, 1, ("line 1",))


def test_an_attempts_end_brings_its_last_lines_and_the_next_ones_first_lines_take_their_place(w: World) -> None:
    w.submit()
    token = w.claim()
    tell(w, token, new(1, 1))
    ending = failure()
    w.ledger.end_attempt(token, Ending(ending.outcome, ending.reason, output=new(2, 3)))
    assert seen(w) == (1, 3, ("line 1", "line 2", "line 3"))
    w.clock.advance(3600)
    w.tick()
    second = w.claim(machine="m2", nonce="n2")
    assert seen(w) == (1, 3, ("line 1", "line 2", "line 3"))
    assert w.ledger.output("j1").attempt == 2
    tell(w, second, new(1, 1))
    assert seen(w) == (2, 1, ("line 1",))


def test_of_a_completed_job_50_lines_stay_and_all_go_with_the_record(w: World) -> None:
    w.submit()
    token = w.claim()
    w.ledger.end_attempt(token, Ending(Outcome.COMPLETED, Reason.DONE, result={}, output=new(1, 120)))
    assert seen(w) == (1, 120, tuple(f"line {n}" for n in range(71, 121)))
    assert w.ledger.output("j1").first == 71
    w.ledger.celery_done("j1")
    w.clock.advance(w.ledger.timings.job_retention_s + 1)
    w.tick()
    assert w.redis.exists(keys.output(GROUP, "j1")) == 0
