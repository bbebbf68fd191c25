"""The ledger's contract: going back to an older commit, and the fence that it puts before the running attempt."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import pytest

from kelpie_celery.errors import CommitGone, JobNotFound, LeaseLost, LineMoved, PrefixHeld
from kelpie_celery.ledger.types import FencingToken, Granted, Line, NewCommit, Refused
from kelpie_celery.lifecycle import Outcome, Phase, Reason, Status
from tests.contract.ledger_cases import (
    START,
    World,
    address,
    canceled,
    commit_id,
    completed,
    failure,
    interruption,
)
from tests.contract.ledger_fixtures import any_redis, ledger_valkey, w  # noqa: F401


def back(generation: int, *prefixes: str) -> list[NewCommit]:
    """The commits of a rollback, as a CLI makes them."""
    name = f"{generation:010}-0-cli"
    return [
        NewCommit(address(prefix), name, generation, f"{prefix}.kelpie/commits/{name}.json.zst", "rollback", 3, 30, 0)
        for prefix in prefixes or ("ck/",)
    ]


def begin(w: World, *prefixes: str, job_id: str = "j1", **given: float) -> FencingToken:
    """A running job with two commits."""
    w.submit(job_id, **given)
    w.pop()
    token = w.start(job_id)
    w.commit(token, 1, *prefixes)
    w.commit(token, 2, *prefixes)
    return token


def heads(lines: list[Line]) -> list[tuple[int, str]]:
    return [(line.head.generation, line.head.why) for line in lines if line.head]


def refused(w: World, token: FencingToken) -> None:
    """Nothing that this attempt says has an effect."""
    before = w.ledger.get(token.job_id)
    with pytest.raises(LeaseLost):
        w.ledger.renew(token, Phase.EXECUTING)
    with pytest.raises(LeaseLost):
        w.commit(token, 100)
    with pytest.raises(LeaseLost):
        w.ledger.end_attempt(token, completed())
    assert w.ledger.get(token.job_id) == before


def test_a_running_job_is_fenced_and_goes_on_elsewhere_from_the_older_state(w: World) -> None:
    token = begin(w, "a/", "b/")
    w.ledger.renew(token, Phase.EXECUTING, transfer='{"stage":"commit"}')
    w.clock.advance(10)
    lines = w.ledger.rollback("j1", commit_id(token, 1), back(3, "a/", "b/"))
    assert heads(lines) == [(3, "rollback")] * 2
    assert w.field("j1", "nonce") != token.nonce, "a number may be given twice by a ledger that lost its last writes"
    refused(w, token)
    record = w.ledger.get("j1")
    assert (record.status, record.num_interruptions, record.num_failures) == (Status.PENDING, 0, 0)
    [attempt] = record.attempts
    assert (attempt.outcome, attempt.reason, attempt.ended) == (Outcome.CONTINUE, Reason.ROLLED_BACK, START + 10)
    assert commit_id(token, 1) in (attempt.message or "")
    w.wait(20 - 1e-3)
    assert (w.pop(), w.ask(machine="m2")) == (None, Refused("delayed")), "the fenced attempt may not have heard of it"
    assert w.wait(1e-3).promoted == 1
    assert w.pop() == ("j1", START + 30)
    answer = w.ask(machine="m2")
    assert isinstance(answer, Granted)
    assert (answer.token.attempt, answer.ran_s, answer.continues) == (3, 10.0, 0)
    assert w.ledger.get("j1").transfer is None
    [line, _] = w.commit(answer.token, 4, "a/", "b/", base=lines[0].kept[-1].id)
    assert (line.generation, line.kept[-2].attempt) == (4, 2), "the rollback has a number of its own"


def test_a_job_whose_lease_is_over_already_is_published_at_once(w: World) -> None:
    token = begin(w)
    w.clock.advance(31)
    w.ledger.rollback("j1", commit_id(token, 1), back(3))
    refused(w, token)
    assert w.pop() == ("j1", START + 31)
    assert isinstance(w.ask(), Granted)


def test_an_attempt_that_the_reaper_took_its_job_from_cannot_take_it_back_after_a_rollback(w: World) -> None:
    token = begin(w)
    assert w.wait(31).reaped == 1
    w.ledger.rollback("j1", commit_id(token, 1), back(3))
    refused(w, token)
    record = w.ledger.get("j1")
    assert (record.status, record.attempts[0].reason) == (Status.PENDING, "lease_expired")
    assert isinstance(w.ask(), Granted)


def test_a_delayed_job_stays_delayed_and_only_its_lines_move(w: World) -> None:
    token = begin(w)
    w.ledger.end_attempt(token, failure(delay_s=60))
    before = w.ledger.get("j1")
    assert heads(w.ledger.rollback("j1", commit_id(token, 1), back(3))) == [(3, "rollback")]
    assert w.ledger.get("j1") == before
    assert w.wait(60).promoted == 1


def test_an_attempt_that_gave_its_job_back_still_publishes_it_after_a_rollback(w: World) -> None:
    token = begin(w)
    w.ledger.end_attempt(token, interruption())
    w.ledger.rollback("j1", commit_id(token, 1), back(3))
    assert w.ledger.publish(token)
    assert isinstance(w.ask(), Granted)


def test_an_ended_job_keeps_its_end_and_a_later_job_goes_on_from_the_older_state(w: World) -> None:
    token = begin(w)
    w.ledger.end_attempt(token, completed(7))
    before = w.ledger.get("j1")
    w.ledger.rollback("j1", commit_id(token, 1), back(3))
    assert w.ledger.get("j1") == before
    w.submit("j2")
    with pytest.raises(LineMoved):
        w.commit(w.claim("j2"), 4, base=commit_id(token, 2))


def test_a_job_that_is_being_canceled_ends_so_and_its_last_commit_is_refused(w: World) -> None:
    token = begin(w)
    w.ledger.cancel("j1", "enough")
    assert heads(w.ledger.rollback("j1", commit_id(token, 1), back(3))) == [(3, "rollback")]
    with pytest.raises(LineMoved):
        w.commit(token, 4)
    assert w.ledger.renew(token, Phase.EXECUTING).cancel
    assert w.ledger.end_attempt(token, canceled()) == "canceled"
    assert w.line().generation == 3


def test_a_rollback_whose_answer_was_lost_is_answered_again_and_fences_nobody_twice(w: World) -> None:
    token = begin(w)
    first = w.ledger.rollback("j1", commit_id(token, 1), back(3))
    assert w.ledger.rollback("j1", commit_id(token, 1), back(3)) == first
    w.wait(30)
    second = w.start(machine="m2")
    w.commit(second, 4, base=first[0].kept[-1].id)
    w.ledger.rollback("j1", commit_id(token, 1), back(3))
    assert w.line().generation == 4
    w.ledger.renew(second, Phase.EXECUTING)


def test_a_commit_that_is_not_kept_in_every_line_cannot_be_gone_back_to(w: World) -> None:
    token = begin(w, "a/", "b/")
    w.commit(token, 3, "a/", "b/")
    before = w.ledger.lines([address("a/"), address("b/")])
    for of, prefixes in (
        (commit_id(token, 1), ("a/",)),
        ("unknown", ("a/", "b/")),
        (commit_id(token, 2), ("a/", "c/")),
    ):
        with pytest.raises(CommitGone) as caught:
            w.ledger.rollback("j1", of, back(4, *prefixes))
        assert (caught.value.job_id, caught.value.commit) == ("j1", of)
        assert caught.value.url == f"s3://bucket/{'c/' if 'c/' in prefixes else 'a/'}"
    assert w.ledger.lines([address("a/"), address("b/")]) == before
    w.ledger.renew(token, Phase.EXECUTING)


def test_a_rollback_that_a_commit_has_overtaken_is_refused_and_may_be_tried_again(w: World) -> None:
    token = begin(w, "a/", "b/")
    w.commit(token, 3, "a/", "b/")
    with pytest.raises(LineMoved):
        w.ledger.rollback("j1", commit_id(token, 2), back(3, "a/", "b/"))
    w.ledger.renew(token, Phase.EXECUTING)
    assert heads(w.ledger.rollback("j1", commit_id(token, 2), back(4, "a/", "b/"))) == [(4, "rollback")] * 2


def test_a_line_that_another_job_may_go_on_with_is_not_rolled_back(w: World) -> None:
    first = begin(w)
    w.ledger.end_attempt(first, completed())
    w.submit("j2")
    second = w.claim("j2")
    w.commit(second, 3, base=commit_id(first, 2))
    with pytest.raises(PrefixHeld) as caught:
        w.ledger.rollback("j1", commit_id(first, 2), back(4))
    assert caught.value.holder == "j2"
    w.ledger.end_attempt(second, completed())
    assert heads(w.ledger.rollback("j1", commit_id(first, 2), back(4))) == [(4, "rollback")]
    assert w.line().holder == "j1"


def test_a_rollback_of_no_job_or_to_nothing_is_refused(w: World) -> None:
    w.ledger.draft("d", "gpus", "{}")
    for job_id in ("nope", "d"):
        with pytest.raises(JobNotFound):
            w.ledger.rollback(job_id, "x", back(1))
    w.submit()
    with pytest.raises(ValueError, match="a commit for each line"):
        w.ledger.rollback("j1", "x", [])


def test_the_silent_deaths_before_a_rollback_are_forgiven(w: World) -> None:
    w.submit()
    w.alive("m1")
    token = w.start()
    w.commit(token, 1)
    w.ledger.end_attempt(token, interruption())
    for _ in range(9):
        w.start()
        w.wait(31)
    w.start()
    w.ledger.rollback("j1", commit_id(token, 1), back(2))
    w.wait(30)
    w.start()
    w.wait(31)
    assert w.ledger.status_of("j1") is Status.PENDING
