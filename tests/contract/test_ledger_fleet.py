"""The ledger's contract: which workers are there, who drains, who may be removed; moves, decisions, tokens."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

from typing import Any

import pytest

from kelpie_celery.ledger import keys
from kelpie_celery.ledger.fleet import Drained
from kelpie_celery.ledger.types import FencingToken, Granted, Refused, WorkerSign
from kelpie_celery.scaling.facts import Memory, QueueFacts, WorkerFacts
from tests.contract.ledger_cases import GROUP, World, completed, failure, interruption
from tests.contract.ledger_fixtures import any_redis, ledger_valkey, w  # noqa: F401


class Workers:
    """Workers by short names; each is a process on a machine of its own."""

    def __init__(self, w: World) -> None:
        self.w, self.ledger = w, w.ledger

    def pulse(
        self,
        *names: str,
        jobs: tuple[str, ...] = (),
        settled: bool = False,
        slots: int = 1,
        untold: bool = False,
        by_hand: bool = False,
    ) -> list[bool]:
        """Give a sign of life each; whether they drain."""
        return [
            self.ledger.pulse(
                GROUP, f"m-{n}", jobs, alive=True,
                sign=WorkerSign(n, f"w@{n}", f"i-{n}", slots, settled, untold, by_hand),
            ).draining
            for n in names
        ]  # fmt: skip

    def claim(self, name: str, job_id: str, nonce: str = "") -> FencingToken | str:
        answer = self.ledger.claim(
            job_id, nonce or f"{name}-{job_id}", f"m-{name}", f"w@{name}", None, may_run=True, holder=name
        )
        if isinstance(answer, Granted):
            return answer.token
        assert isinstance(answer, Refused)
        return answer.why

    def start(self, name: str, job_id: str) -> FencingToken:
        self.w.submit(job_id)
        token = self.claim(name, job_id)
        assert isinstance(token, FencingToken)
        return token

    def draining(self) -> set[str]:
        until = {n: self.w.redis.hget(keys.worker(GROUP, n), "draining") for n in "abcdefgh"}
        return {n for n, at in until.items() if float(at or 0) > self.w.clock.now}

    def facts(self, **kind: bool) -> WorkerFacts:
        return self.ledger.workers(GROUP, **kind).facts


@pytest.fixture
def f(w: World) -> Workers:
    return Workers(w)


# -- who is there -------------------------------------------------------------------------------------------------


def test_workers_count_by_their_signs_of_life_and_their_claims(f: Workers) -> None:
    f.pulse("a", "b")
    f.pulse("c", slots=4)
    f.start("b", "j1")
    assert f.facts() == WorkerFacts(workers=3, slots=6, busy=1, draining_idle=0, draining_busy=0)


def test_a_worker_that_is_silent_counts_no_more_unless_a_running_job_names_it(f: Workers, w: World) -> None:
    f.pulse("a", "b")
    f.start("b", "j1")
    w.clock.advance(w.ledger.timings.machine_alive_s + 1)
    assert f.facts() == WorkerFacts(1, 1, 1, 0, 0)


def test_a_worker_that_says_goodbye_is_gone_at_once(f: Workers, w: World) -> None:
    f.pulse("a", "b")
    w.ledger.goodbye(GROUP, "m-a", WorkerSign("a", "w@a", "i-a", 1))
    assert f.facts().workers == 1


def test_an_hour_of_silence_removes_a_worker_for_good(f: Workers, w: World) -> None:
    f.pulse("a")
    w.clock.advance(3500)
    w.tick()
    assert w.redis.exists(keys.worker(GROUP, "a"))
    w.clock.advance(200)
    w.tick()
    assert w.ledger.worker_entries(GROUP) == []
    assert not w.redis.exists(keys.worker(GROUP, "a"))


def test_entries_tell_machine_instance_and_last_word(f: Workers, w: World) -> None:
    f.pulse("a", jobs=("x", "y"))
    [entry] = w.ledger.worker_entries(GROUP)
    assert (entry.id, entry.machine, entry.instance, entry.jobs) == ("a", "m-a", "i-a", 2)
    assert entry.heard_at == w.clock.now


# -- drains -------------------------------------------------------------------------------------------------------


def test_only_idle_workers_are_drained_and_no_more_than_there_are(f: Workers, w: World) -> None:
    f.pulse("a", "b", "c")
    f.start("b", "j1")
    assert w.ledger.drain(GROUP, 3) == Drained(2, 0)
    assert f.draining() == {"a", "c"}
    assert f.pulse("a", "b", "c") == [True, False, True]


def test_a_worker_that_claimed_a_moment_before_is_not_drained_though_its_pulse_said_idle(f: Workers, w: World) -> None:
    f.pulse("a")
    f.start("a", "j1")
    assert w.ledger.drain(GROUP, 1) == Drained(0, 0)


def test_a_worker_whose_process_still_winds_down_is_not_drained(f: Workers, w: World) -> None:
    token = f.start("a", "j1")
    f.pulse("a", jobs=("j1",))
    w.ledger.end_attempt(token, completed())
    assert w.ledger.drain(GROUP, 1) == Drained(0, 0)
    f.pulse("a")
    assert w.ledger.drain(GROUP, 1) == Drained(1, 0)


def test_the_claim_of_a_draining_worker_is_refused_and_its_message_goes_to_another_one_at_once(
    f: Workers, w: World
) -> None:
    f.pulse("a", "b")
    w.submit("j1")
    assert w.pop() is not None
    w.ledger.drain(GROUP, 2)
    assert f.claim("a", "j1") == "draining"
    assert len(w.messages()) == 1
    w.ledger.drain(GROUP, 0)
    assert isinstance(f.claim("b", "j1"), FencingToken)


def test_a_claim_that_was_granted_before_the_drain_is_granted_again_when_its_answer_was_lost(
    f: Workers, w: World
) -> None:
    f.pulse("a")
    token = f.start("a", "j1")
    w.redis.hset(keys.worker(GROUP, "a"), "draining", w.clock.now + 9)  # cannot come to be; a claim must hold even so
    assert f.claim("a", "j1") == token


def test_a_drained_worker_is_idle_for_the_scaler_once_it_has_told_the_platform(f: Workers, w: World) -> None:
    f.pulse("a", "b")
    w.ledger.drain(GROUP, 1)
    assert f.facts() == WorkerFacts(2, 2, 0, draining_idle=0, draining_busy=0, draining_unsettled=1)
    [name] = f.draining()
    f.pulse(name, settled=True)
    assert f.facts() == WorkerFacts(2, 2, 0, draining_idle=1, draining_busy=0, draining_unsettled=0)


def test_who_was_drained_by_hand_is_the_first_to_go_and_the_scalers_drain_of_it_can_be_taken_back(
    f: Workers, w: World
) -> None:
    f.pulse("a", "b", "c")
    f.pulse("b", by_hand=True)
    assert f.facts() == WorkerFacts(3, 3, 0, 0, 0, withdrawn=1, withdrawn_slots=1)
    assert w.ledger.drain(GROUP, 1) == Drained(1, 0)
    assert f.draining() == {"b"}
    assert f.facts() == WorkerFacts(3, 3, 0, 0, 0, draining_unsettled=1)
    assert w.ledger.drain(GROUP, 0) == Drained(0, 1)
    assert f.facts() == WorkerFacts(3, 3, 0, 0, 0, withdrawn=1, withdrawn_slots=1)


def test_a_worker_that_was_drained_by_hand_is_missed_only_while_a_slot_of_it_is_free(f: Workers) -> None:
    f.start("a", "j1")
    f.pulse("a", jobs=("j1",), by_hand=True)
    f.start("b", "j2")
    f.pulse("b", jobs=("j2",), slots=2, by_hand=True)
    assert f.facts() == WorkerFacts(2, 3, 2, 0, 0, withdrawn=1, withdrawn_slots=1)
    f.pulse("a", by_hand=False)
    assert f.facts().withdrawn == 1


def test_a_drained_worker_that_vanishes_leaves_the_counts_and_another_one_is_chosen(f: Workers, w: World) -> None:
    f.pulse("a")
    w.ledger.drain(GROUP, 1)
    f.pulse("a", settled=True)
    w.clock.advance(w.ledger.timings.machine_alive_s + 1)
    f.pulse("b")
    assert f.facts() == WorkerFacts(1, 1, 0, 0, 0)
    assert w.ledger.drain(GROUP, 1) == Drained(1, 0)
    assert f.draining() == {"a", "b"}


def test_a_drained_worker_that_was_out_of_reach_drains_still_when_it_comes_back(f: Workers, w: World) -> None:
    f.pulse("a")
    w.ledger.drain(GROUP, 1)
    w.clock.advance(w.ledger.timings.drain_holds_s - 1)
    w.submit("j1")
    assert f.claim("a", "j1") == "draining"
    w.ledger.drain(GROUP, 0)
    assert f.pulse("a") == [False]


def test_a_drain_that_nobody_renews_is_void_so_that_jobs_need_no_scaler(f: Workers, w: World) -> None:
    f.pulse("a", "b")
    for _ in range(4):
        w.ledger.drain(GROUP, 2)
        f.pulse("a", "b", settled=True)
        w.clock.advance(w.ledger.timings.drain_holds_s / 2)
        assert f.pulse("a", "b", settled=True) == [True, True]
    w.clock.advance(w.ledger.timings.drain_holds_s / 2 + 1)
    assert f.pulse("a", "b") == [False, False]
    w.submit("j1")
    assert isinstance(f.claim("a", "j1"), FencingToken)
    assert w.ledger.condemn(GROUP, 2, "shrink").marked == 0
    assert w.ledger.drain(GROUP, 2) == Drained(1, 0)
    assert f.facts().draining_unsettled == 1, "what it said of the drain before counts no more"


def test_drains_are_taken_back_down_to_what_is_wanted(f: Workers, w: World) -> None:
    f.pulse("a", "b", "c")
    w.ledger.drain(GROUP, 3)
    assert w.ledger.drain(GROUP, 1) == Drained(0, 2)
    assert w.ledger.drain(GROUP, 1) == Drained(0, 0)
    assert w.ledger.drain(GROUP, 2) == Drained(1, 0)
    assert w.ledger.drain(GROUP, 0) == Drained(0, 2)
    assert f.draining() == set()


def test_a_worker_that_took_its_job_back_while_it_drained_is_busy_and_the_first_to_be_taken_back(
    f: Workers, w: World
) -> None:
    f.pulse("a", "b")
    token = f.start("a", "j1")
    w.wait(31)  # the lease runs out and the job is reaped
    f.pulse("a", "b")
    w.ledger.drain(GROUP, 2)
    f.pulse("a", "b", settled=True)
    assert f.facts().draining_idle == 2
    w.ledger.end_attempt(token, interruption())
    w.ledger.drain(GROUP, 2)
    f.pulse("a", jobs=("j1",), settled=True)
    assert (f.facts().draining_idle, f.facts().draining_busy) == (1, 1)
    w.ledger.drain(GROUP, 1)
    assert f.draining() == {"b"}


# -- what SaladCloud is about to remove ---------------------------------------------------------------------------


def settled_drains(f: Workers, w: World, *names: str) -> None:
    f.pulse(*names)
    w.ledger.drain(GROUP, len(names))
    f.pulse(*names, settled=True)


def test_workers_that_are_given_up_count_nowhere_and_are_not_taken_back(f: Workers, w: World) -> None:
    settled_drains(f, w, "a", "b")
    f.pulse("c")
    given_up = w.ledger.condemn(GROUP, 2, "shrink")
    assert (given_up.noted, given_up.marked, given_up.others, given_up.running) == (True, 2, 1, 0)
    assert f.facts() == WorkerFacts(1, 1, 0, 0, 0)
    w.ledger.drain(GROUP, 0)
    w.submit("j1")
    assert f.claim("a", "j1") == "draining"


def test_only_drained_workers_that_have_told_the_platform_are_given_up(f: Workers, w: World) -> None:
    f.pulse("a", "b")
    w.ledger.drain(GROUP, 1)
    assert w.ledger.condemn(GROUP, 5, "shrink").marked == 0


def test_nobody_is_given_up_while_saladcloud_may_take_a_busy_worker_for_a_drained_one(f: Workers, w: World) -> None:
    settled_drains(f, w, "a")
    f.pulse("b", untold=True)
    token = f.start("b", "j1")
    found = w.ledger.condemn(GROUP, 1, "shrink")
    assert (found.noted, found.exposed) == (False, 1)
    assert w.ledger.workers(GROUP).condemned == 0
    f.pulse("b")
    assert w.ledger.condemn(GROUP, 1, "shrink").noted
    assert w.ledger.get(token.job_id).status.value == "running"


def test_a_drained_worker_that_could_not_say_so_goes_only_where_nobody_has_a_job_to_lose(f: Workers, w: World) -> None:
    f.pulse("a", "b")
    token = f.start("b", "j1")
    w.ledger.drain(GROUP, 1)
    f.pulse("a", settled=True, untold=True)
    assert f.facts() == WorkerFacts(2, 2, 1, 0, 0, draining_unsettled=1)
    assert w.ledger.condemn(GROUP, 1, "shrink").marked == 0
    w.ledger.end_attempt(token, completed())
    assert f.facts() == WorkerFacts(2, 2, 0, 1, 0)
    assert w.ledger.condemn(GROUP, 1, "shrink").marked == 1


def test_nobody_is_given_up_where_fewer_are_drained_than_must_go(f: Workers, w: World) -> None:
    settled_drains(f, w, "a", "b")
    assert not w.ledger.condemn(GROUP, 5, "shrink", least=3).noted
    assert w.ledger.workers(GROUP).condemned == 0


def test_a_group_with_work_or_workers_is_not_given_up_as_a_whole(f: Workers, w: World) -> None:
    settled_drains(f, w, "a")
    f.pulse("b")
    assert not w.ledger.condemn(GROUP, 5, "stop").noted
    w.ledger.drain(GROUP, 2)
    f.pulse("b", settled=True)
    w.submit("j1")
    w.start("j1", "elsewhere")
    assert w.ledger.condemn(GROUP, 5, "stop").running == 1
    assert f.facts().draining_idle == 2


def test_a_worker_that_vanished_a_moment_ago_does_not_hold_up_a_stop(f: Workers, w: World) -> None:
    """It never says that it knows of its drain; nor could it claim, should it come back."""
    settled_drains(f, w, "a")
    f.pulse("gone")
    w.ledger.drain(GROUP, 2)
    assert w.ledger.condemn(GROUP, 5, "shrink", least=2).noted is False
    assert w.ledger.condemn(GROUP, 5, "stop").marked == 2
    w.submit("j1")
    assert f.claim("gone", "j1") == "draining"


def test_those_that_were_given_up_for_what_was_refused_are_taken_back_and_no_others(f: Workers, w: World) -> None:
    settled_drains(f, w, "a", "b")
    w.ledger.condemn(GROUP, 1, "shrink")
    w.clock.advance(1)
    f.pulse("a", "b", settled=True)
    refused = w.ledger.condemn(GROUP, 5, "stop")
    assert refused.marked == 1
    assert w.ledger.pardon(GROUP, refused) == 1
    view = w.ledger.workers(GROUP)
    assert (view.facts.draining_idle, view.condemned) == (1, 1)
    assert f.pulse("late") == [False]


def test_who_was_spared_by_a_shrink_works_again_once_saladcloud_has_nothing_left_to_remove(
    f: Workers, w: World
) -> None:
    settled_drains(f, w, "a")
    w.ledger.condemn(GROUP, 1, "shrink")
    for seconds in (0, w.ledger.timings.shrink_takes_s - 1):
        w.clock.advance(seconds)
        f.pulse("a", settled=True)
        assert w.ledger.workers(GROUP, settled=True).condemned == 1
    w.clock.advance(2)
    f.pulse("a", settled=True)
    assert w.ledger.workers(GROUP).condemned == 1, "not while SaladCloud has more than it was told to have"
    assert f.facts(settled=True).draining_idle == 1
    assert w.ledger.drain(GROUP, 0) == Drained(0, 1)


def test_nobody_is_spared_by_a_stop_before_its_time_is_over(f: Workers, w: World) -> None:
    settled_drains(f, w, "a")
    w.ledger.condemn(GROUP, 1, "stop")
    for _ in range(int(w.ledger.timings.stop_takes_s) // 10):
        w.clock.advance(9.9)
        f.pulse("a", settled=True)
        assert f.facts(settled=True).workers == 0
        w.submit(f"j{w.clock.now}")
        assert f.claim("a", f"j{w.clock.now}") == "draining"
    w.clock.advance(10)
    assert f.facts() == WorkerFacts(1, 1, 0, 0, 0)


def test_a_worker_that_comes_up_while_its_group_is_being_stopped_claims_nothing(f: Workers, w: World) -> None:
    w.ledger.condemn(GROUP, 100, "stop")
    assert f.pulse("late") == [True]
    w.submit("j1")
    assert f.claim("late", "j1") == "draining"
    w.ledger.reopen(GROUP)
    assert f.pulse("late") == [False]
    assert isinstance(f.claim("late", "j1"), FencingToken)


def test_a_group_that_was_to_be_stopped_is_not_closed_for_ever(f: Workers, w: World) -> None:
    w.ledger.condemn(GROUP, 100, "stop")
    w.clock.advance(w.ledger.timings.stop_takes_s + 1)
    w.submit("j1")
    assert isinstance(f.claim("a", "j1"), FencingToken)


# -- machines that fail jobs --------------------------------------------------------------------------------------


def fail_on(f: Workers, w: World, name: str, job_id: str) -> None:
    w.ledger.end_attempt(f.start(name, job_id), failure())


def complete_on(f: Workers, w: World, name: str, job_id: str) -> None:
    w.wait(2)  # the retry's pause
    token = f.claim(name, job_id)
    assert isinstance(token, FencingToken), token
    w.ledger.end_attempt(token, completed())


def test_jobs_that_failed_on_a_machine_and_succeeded_elsewhere_count_against_it(f: Workers, w: World) -> None:
    for n in range(3):
        fail_on(f, w, "a", f"j{n}")
        assert w.ledger.failing_machines(GROUP, 1) == ({"m-a": n} if n else {}), "not before another one succeeds"
        complete_on(f, w, "b", f"j{n}")
    assert w.ledger.failing_machines(GROUP, 3) == {"m-a": 3}
    assert w.ledger.failing_machines(GROUP, 4) == {}
    assert w.ledger.pulse(GROUP, "m-a", [], alive=False).streak == 3


def test_a_success_ends_a_streak_and_older_failures_do_not_begin_one(f: Workers, w: World) -> None:
    fail_on(f, w, "a", "old")
    fail_on(f, w, "a", "older")
    complete_on(f, w, "b", "older")
    w.clock.advance(1)
    f.start("a", "fine")
    complete = f.claim("a", "fine")
    assert isinstance(complete, FencingToken)
    w.ledger.end_attempt(complete, completed())
    assert w.ledger.failing_machines(GROUP, 1) == {}
    complete_on(f, w, "b", "old")
    assert w.ledger.failing_machines(GROUP, 1) == {}, "it failed before that success: no longer in a row"


def test_jobs_that_fail_everywhere_count_against_nobody(f: Workers, w: World) -> None:
    w.submit("bad", max_failures=3)
    for name in "abc":
        token = f.claim(name, "bad")
        assert isinstance(token, FencingToken)
        w.ledger.end_attempt(token, failure())
        w.wait(2)
    assert w.ledger.failing_machines(GROUP, 1) == {}


# -- moves --------------------------------------------------------------------------------------------------------


def move(w: World, machine: str = "m", **more: Any) -> bool:
    return w.ledger.ask_to_move(GROUP, machine, "i", "why not", by="worker", **more).granted


def test_a_small_group_may_move_one_instance_an_hour(f: Workers, w: World) -> None:
    f.pulse("a", "b")
    assert [move(w), move(w), move(w, size=19)] == [True, False, False]
    w.clock.advance(3601)
    assert move(w)


def test_a_large_group_may_move_a_tenth_whoever_asks(w: World) -> None:
    assert sum(move(w, f"m{n}", size=57) for n in range(20)) == 5


def test_a_move_is_in_the_history_and_begins_the_machines_streak_anew(f: Workers, w: World) -> None:
    fail_on(f, w, "a", "j1")
    complete_on(f, w, "b", "j1")
    leave = w.ledger.ask_to_move(GROUP, "m-a", "i-a", 'a "reason"', by="scaler", size=30)
    assert (leave.granted, leave.used, leave.allowed) == (True, 1, 3)
    [entry] = w.ledger.decisions(GROUP)
    expected = {"kind": "move", "by": "scaler", "machine": "m-a", "instance": "i-a", "reasons": ['a "reason"']}
    assert entry.items() >= expected.items()
    assert entry["at"] == w.clock.now
    assert w.ledger.failing_machines(GROUP, 1) == {}


# -- decisions ----------------------------------------------------------------------------------------------------


def test_the_same_nothing_in_a_row_is_one_entry_that_counts(w: World) -> None:
    for n in range(3):
        assert w.ledger.keep_decision(GROUP, {"action": "nothing", "n": n, "list": []}, same="s") == n + 1
        w.clock.advance(60)
    w.ledger.keep_decision(GROUP, {"action": "start"}, memory=Memory(last_scale_out_s=1764252176.123456))
    w.ledger.keep_decision(GROUP, {"action": "start"})
    last, start, nothing = w.ledger.decisions(GROUP)
    assert (last["count"], start["count"], nothing["count"]) == (1, 1, 3)
    assert nothing["until_at"] - nothing["at"] == 120
    assert (nothing["n"], nothing["list"]) == (2, [])
    assert w.ledger.memory(GROUP) == Memory(last_scale_out_s=1764252176.123456)


def test_what_another_version_remembered_is_left_out(w: World) -> None:
    w.redis.hset(keys.scaler(GROUP), "memory", '{"last_scale_in_s": 1.5, "of_the_future": [[1, 2]]}')
    assert w.ledger.memory(GROUP) == Memory(last_scale_in_s=1.5)


def test_a_deed_in_between_parts_the_same_nothings(w: World) -> None:
    for same in ("s", "t", "s"):
        assert w.ledger.keep_decision(GROUP, {"action": "nothing"}, same=same) == 1
    move(w)
    assert w.ledger.keep_decision(GROUP, {"action": "nothing"}, same="s") == 1
    assert len(w.ledger.decisions(GROUP)) == 5


def test_the_last_500_decisions_are_kept(w: World) -> None:
    w.ledger.watching = False
    for n in range(505):
        w.ledger.keep_decision(GROUP, {"n": n})
    assert [entry["n"] for entry in w.ledger.decisions(GROUP)] == list(range(504, 4, -1))


# -- work ---------------------------------------------------------------------------------------------------------


def test_the_work_of_a_group_is_counted_by_what_may_start_now(f: Workers, w: World) -> None:
    assert w.ledger.queue_facts(GROUP) == QueueFacts(0, 0, 0, 0.0, None, None, {})
    w.submit("a", priority=9)
    w.clock.advance(10)
    w.submit("b", priority=2)
    w.submit("c", priority=2)
    w.submit("d", delay_s=30)
    f.start("x", "e")
    facts = w.ledger.queue_facts(GROUP)
    assert (facts.pending, facts.delayed, facts.running) == (3, 1, 1)
    assert facts.pending_by_priority == {2: 2, 9: 1}
    assert facts.oldest_pending_s == pytest.approx(10, abs=0.01)
    assert facts.next_delayed_s == pytest.approx(30, abs=0.01)
    assert facts.last_activity_s == 0


def test_a_lease_that_has_run_out_is_no_running_job(f: Workers, w: World) -> None:
    f.start("a", "j1")
    w.clock.advance(31)
    facts = w.ledger.queue_facts(GROUP)
    assert (facts.running, facts.lapsed) == (0, 1)
    assert facts.last_activity_s == 0, "it will be pending in a moment: there is work"


def test_the_last_activity_is_the_last_end(f: Workers, w: World) -> None:
    for job_id in ("j1", "j2"):
        w.ledger.end_attempt(f.start("a", job_id), completed())
        w.clock.advance(100)
    assert w.ledger.queue_facts(GROUP).last_activity_s == pytest.approx(100)


# -- tokens -------------------------------------------------------------------------------------------------------


def test_no_minute_has_more_calls_than_the_limit_whatever_the_callers_do(w: World) -> None:
    w.ledger.watching = False
    calls: list[float] = []
    for n in range(900):
        wait_s = w.ledger.take_token("b", each_s=60 / 180, holds=60, most_s=60)
        if wait_s is not None:
            calls.append(w.clock.now + wait_s)
        if n % 200 == 199:
            w.clock.advance(25)
    calls.sort()
    assert len(calls) > 400
    for at in calls:
        assert sum(at <= other < at + 60 for other in calls) <= 240


def test_a_token_that_is_not_waited_for_is_not_taken(w: World) -> None:
    assert w.ledger.take_token("b", each_s=10, holds=1, most_s=0) == 0
    assert w.ledger.take_token("b", each_s=10, holds=1, most_s=5) is None
    assert w.ledger.take_token("b", each_s=10, holds=1, most_s=10) == pytest.approx(10)
    assert w.ledger.take_token("other", each_s=10, holds=1, most_s=0) == 0


def test_a_clock_that_was_put_back_stops_nobody(w: World) -> None:
    w.ledger.take_token("b", each_s=10, holds=1, most_s=0)
    w.clock.advance(-86_400)
    assert w.ledger.take_token("b", each_s=10, holds=1, most_s=0) == 0


def test_notes_are_kept_and_removed(w: World) -> None:
    w.ledger.note(GROUP, "name", "workers")
    assert w.ledger.noted(GROUP, "name") == "workers"
    w.ledger.note(GROUP, "name", "")
    assert w.ledger.noted(GROUP, "name") == ""
