"""What the ledger answers to "why", from states that its own transitions made; and that no look changes anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kelpie_celery.errors import JobNotFound
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.rules import Rules
from kelpie_celery.ledger.scripts import text
from kelpie_celery.ledger.types import WorkerSign
from kelpie_celery.lifecycle import Phase, Status
from kelpie_celery.scaling.rule import ScalingRule
from kelpie_celery.why.explain import Explanation, explain
from kelpie_celery.why.overview import OTHERS_SHOWN, RUNNING_SHOWN, overview
from kelpie_celery.why.timeline import stretches, total
from tests.contract.ledger_cases import GROUP, World, completed, failure, interruption
from tests.contract.ledger_fixtures import any_redis, ledger_valkey, w

__all__ = ["any_redis", "ledger_valkey", "w"]


def ask(w: World, job_id: str = "j1") -> Explanation:
    return explain(w.ledger.look_at(job_id))


def codes(w: World, job_id: str = "j1") -> list[str]:
    return [one.code for one in ask(w, job_id).because]


def sign(w: World, name: str, *jobs: str, group: str = GROUP, slots: int = 1) -> None:
    """A worker's sign of life."""
    w.ledger.pulse(group, f"m-{name}", jobs, alive=True, sign=WorkerSign(name, f"kelpie@{name}", "", slots))


def rule(w: World, **more: Any) -> None:
    Rules(w.redis).put(ScalingRule(container_group_id=GROUP, **more))


def decide(w: World, **more: object) -> None:
    entry = {
        "kind": "decision", "action": "start", "replicas": 2, "drain": 0, "reasons": ["2 jobs wait"],
        "fleet": {"status": "deploying", "replicas": 2, "allocating": 1, "creating": 1, "running": 0},
    }  # fmt: skip
    w.ledger.keep_decision(GROUP, entry | more)


def test_an_id_that_nobody_has_is_told(w: World) -> None:
    with pytest.raises(JobNotFound):
        w.ledger.look_at("nobody")


def test_how_many_are_ahead_is_told_by_priority_then_age(w: World) -> None:
    for number, priority in enumerate((4, 4, 0, 9, 4)):
        w.submit(f"j{number}", priority=priority)
        w.clock.advance(1)
    places = {job_id: w.ledger.look_at(job_id) for job_id in ("j0", "j1", "j2", "j3", "j4")}
    assert {job_id: (seen.ahead, seen.ahead_higher) for job_id, seen in places.items()} == {
        "j2": (0, 0), "j0": (1, 1), "j1": (2, 1), "j4": (3, 1), "j3": (4, 4),
    }  # fmt: skip
    w.claim("j0")
    assert w.ledger.look_at("j1").ahead == 1
    assert w.ledger.look_at("j0").ahead is None


def test_workers_are_told_by_what_they_do(w: World) -> None:
    sign(w, "gone")
    w.clock.advance(31)
    w.submit()
    sign(w, "busy", "j0")
    sign(w, "idle", slots=2)
    sign(w, "going")
    w.redis.hset(keys.worker(GROUP, "going"), "draining", w.clock.now + 100)
    seen = w.ledger.look_at("j1").group.workers
    assert (seen.heard, seen.idle, seen.busy, seen.draining, seen.free_slots) == (3, 1, 1, 1, 2)
    assert codes(w)[0] == "soon"
    w.clock.advance(31)
    assert w.ledger.look_at("j1").group.workers.heard == 0
    assert codes(w)[:2] == ["no_worker", "last_worker"]


def test_a_group_whose_name_is_near_and_that_has_workers_is_told(w: World) -> None:
    w.submit(group="gpu-s", job_id="j9")
    w.submit("j1")
    assert w.ledger.look_at("j9").group.nearest == ""
    sign(w, "one")
    assert w.ledger.look_at("j9").group.nearest == GROUP
    assert "did_you_mean" in codes(w, "j9")


def test_a_rule_of_a_similar_name_is_told_where_no_job_was(w: World) -> None:
    rule(w)
    w.submit(group="gpu", job_id="j9")
    assert w.ledger.look_at("j9").group.nearest == GROUP


def test_the_scalers_last_word_is_told_with_its_age_and_moves_are_passed_over(w: World) -> None:
    w.submit()
    rule(w, max_replicas=5)
    assert codes(w)[0] == "no_scaler"
    decide(w)
    w.ledger.ask_to_move(GROUP, "m1", "i1", "it is silent", by="scaler", size=10)
    w.clock.advance(45)
    told = ask(w)
    assert told.because[0].code == "nodes_coming"
    assert "1 look for a machine, 1 fetch the image" in str(told)
    assert "45 s ago: start the group with 2 nodes, because 2 jobs wait" in str(told)
    w.clock.advance(1000)
    assert codes(w)[0] == "no_scaler"
    Rules(w.redis).pause(GROUP)
    assert codes(w)[0] == "rule_paused"


def test_a_retry_is_told_with_when_and_why_until_somebody_should_have_promoted_it(w: World) -> None:
    w.submit()
    w.ledger.end_attempt(w.start(), failure(delay_s=40.0))
    told = ask(w)
    assert told.because[0].code == "retry_delay"
    assert "attempt 1 ended with exit_code: exit code 1" in told.because[0].text
    assert "bans" in [one.code for one in told.because]
    w.clock.advance(100)
    assert codes(w)[:2] == ["due", "no_maintenance"]
    w.tick()
    assert codes(w)[0] != "due"


def test_a_ban_is_told_until_it_is_lifted(w: World) -> None:
    w.submit()
    sign(w, "one")
    w.ledger.end_attempt(w.start(machine="m-one"), failure())
    assert set(w.ledger.look_at("j1").bans) == {"m-one"}
    assert codes(w)[0] == "bans"
    w.ledger.unban(GROUP, "m-one")
    assert codes(w)[0] == "soon"


def test_a_banned_offer_is_told_while_it_waits_for_the_next_one(w: World) -> None:
    w.submit()
    w.ledger.end_attempt(w.start(machine="m-one"), failure())
    sign(w, "one")
    sign(w, "two")
    w.ask(machine="m-one")
    assert codes(w)[0] == "banned_machine"


def test_a_running_job_is_told_with_phase_lease_and_checkpoint(w: World) -> None:
    w.submit()
    token = w.claim()
    assert codes(w)[0] == "restoring"
    w.clock.advance(5)
    w.ledger.renew(token, Phase.EXECUTING)
    w.clock.advance(10)
    w.commit(token, 1)
    w.clock.advance(10)
    w.ledger.renew(token, Phase.EXECUTING, '{"progress": 0.5}')
    told = ask(w)
    assert told.because[0].code == "executing"
    assert "its command runs, for 20 s" in str(told).lower()
    assert "stored 10 s ago" in str(told)
    w.clock.advance(25)
    assert codes(w)[0] == "muted"
    w.clock.advance(10)
    assert codes(w)[0] == "lease_lapsed"
    w.tick()
    told = ask(w)
    assert told.status is Status.PENDING
    assert "lease_expired" in str(told)


def test_a_cancel_of_a_running_job_is_told_first(w: World) -> None:
    w.submit()
    w.start()
    w.ledger.cancel("j1")
    assert codes(w)[:2] == ["canceling", "executing"]


def test_ends_are_told_with_their_meaning(w: World) -> None:
    w.submit("j1", max_failures=1)
    w.ledger.end_attempt(w.start(), failure())
    assert codes(w) == ["failed", "meaning", "failures", "advice"]
    w.clock.advance(60)
    assert "celery" in codes(w)
    w.ledger.celery_done("j1")
    assert "celery" not in codes(w)
    w.submit("j2")
    w.ledger.end_attempt(w.start("j2"), completed())
    assert codes(w, "j2")[0] == "completed"


def test_a_later_step_counts_the_jobs_before_it(w: World) -> None:
    w.ledger.draft("late", GROUP, "{}", "j1")
    w.submit("j1", drafts=(keys.job(GROUP, "late"),))
    told = ask(w, "late")
    assert told.because[0].code == "parents"
    assert "1 job before it has not ended" in told.because[0].text
    assert "job j1, which is pending" in str(told)
    w.ledger.end_attempt(w.start("j1"), failure(final=True))
    assert codes(w, "late")[0] == "step_unreachable"


def test_what_attempts_kept_and_lost_is_recorded_with_their_end(w: World) -> None:
    w.submit(max_failures=5)
    token = w.start()
    w.clock.advance(60)
    w.commit(token, 1)
    w.clock.advance(5)
    w.commit(token, 2, base="")
    w.clock.advance(15)
    w.ledger.end_attempt(token, interruption())
    again = w.start()
    w.clock.advance(7)
    w.ledger.end_attempt(again, failure())
    last = w.start(machine="m2")
    w.clock.advance(30)
    head = w.line().head
    assert head is not None
    w.commit(last, 3, base=head.id)
    w.clock.advance(10)
    record = w.ledger.get("j1")
    assert [(a.commits, a.committed and a.committed - a.started) for a in record.attempts[:2]] == [(2, 65.0), (0, None)]
    line = stretches(record, w.clock.now)
    assert [(round(one.spent.kept), round(one.spent.lost), round(one.spent.open)) for one in line] == [
        (65, 15, 0), (0, 7, 0), (30, 0, 10),
    ]  # fmt: skip
    assert [round(one.begin_s) for one in line] == [0, 80, 87]
    w.ledger.end_attempt(last, completed())
    spent = total(stretches(w.ledger.get("j1"), w.clock.now))
    assert (round(spent.kept), round(spent.lost), spent.open, spent.unknown) == (105, 22, 0, 0)


def test_an_attempt_that_takes_its_job_back_has_no_end_in_its_history(w: World) -> None:
    w.submit()
    token = w.start()
    w.commit(token, 1)
    w.wait(60)
    assert w.ledger.get("j1").attempts[0].commits == 1
    w.ledger.renew(token, Phase.EXECUTING)
    [attempt] = w.ledger.get("j1").attempts
    assert (attempt.ended, attempt.commits, attempt.committed) == (None, None, None)


def test_a_picture_has_the_running_the_next_and_the_last_in_their_order(w: World) -> None:
    for number in range(RUNNING_SHOWN + 10):
        w.submit(f"j{number:02}")
        w.clock.advance(1)
    for number in range(3):
        w.ledger.end_attempt(w.start(f"j{number:02}"), completed())
        w.clock.advance(1)
    for number in (5, 4, 3):
        w.start(f"j{number:02}")
    seen = overview(w.ledger, GROUP)
    assert [r.id for r in seen.running] == ["j05", "j04", "j03"]
    assert [r.id for r in seen.pending] == [f"j{n:02}" for n in range(6, 6 + OTHERS_SHOWN)]
    assert [r.id for r in seen.ended] == ["j02", "j01", "j00"]
    assert all(not record.definition for record in (*seen.running, *seen.pending))
    assert [one.group for one in overview(w.ledger, None).groups] == [GROUP]


def test_groups_with_work_come_first_in_a_picture_and_the_others_are_counted(w: World) -> None:
    w.ledger.watching = False
    for number in range(25):
        w.submit(f"idle{number}", group=f"a{number:02}")
        w.ledger.cancel(f"idle{number}")
    w.submit("busy", group="z")
    seen = overview(w.ledger, None)
    assert seen.groups[0].group == "z"
    assert (len(seen.groups), seen.more_groups) == (20, 6)


@pytest.mark.parametrize("spoil", ["decision", "worker", "counts", "type"])
def test_what_is_spoilt_in_one_group_keeps_no_other_from_being_told(w: World, spoil: str) -> None:
    w.submit("j1")
    w.submit("j9", group="other")
    sign(w, "one")
    w.ledger.watching = False
    if spoil == "decision":
        w.redis.lpush(keys.decisions(GROUP), "{")
    elif spoil == "worker":
        w.redis.hset(keys.worker(GROUP, "one"), "jobs", "many")
    elif spoil == "counts":
        w.redis.hset(keys.counts(GROUP), "failed", "x")
    else:
        w.redis.delete(keys.index(GROUP, "pending"))
        w.redis.set(keys.index(GROUP, "pending"), "x")
    groups = {one.group: one for one in overview(w.ledger, None).groups}
    assert (groups[GROUP].spoilt, groups["other"].spoilt) == (True, False)
    assert groups["other"].counts.pending == 1
    if spoil != "type":
        assert codes(w)[0] == "spoilt"


def test_no_look_changes_anything(w: World) -> None:
    w.submit("j1")
    w.submit("j2")
    w.start("j2")
    rule(w)
    decide(w)
    sign(w, "one")

    before = everything(w)
    ask(w)
    ask(w, "j2")
    overview(w.ledger, None)
    assert everything(w) == before


def everything(w: World) -> dict[str, object]:
    """The content of every key."""
    read: dict[str, Callable[[str], object]] = {
        "string": w.redis.get, "hash": w.redis.hgetall, "set": w.redis.smembers,
        "list": lambda key: w.redis.lrange(key, 0, -1), "zset": lambda key: w.redis.zrange(key, 0, -1, withscores=True),
    }  # fmt: skip
    names = [text(key) for key in w.redis.scan_iter("*", count=1000)]
    return {name: read[text(w.redis.type(name))](name) for name in names}
