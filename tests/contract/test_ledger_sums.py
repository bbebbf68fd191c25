"""The ledger's contract: where the time of jobs went, to the second, and each end counted once."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from redis import Redis

from kelpie_celery.errors import KelpieError, LeaseLost
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.types import Ending, FencingToken, Granted
from kelpie_celery.lifecycle import Outcome, Phase, Reason, Status
from kelpie_celery.scaling.facts import FleetFacts, GroupStatus, Memory
from kelpie_celery.stats import GroupStats, _stats
from kelpie_scaler.decision import Action, Decision
from kelpie_scaler.history import decided
from tests.contract.ledger_cases import (
    GROUP,
    START,
    World,
    again,
    canceled,
    commit_id,
    completed,
    failure,
    interruption,
    new_commit,
)
from tests.contract.ledger_fixtures import any_redis, ledger_valkey, real_redis, w  # noqa: F401

TIMES = ("restoring_s", "useful_s", "lost_s", "syncing_s", "silent_s", "waiting_s")
HOUR_S = 3600


def stats(w: World, since: float = START, until: float | None = None) -> GroupStats:
    until = w.clock.now if until is None else until
    return _stats(GROUP, since, until, w.ledger.sums(GROUP, since, until))


def times(w: World) -> dict[str, float]:
    """What is not 0; the sums since ever are the same as those of the hours."""
    found = stats(w)
    [picture] = w.ledger.pictures([GROUP]).values()
    for name in TIMES:
        assert picture.totals.get(name, 0.0) == pytest.approx(getattr(found, name), abs=1e-5)
    return {name: getattr(found, name) for name in TIMES if getattr(found, name)}


def launched(w: World, waited_s: float = 10.0, restored_s: float = 5.0) -> FencingToken:
    """A job that was submitted, claimed and started, at these distances."""
    w.submit()
    w.clock.advance(waited_s)
    token = w.claim()
    w.clock.advance(restored_s)
    w.ledger.renew(token, Phase.EXECUTING)
    return token


def commit(w: World, token: FencingToken, generation: int = 1, took_s: float = 0.0) -> None:
    w.ledger.commit(token, [new_commit(token, generation)], {"why": "quiet", "seconds": took_s})


def attempt(w: World, job_id: str = "j1") -> Any:
    return w.ledger.get(job_id).attempts[-1]


# -- one attempt --------------------------------------------------------------------------------------------------


def test_work_since_the_last_commit_of_an_interrupted_attempt_is_lost(w: World) -> None:
    token = launched(w)
    w.clock.advance(100)
    commit(w, token, took_s=20)
    assert times(w) == {"waiting_s": 10, "useful_s": 80}, "counted with the commit, not days later"
    w.clock.advance(50)
    w.ledger.end_attempt(token, interruption(facts={"execute_s": 147.0}))
    assert times(w) == {"waiting_s": 10, "restoring_s": 5, "useful_s": 80, "lost_s": 67, "syncing_s": 3}
    one = attempt(w)
    assert (one.restore_s, one.execute_s, one.sync_s, one.lost_s, one.silent_s) == (5, 147, 3, 67, 0)


def test_a_commit_at_the_end_leaves_nothing_lost(w: World) -> None:
    token = launched(w)
    w.clock.advance(100)
    commit(w, token)
    w.clock.advance(40)  # the command ends after 30 of these
    commit(w, token, 2)
    w.clock.advance(2)
    w.ledger.end_attempt(token, interruption(facts={"execute_s": 130.0}))
    assert times(w) == {"waiting_s": 10, "restoring_s": 5, "useful_s": 130, "syncing_s": 12}
    assert attempt(w).lost_s == 0


def test_all_work_of_an_attempt_that_completes_is_useful(w: World) -> None:
    token = launched(w)
    w.clock.advance(60)
    commit(w, token)
    w.clock.advance(60)
    w.ledger.renew(token, Phase.UPLOADING)
    w.clock.advance(30)
    w.ledger.end_attempt(token, completed())
    assert times(w) == {"waiting_s": 10, "restoring_s": 5, "useful_s": 120, "syncing_s": 30}
    found = stats(w)
    assert (found.completed, found.slot_s, found.useful_fraction) == (1, 155, 120 / 155)
    assert (found.gpu_hours, found.between_interruptions_s) == (155 / 3600, None)


@pytest.mark.parametrize(
    "ending", [failure(), canceled(), Ending(Outcome.FREE, Reason.OOM, "oom"), interruption(), failure(final=True)]
)
def test_without_a_commit_all_work_is_lost_however_it_ends_but_by_completion(w: World, ending: Ending) -> None:
    token = launched(w)
    w.clock.advance(40)
    w.ledger.end_attempt(token, ending)
    assert times(w) == {"waiting_s": 10, "restoring_s": 5, "lost_s": 40}
    assert stats(w).ends == {f"{ending.outcome}:{ending.reason}": 1}


def test_an_attempt_that_never_launched_was_restoring(w: World) -> None:
    w.submit()
    token = w.claim()
    w.clock.advance(7)
    w.ledger.end_attempt(token, failure(Reason.SETUP))
    assert times(w) == {"restoring_s": 7}


def test_a_command_that_cannot_be_started_loses_nothing(w: World) -> None:
    token = launched(w, 0, 5)
    w.clock.advance(1)
    w.ledger.end_attempt(token, failure(Reason.SETUP, facts={"execute_s": 0.0}))
    assert times(w) == {"restoring_s": 5, "syncing_s": 1}


def test_the_time_between_two_tries_is_waiting_but_for_the_pause_before_a_retry(w: World) -> None:
    token = launched(w, 0, 0)
    w.ledger.end_attempt(token, failure(delay_s=60))
    w.clock.advance(65)
    w.tick()
    w.claim()
    assert times(w) == {"waiting_s": 5}


def test_a_pending_job_that_is_canceled_has_waited(w: World) -> None:
    w.submit()
    w.clock.advance(12)
    w.ledger.cancel("j1")
    w.ledger.cancel("j1")
    assert times(w) == {"waiting_s": 12}


@pytest.mark.parametrize("made_up", [-5.0, 1e300, float("inf"), "many", None, {}])
def test_what_a_worker_makes_up_stays_within_the_attempts_time(w: World, made_up: Any) -> None:
    token = launched(w, 0, 5)
    w.clock.advance(30)
    facts = {"execute_s": made_up} if made_up != float("inf") else {}
    w.ledger.end_attempt(token, failure(facts=facts))
    assert sum(times(w).values()) == 35
    assert min(times(w).values()) > 0


# -- once ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [completed(), failure(), interruption(), canceled(), again()])
def test_an_ending_that_is_told_again_counts_once(w: World, ending: Ending) -> None:
    token = launched(w)
    w.clock.advance(40)
    w.ledger.end_attempt(token, ending)
    before = w.ledger.pictures([GROUP])[GROUP].totals
    w.clock.advance(40)
    w.ledger.end_attempt(token, ending)
    assert w.ledger.pictures([GROUP])[GROUP].totals == before
    assert sum(stats(w).ends.values()) == 1


def test_a_commit_and_a_claim_that_are_told_again_count_once(w: World) -> None:
    w.submit()
    w.clock.advance(10)
    token = w.claim(nonce="same")
    assert w.claim(nonce="same") == token
    w.ledger.renew(token, Phase.EXECUTING)
    w.clock.advance(30)
    commit(w, token)
    w.clock.advance(30)
    commit(w, token)
    assert times(w) == {"waiting_s": 10, "useful_s": 30}


def test_a_completion_that_a_cancel_refused_counts_as_canceled_once(w: World) -> None:
    token = launched(w)
    w.ledger.cancel("j1")
    assert w.ledger.end_attempt(token, completed()) == "cancel"
    w.ledger.end_attempt(token, canceled())
    assert stats(w).ends == {"canceled:canceled": 1}


def test_an_ending_without_effect_counts_nothing(w: World) -> None:
    stale = launched(w)
    w.wait(31)
    mine = w.claim(machine="m2")
    before = w.ledger.pictures([GROUP])[GROUP].totals
    with pytest.raises(LeaseLost):
        w.ledger.end_attempt(stale, completed())
    assert w.ledger.pictures([GROUP])[GROUP].totals == before
    w.ledger.end_attempt(mine, completed())
    assert stats(w).ends == {"completed:exit_code": 1, "interruption:lease_expired": 1}


# -- silent deaths ------------------------------------------------------------------------------------------------


def test_a_silent_death_loses_the_work_until_its_last_sign_of_life(w: World) -> None:
    token = launched(w, 0, 5)
    w.clock.advance(15)
    commit(w, token)
    w.clock.advance(10)
    w.ledger.renew(token, Phase.EXECUTING)
    w.clock.advance(30)
    w.tick()
    assert times(w) == {"restoring_s": 5, "useful_s": 15, "lost_s": 10, "silent_s": 30}
    found = stats(w)
    assert (found.interruptions, found.slot_s, found.between_interruptions_s) == (1, 30, 30)
    assert (attempt(w).lost_s, attempt(w).silent_s) == (10, 30)


def test_a_death_that_was_none_is_taken_off_again_also_in_another_hour(w: World) -> None:
    w.clock.set(START // HOUR_S * HOUR_S + HOUR_S - 31.5)
    token = launched(w, 0, 1)
    w.clock.advance(30)
    w.tick()
    assert times(w) == {"restoring_s": 1, "silent_s": 30}
    w.clock.advance(100)
    w.ledger.renew(token, Phase.EXECUTING)
    assert times(w) == {}
    assert stats(w).ends == {}
    assert attempt(w).silent_s is None
    w.ledger.end_attempt(token, completed())
    assert times(w) == {"restoring_s": 1, "useful_s": 130}
    assert stats(w).ends == {"completed:exit_code": 1}


def test_the_last_death_of_a_poisoned_job_counts_as_a_death(w: World) -> None:
    w.ledger.timings = replace(w.ledger.timings, poison_deaths=1)
    launched(w)
    w.wait(31)
    assert w.ledger.get("j1").status is Status.FAILED
    assert stats(w).ends == {"interruption:lease_expired": 1}


def test_a_rollback_ends_the_attempt_and_loses_what_was_not_committed(w: World) -> None:
    token = launched(w, 0, 0)
    w.clock.advance(20)
    commit(w, token)
    w.clock.advance(5)
    w.ledger.rollback("j1", commit_id(token, 1), [new_commit(replace(token, attempt=2), 2)])
    assert times(w) == {"useful_s": 20, "lost_s": 5}
    assert stats(w).ends == {"continue:rolled_back": 1}


# -- hours --------------------------------------------------------------------------------------------------------


def test_only_the_hours_asked_for_are_summed_up(w: World) -> None:
    token = launched(w, 0, 0)
    for generation in range(1, 51):
        w.clock.advance(HOUR_S)
        commit(w, token, generation)
        w.ledger.renew(token, Phase.EXECUTING)
    now = w.clock.now
    assert stats(w).useful_s == 50 * HOUR_S
    assert stats(w, now - 24 * HOUR_S, now).useful_s == 25 * HOUR_S, "the hour in which it began counts whole"
    assert stats(w, START, START + 30 * HOUR_S).useful_s == 30 * HOUR_S
    assert stats(w, now + HOUR_S, now + 2 * HOUR_S).useful_s == 0
    assert stats(w, now - 24 * HOUR_S).since % HOUR_S == 0


def test_sums_outlive_the_records_and_go_by_themselves(w: World) -> None:
    token = launched(w)
    w.ledger.end_attempt(token, completed())
    w.ledger.celery_done("j1")
    w.clock.advance(w.ledger.timings.job_retention_s + 1)
    w.tick()
    assert w.ledger.get_many(["j1"]) == []
    assert stats(w).completed == 1
    ttl_s = int(w.redis.ttl(keys.stats(GROUP, int(START // 86_400))))
    assert 89 * 86_400 < ttl_s <= 90 * 86_400


# -- what metrics tell --------------------------------------------------------------------------------------------


def test_a_picture_tells_of_jobs_queue_workers_and_nodes(w: World) -> None:
    w.submit("a")
    w.submit("b", delay_s=60)
    w.submit("c")
    w.clock.advance(9)
    w.ledger.end_attempt(w.claim("c"), completed())
    fleet = FleetFacts(GroupStatus.RUNNING, 1, 0, 0, 1, 0, False)
    decision = Decision(Action.SET_REPLICAS, 3, 0, ("x",), Memory())
    entry, _ = decided(decision, w.ledger.queue_facts(GROUP), w.ledger.workers(GROUP), fleet)
    w.ledger.keep_decision(GROUP, entry)
    w.ledger.keep_decision(GROUP, {"kind": "error", "reasons": ["x"]}, same="x")
    w.ledger.keep_decision(GROUP, {"kind": "error", "reasons": ["x"]}, same="x")
    [picture] = w.ledger.pictures([GROUP]).values()
    assert picture.jobs == {"pending": 1, "delayed": 1, "running": 0, "completed": 1, "failed": 0, "canceled": 0}
    assert (picture.queue_age_s, picture.desired, picture.actual) == (9, 3, 1)
    assert (picture.totals["decision:set_replicas"], picture.totals["decision:error"]) == (1, 2)


def test_a_group_whose_keys_were_spoilt_is_left_out_and_no_other(w: World) -> None:
    w.submit("a")
    w.submit("b", group="other")
    w.redis.hset(keys.counts(GROUP), "completed", "many")
    w.redis.set(f"{keys.group_prefix('third')}totals", "x")
    assert set(w.ledger.pictures([GROUP, "other", "third", "unheard-of"])) == {"other", "unheard-of"}


def test_sums_that_were_spoilt_stop_no_job_and_no_other_sum(w: World) -> None:
    w.redis.hset(keys.totals(GROUP), mapping={"lost_s": "much", "useful_s": "nan", "made up": "1e999"})
    w.redis.hset(keys.stats(GROUP, int(START // 86_400)), mapping={"x:useful_s": 5, "1:lost_s": "much", "": 1})
    token = launched(w)
    w.clock.advance(40)
    w.ledger.end_attempt(token, failure())
    w.tick()
    token = w.start()
    w.ledger.end_attempt(token, completed())
    assert w.ledger.get("j1").status is Status.COMPLETED
    assert (stats(w).completed, stats(w).failures, stats(w).lost_s) == (1, 1, 40)
    w.redis.delete(keys.totals(GROUP), keys.stats(GROUP, int(START // 86_400)))
    w.redis.set(keys.totals(GROUP), "x")
    w.redis.set(keys.stats(GROUP, int(START // 86_400)), "x")
    w.submit("j2")
    w.ledger.end_attempt(w.start("j2"), completed())
    w.ledger.keep_decision(GROUP, {"kind": "error"})
    assert w.ledger.get("j2").status is Status.COMPLETED


@pytest.mark.parametrize(
    "settled", ["no JSON", "3", "{}", '{"hour": 1}', '{"hour": "x", "sums": {"useful_s": "much"}}']
)
def test_what_the_reaper_left_and_somebody_spoilt_keeps_no_attempt_from_its_job(w: World, settled: str) -> None:
    token = launched(w)
    w.clock.advance(3600)
    w.tick()
    w.redis.hset(keys.job(GROUP, "j1"), "settled", settled)
    w.ledger.renew(token, Phase.EXECUTING)
    assert w.ledger.get("j1").status is Status.RUNNING
    w.ledger.end_attempt(token, completed())
    assert w.ledger.get("j1").status is Status.COMPLETED


def test_an_end_that_is_refused_for_a_number_that_is_none_counts_nothing_however_often_it_is_tried(
    real_redis: Redis,
) -> None:
    w = World(real_redis)  # fakeredis takes such a number
    token = launched(w)
    w.clock.advance(40)
    for _ in range(3):
        with pytest.raises(KelpieError):
            w.ledger.end_attempt(token, replace(failure(), facts={"sent_s": float("nan")}))
    assert stats(w).ends == {}
    assert attempt(w).ended is None
    w.ledger.end_attempt(token, failure())
    assert (stats(w).failures, stats(w).lost_s) == (1, 40)


# -- in all histories ---------------------------------------------------------------------------------------------


class Chance:
    """A client, a maintainer and two machines that do at random what they may do, and what they should not."""

    def __init__(self, w: World, seed: int) -> None:
        self.w, self.dice, self.generation = w, random.Random(seed), 0
        self.tokens: list[FencingToken] = []
        self.by_anybody: list[Callable[[], Any]] = [self._claim, w.tick]
        self.by_holder: list[Callable[[FencingToken], Any]] = [
            lambda token: w.ledger.renew(token, Phase.EXECUTING),
            lambda token: w.ledger.renew(token, self.dice.choice(list(Phase))),
            self._commit, self._end, lambda _token: w.clock.advance(31),
        ]  # fmt: skip

    def step(self) -> None:
        self.w.clock.advance(self.dice.uniform(0, 12))
        self.generation += 1
        acts: list[Callable[[], Any]] = list(self.by_anybody)
        if self.tokens:
            token = self.dice.choice(self.tokens[-2:])
            acts += [partial(act, token) for act in self.by_holder]
        with contextlib.suppress(KelpieError):
            self.dice.choice(acts)()

    def _claim(self) -> None:
        answer = self.w.ask(machine=self.dice.choice(["m1", "m2"]))
        if isinstance(answer, Granted):
            self.tokens.append(answer.token)

    def _commit(self, token: FencingToken) -> None:
        head = self.w.line().head
        one = new_commit(token, self.generation, base=head.id if head else "")
        self.w.ledger.commit(token, [one], {"seconds": self.dice.uniform(0, 5)})

    def _end(self, token: FencingToken) -> None:
        facts = self.dice.choice([{}, {"execute_s": round(self.dice.uniform(0, 60), 3)}])
        self.w.ledger.end_attempt(token, replace(self.dice.choice([failure(), interruption(), again()]), facts=facts))


@pytest.mark.parametrize("seed", range(12))
def test_in_random_histories_the_sums_are_those_of_the_attempts(w: World, seed: int) -> None:
    """No second of an attempt is counted twice or left out, whoever dies, comes back, repeats himself or is late."""
    w.ledger.watching = False
    w.submit(max_failures=10**6)
    chance = Chance(w, seed)
    for _ in range(60):
        chance.step()

    record = w.ledger.get("j1")
    over = [one for one in record.attempts if one.ended is not None]
    found = stats(w)
    assert sum(found.ends.values()) == len(over)
    assert found.interruptions == record.num_interruptions
    held_s = found.slot_s + found.silent_s
    running = [one for one in record.attempts if one.ended is None]
    counted_s = sum((one.ended or 0) - one.started for one in over)
    if not running:
        assert held_s == pytest.approx(counted_s, abs=0.01)
    else:
        assert counted_s - 0.01 <= held_s <= counted_s + w.clock.now - running[0].started + 0.01
    assert found.lost_s == pytest.approx(sum(one.lost_s or 0 for one in over), abs=0.01)
    assert found.restoring_s == pytest.approx(sum(one.restore_s or 0 for one in over), abs=0.01)
    for one in over:
        parts = (one.restore_s or 0) + (one.execute_s or 0) + (one.sync_s or 0) + (one.silent_s or 0)
        assert parts == pytest.approx((one.ended or 0) - one.started, abs=0.01)
        assert 0 <= (one.lost_s or 0) <= (one.execute_s or 0) + 0.001
