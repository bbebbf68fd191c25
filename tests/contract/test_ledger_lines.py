"""The ledger's contract: lines of commits, their fence, what is kept, who holds a prefix."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import dataclasses
import json

import pytest
from redis import Redis

from kelpie_celery.errors import LeaseLost, LineMoved, PrefixHeld
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.types import CommitEntry, Dropped, FencingToken, Line, Timings
from kelpie_celery.lifecycle import Phase, Status
from tests.contract.ledger_cases import (
    START,
    World,
    address,
    commit_id,
    completed,
    failure,
    interruption,
    new_commit,
)
from tests.contract.ledger_fixtures import any_redis, ledger_valkey, w  # noqa: F401

DAY_S = 86400.0


def generations(line: Line) -> list[int]:
    return [commit.generation for commit in line.kept]


def dropped(line: Line) -> list[tuple[int, float]]:
    return [(d.commit.generation, d.at) for d in line.dropped]


def line_key(prefix: str = "ck/") -> str:
    a = address(prefix)
    return keys.line(keys.line_digest(a.endpoint, a.bucket, a.prefix))


# -- accepted ------------------------------------------------------------------------------------------------------


def test_a_line_without_commits_is_empty(w: World) -> None:
    assert w.line() == Line(address(), None, False, None, (), (), generation=0, now=START)
    assert w.ledger.lines([]) == []


def test_an_accepted_commit_is_the_head_of_its_line_and_the_newest_of_its_job(w: World) -> None:
    w.submit()
    token = w.start()
    w.clock.advance(1.25)
    [line] = w.commit(token, 1, why="report")
    entry = CommitEntry(
        "0000000001-1-nonce1", 1, "ck/.kelpie/commits/0000000001-1-nonce1.json.zst", "j1", 1, "report", START + 1.25,
        files=3, bytes=10**15 + 7, sent_bytes=5,
    )  # fmt: skip
    assert line == Line(address(), "j1", True, entry, (entry,), (), generation=1, now=START + 1.25)
    assert w.line() == line
    record = w.ledger.get("j1")
    assert (record.commit, record.num_commits) == ({"id": entry.id, "generation": 1, "why": "report"}, 1)


def test_lines_are_read_in_the_order_asked_for(w: World) -> None:
    w.submit()
    w.commit(w.start(), 5, "b/")
    assert [line.generation for line in w.ledger.lines([address("a/"), address("b/"), address("c/")])] == [0, 5, 0]


def test_the_lines_of_one_commit_move_together(w: World) -> None:
    w.submit()
    token = w.start()
    assert [line.generation for line in w.commit(token, 7, "a/", "b/")] == [7, 7]
    assert [line.generation for line in w.commit(token, 8, "a/", "b/")] == [8, 8]
    assert w.ledger.get("j1").num_commits == 2, "one commit, however many lines"


def test_the_next_attempt_goes_on_where_the_last_one_ended(w: World) -> None:
    w.submit()
    first = w.start()
    w.commit(first, 1)
    w.ledger.end_attempt(first, interruption())
    second = w.start()
    [line] = w.commit(second, 2, base=commit_id(first, 1))
    assert [(c.generation, c.attempt) for c in line.kept] == [(1, 1), (2, 2)]


def test_a_commit_without_lines_is_noted_in_the_record_alone(w: World) -> None:
    w.submit()
    token = w.start()
    assert w.ledger.commit(token, [], {"why": "exit"}) == []
    assert w.ledger.get("j1").commit == {"why": "exit"}
    assert list(w.redis.scan_iter("kelpie:line:*")) == []


def test_one_call_is_for_one_commit_of_each_line(w: World) -> None:
    w.submit()
    token = w.start()
    one = new_commit(token, 1)
    with pytest.raises(ValueError, match="same line"):
        w.ledger.commit(token, [one, one], {})
    with pytest.raises(ValueError, match="id or generation"):
        w.ledger.commit(token, [one, new_commit(token, 2, "b/")], {})


# -- the fence -----------------------------------------------------------------------------------------------------


def test_a_stale_attempt_moves_no_line(w: World) -> None:
    w.submit()
    old = w.start(machine="m1")
    w.commit(old, 1)
    w.wait(31)
    new = w.start(machine="m2")
    before = w.line()
    for stale in (old, FencingToken("j1", new.attempt, "someone-else"), FencingToken("nope", 1, "n")):
        with pytest.raises(LeaseLost):
            w.commit(stale, 2, base=commit_id(old, 1))
    w.ledger.end_attempt(new, completed())
    with pytest.raises(LeaseLost):
        w.commit(new, 2, base=commit_id(old, 1))
    assert w.line() == dataclasses.replace(before, holder_lives=False)


def test_a_commit_after_the_reaper_came_takes_the_job_back_and_moves_the_line(w: World) -> None:
    w.submit()
    token = w.start()
    assert w.wait(31).reaped == 1
    [line] = w.commit(token, 1)
    assert line.generation == 1
    record = w.ledger.get("j1")
    assert (record.status, record.num_interruptions, record.num_commits) == (Status.RUNNING, 0, 1)


# -- lost answers and late calls -----------------------------------------------------------------------------------


def test_a_commit_whose_answer_was_lost_is_answered_again(w: World) -> None:
    w.submit()
    token = w.start()
    first = w.commit(token, 1, "a/", "b/")
    assert w.commit(token, 1, "a/", "b/") == first
    assert w.ledger.get("j1").num_commits == 1


def test_the_id_of_the_head_is_no_repeat_when_another_attempt_made_it(w: World) -> None:
    w.submit("a")
    first = w.start("a")
    w.commit(first, 1)
    w.ledger.end_attempt(first, completed())
    w.submit("b")
    same = dataclasses.replace(new_commit(w.start("b"), 1, base=commit_id(first, 1)), id=commit_id(first, 1))
    with pytest.raises(LineMoved):
        w.ledger.commit(FencingToken("b", 1, "nonce2"), [same], {})


def test_a_call_that_comes_late_takes_no_line_back(w: World) -> None:
    w.submit()
    token = w.start()
    w.commit(token, 1)
    newest = w.commit(token, 2)
    assert w.commit(token, 1) == newest, "it was accepted once, and is kept still"
    w.commit(token, 3)
    w.commit(token, 4, why="report")
    with pytest.raises(LineMoved):
        w.ledger.commit(token, [dataclasses.replace(new_commit(token, 3), id="0000000003-1-other")], {})
    assert w.line().generation == 4
    assert w.ledger.get("j1").num_commits == 4


def test_a_late_call_does_not_fill_a_line_that_was_lost_with_an_older_state(w: World) -> None:
    w.submit()
    token = w.start()
    w.commit(token, 1, "a/", "b/")
    w.commit(token, 2, "a/", "b/")
    w.redis.delete(line_key("b/"))
    w.ledger.forget_what_was_seen()
    with pytest.raises(LineMoved):
        w.commit(token, 1, "a/", "b/")
    assert (w.line("a/").generation, w.line("b/").generation) == (2, 0)
    assert [line.generation for line in w.commit(token, 2, "a/", "b/")] == [2, 2]


def test_a_generation_that_does_not_rise_is_refused_also_with_the_right_base(w: World) -> None:
    w.submit()
    first = w.start()
    w.commit(first, 5)
    w.ledger.end_attempt(first, interruption())
    second = w.start()
    for generation in (4, 5):
        with pytest.raises(LineMoved):
            w.commit(second, generation, base=commit_id(first, 5))
    assert generations(w.line()) == [5]


def test_a_line_that_the_ledger_has_lost_begins_again_with_whatever_its_attempt_has(w: World) -> None:
    w.submit()
    token = w.start()
    w.commit(token, 7)
    w.redis.delete(line_key())
    w.ledger.forget_what_was_seen()
    [line] = w.commit(token, 8)
    assert generations(line) == [8]


# -- who holds a prefix --------------------------------------------------------------------------------------------


def held(w: World, token: FencingToken, *prefixes: str, base: str = "") -> PrefixHeld:
    with pytest.raises(PrefixHeld) as caught:
        w.commit(token, 100, *prefixes, base=base)
    return caught.value


@pytest.mark.parametrize("ended_by", ["running", "reaped", "delayed"])
def test_a_prefix_whose_job_may_go_on_is_refused_to_any_other_and_nothing_changes(w: World, ended_by: str) -> None:
    w.submit("a")
    w.submit("b", group="others")
    a = w.start("a")
    w.commit(a, 1)
    if ended_by == "delayed":
        w.ledger.end_attempt(a, failure(delay_s=100))
    b = w.claim("b", "m2")
    if ended_by == "reaped":
        w.wait(31)
    free, line = w.line("free/"), w.line()
    error = held(w, b, "free/", "ck/", base=commit_id(a, 1))
    assert (error.holder, error.bucket, error.key) == ("a", "bucket", "ck/")
    assert (w.line("free/"), w.line()) == (free, line)
    assert w.ledger.get("b").num_commits == 0


def test_a_refused_commit_does_not_take_a_job_back_from_the_reaper(w: World) -> None:
    w.submit("a")
    w.submit("b")
    a, b = w.start("a"), w.start("b")
    w.commit(a, 1)
    for _ in range(3):
        w.wait(15)
        w.ledger.renew(a, Phase.EXECUTING)
    assert w.ledger.status_of("b") is Status.PENDING
    held(w, b)
    assert w.ledger.status_of("b") is Status.PENDING


@pytest.mark.parametrize("how", ["completed", "canceled", "forgotten"])
def test_a_holder_that_ended_or_is_unknown_gives_way(w: World, how: str) -> None:
    w.submit("a")
    a = w.start("a")
    w.commit(a, 1)
    w.submit("b")
    if how == "canceled":
        w.ledger.end_attempt(a, interruption())
        w.ledger.cancel("a")
    else:
        w.ledger.end_attempt(a, completed())
    if how == "forgotten":
        w.ledger.celery_done("a")
        w.clock.advance(31 * DAY_S)
        assert w.wait(1).expired == 1
    line = w.line()
    assert (line.holder, line.holder_lives) == ("a", False)
    [line] = w.commit(w.claim("b"), 2, base=commit_id(a, 1))
    assert (line.holder, line.holder_lives) == ("b", True)
    assert [c.job_id for c in line.kept] == ["a", "b"]


def test_a_job_that_restored_before_another_one_committed_is_refused_also_after_that_ones_end(w: World) -> None:
    """What it took over of the older state may be deleted since; and it would undo what the other one has done."""
    w.submit("a")
    first = w.start("a")
    w.commit(first, 1)
    w.ledger.end_attempt(first, completed())
    w.submit("late")
    w.submit("b")
    late, b = w.start("late"), w.start("b")
    w.commit(b, 2, base=commit_id(first, 1))
    w.ledger.end_attempt(b, completed())
    before = w.line("ck/"), w.line("free/")
    with pytest.raises(LineMoved) as caught:
        w.commit(late, 100, "free/", "ck/", base=commit_id(first, 1))
    assert (caught.value.holder, caught.value.bucket, caught.value.key) == ("b", "bucket", "ck/")
    assert (w.line("ck/"), w.line("free/")) == before
    assert w.ledger.get("late").num_commits == 0
    assert w.commit(late, 101, base=commit_id(b, 2))[0].generation == 101, "having restored that"


# -- what is kept --------------------------------------------------------------------------------------------------


def commit_at(w: World, token: FencingToken, plan: list[tuple[float, str]]) -> Line:
    """Commits at hand-set times (seconds after a full hour), numbered from 1."""
    hour = START - START % 3600
    for n, (at_s, why) in enumerate(plan, 1):
        w.clock.set(hour + at_s)
        w.commit(token, n, why=why)
    return w.line()


def at(seconds: float) -> float:
    return START - START % 3600 + seconds


def test_the_last_two_are_kept_and_what_is_dropped_is_dated(w: World) -> None:
    w.submit()
    line = commit_at(w, w.start(), [(n * 15.0, "quiet") for n in range(1, 6)])
    assert generations(line) == [4, 5]
    assert dropped(line) == [(1, at(45)), (2, at(60)), (3, at(75))]
    first = line.dropped[0]
    assert isinstance(first, Dropped)
    assert (first.commit.at, first.commit.manifest) == (at(15), "ck/.kelpie/commits/0000000001-1-nonce1.json.zst")


def test_the_newest_of_each_hour_is_kept(w: World) -> None:
    w.submit()
    line = commit_at(
        w, w.start(), [(0, "quiet"), (3599, "quiet"), (3600, "quiet"), (7199, "quiet"), (7200, "quiet"),
                       (7210, "quiet"), (7220, "quiet")],
    )  # fmt: skip
    assert generations(line) == [2, 4, 6, 7]


def test_an_hour_counts_for_a_day(w: World) -> None:
    w.submit()
    token = w.start()
    line = commit_at(w, token, [(n * 3600.0, "quiet") for n in range(24)])
    assert generations(line) == list(range(1, 25))
    w.clock.set(at(24 * 3600.0))
    assert generations(w.commit(token, 25)[0]) == list(range(2, 26))
    w.clock.set(at(90 * 3600.0))
    assert generations(w.commit(token, 26)[0]) == [25, 26], "the last two, and nothing of the last day but the newest"


def test_the_newest_commit_that_was_asked_for_is_kept_however_old(w: World) -> None:
    w.submit()
    token = w.start()
    plan = [(0.0, "report"), (1.0, "marker"), (2.0, "quiet")]
    line = commit_at(w, token, plan + [(40 * 3600.0 + n, "quiet") for n in range(3)])
    assert generations(line) == [2, 5, 6]
    assert generations(w.commit(token, 7, why="exit")[0]) == [6, 7]


def test_a_clock_that_was_put_back_keeps_no_more_than_a_day_of_hours(w: World) -> None:
    w.submit()
    token = w.start()
    commit_at(w, token, [(100 * 3600.0 + n * 3600.0, "quiet") for n in range(24)])
    for n in range(24):
        w.clock.set(at(n * 3600.0))
        line = w.commit(token, 25 + n)[0]
        assert len(line.kept) <= 26


def test_what_is_dropped_leaves_the_list_by_being_collected_and_the_rest_stays(w: World) -> None:
    w.submit()
    token = w.start()
    line = commit_at(w, token, [(n * 15.0, "quiet") for n in range(6)])
    ids = [d.commit.id for d in line.dropped]
    w.ledger.collected(address(), [ids[0], ids[2], commit_id(token, 6), "unknown"])
    after = w.line()
    assert [d.commit.id for d in after.dropped] == [ids[1], ids[3]]
    assert after.kept == line.kept, "a kept commit is never collected"
    w.ledger.collected(address(), [])
    w.ledger.collected(address(), [ids[1], ids[3], *ids])
    assert w.line().dropped == ()
    assert generations(w.commit(token, 7)[0]) == [6, 7]
    w.ledger.collected(address("nothing/"), ["x"])
    assert w.line("nothing/").generation == 0


def test_the_list_of_what_is_dropped_is_bounded_and_the_oldest_go(w: World) -> None:
    w.submit()
    token = w.start()
    for n in range(3):
        w.commit(token, 1 + n)
    [entry] = json.loads(w.redis.hget(line_key(), "dropped") or "")
    many = json.dumps([entry | {"id": f"old{n}"} for n in range(1000)])
    w.redis.hset(line_key(), mapping={"dropped": many, "num_dropped": 1000})
    w.ledger.watching = False
    ids = [d.commit.id for d in w.commit(token, 4)[0].dropped]
    assert ids == [*(f"old{n}" for n in range(101, 1000)), commit_id(token, 2)]
    assert len(w.commit(token, 5)[0].dropped) == 901


# -- expiry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("job_retention_s", "expiry_s"), [(30 * DAY_S, 90 * DAY_S), (400 * DAY_S, 400 * DAY_S)])
def test_a_line_expires_after_its_last_use(any_redis: Redis, job_retention_s: float, expiry_s: float) -> None:
    w = World(any_redis, Timings(tick_interval_s=0.0, job_retention_s=job_retention_s))
    w.submit()
    token = w.start()
    w.commit(token, 1)
    assert any_redis.ttl(line_key()) == pytest.approx(expiry_s, abs=5)
    any_redis.expire(line_key(), 10)
    w.ledger.collected(address(), ["x"])
    assert any_redis.ttl(line_key()) <= 10, "that is no use of it"
    w.line()
    assert any_redis.ttl(line_key()) == pytest.approx(expiry_s, abs=5)
    any_redis.expire(line_key(), 10)
    w.commit(token, 2)
    assert any_redis.ttl(line_key()) == pytest.approx(expiry_s, abs=5)
