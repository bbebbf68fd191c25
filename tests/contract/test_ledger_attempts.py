"""The ledger's contract: claim, renew, commit, end of an attempt; the fence around them; bans."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import json
import threading

import pytest
from redis import Redis

from kelpie_celery.errors import LeaseLost
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.types import Banned, Claim, Ended, Ending, FencingToken, Granted, Refused, Timings
from kelpie_celery.lifecycle import Outcome, Phase, Reason, Status
from tests.contract.ledger_cases import (
    GROUP,
    START,
    World,
    again,
    canceled,
    completed,
    failure,
    interruption,
)
from tests.contract.ledger_fixtures import any_redis, ledger_valkey, real_redis, w  # noqa: F401


def other(token: FencingToken) -> FencingToken:
    """The same attempt's number with another nonce, as a Redis that lost its last second may hand out."""
    return FencingToken(token.job_id, token.attempt, "someone-else")


# -- claim ---------------------------------------------------------------------------------------------------------


def test_a_claim_grants_what_the_attempt_needs(w: World) -> None:
    w.submit(parents='["r"]')
    w.clock.advance(3)
    answer = w.ask(nonce="n1")
    assert answer == Granted(
        FencingToken("j1", 1, "n1"), lease_s=30.0, ledger_now=START + 3, definition=w.new().definition,
        parents='["r"]', num_failures=0, created=START, started=START + 3, commit="", continues=0,
    )  # fmt: skip
    record = w.ledger.get("j1")
    assert (record.status, record.phase, record.attempt) == (Status.RUNNING, Phase.RESTORING, 1)
    [attempt] = record.attempts
    assert (attempt.n, attempt.machine, attempt.worker, attempt.nonce) == (1, "m1", "w@m1", "n1")
    assert (attempt.started, attempt.ended, attempt.outcome) == (START + 3, None, None)


def test_a_lease_is_twice_the_heartbeat_but_not_shorter_than_the_least(w: World) -> None:
    w.submit("short", heartbeat_s=1.0)
    w.submit("long", heartbeat_s=100.0)
    leases = [getattr(w.ask(job_id), "lease_s", None) for job_id in ("short", "long")]
    assert leases == [30.0, 200.0]
    assert w.score("running", "long") == START + 200


def test_a_doubled_message_is_refused(w: World) -> None:
    w.submit()
    w.claim(machine="m1")
    assert w.ask(machine="m2") == Refused("running")
    assert w.ask(machine="m1") == Refused("running")


def test_a_claim_whose_answer_was_lost_is_granted_again_and_its_lease_counts_from_then(w: World) -> None:
    w.submit()
    first = w.ask(nonce="n1")
    w.clock.advance(20)
    second = w.ask(nonce="n1")
    assert isinstance(first, Granted)
    assert isinstance(second, Granted)
    assert second.token == first.token
    assert second.ledger_now == START + 20
    assert w.score("running") == START + 20 + 30, "the holder trusts its lease from the second call on"
    assert len(w.ledger.get("j1").attempts) == 1


def test_of_many_claims_at_once_one_is_granted(real_redis: Redis) -> None:
    w = World(real_redis)
    w.submit()
    w.ledger.watching = False
    answers: list[Claim] = []
    gate = threading.Barrier(16)

    def claim(n: int) -> None:
        gate.wait(5)
        answers.append(w.ledger.claim("j1", f"n{n}", f"m{n}", f"w{n}", None, may_run=True))

    threads = [threading.Thread(target=claim, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(answers) == 16
    assert sum(isinstance(a, Granted) for a in answers) == 1
    assert answers.count(Refused("running")) == 15


def test_a_process_that_may_not_run_jobs_gets_none(w: World) -> None:
    w.submit()
    assert w.ask(may_run=False) == Refused("no-runner")
    assert w.ledger.status_of("j1") is Status.PENDING


def test_an_ended_job_is_replayed_by_one_at_a_time_until_celery_is_told(w: World) -> None:
    w.submit()
    w.ledger.end_attempt(w.start(), completed({"seconds": 3, "keys": ["ä"]}))
    assert w.ask(may_run=False) == Refused("outbox-busy"), "its own worker is telling Celery right now"
    w.clock.advance(10.1)
    assert w.ask(may_run=False) == Ended(Status.COMPLETED, {"seconds": 3, "keys": ["ä"]}, "", "")
    assert w.ask(may_run=True) == Refused("outbox-busy")
    w.clock.advance(10.1)
    assert isinstance(w.ask(may_run=True), Ended)
    assert w.ledger.celery_done("j1")
    w.clock.advance(10.1)
    assert w.ask() == Refused("completed")


def test_a_failed_job_is_replayed_with_its_reason(w: World) -> None:
    w.submit(max_failures=1)
    w.ledger.end_attempt(w.start(), failure(Reason.OOM, "out of memory"))
    w.clock.advance(10.1)
    assert w.ask() == Ended(Status.FAILED, None, "oom", "out of memory")


def test_a_claim_writes_down_the_newest_message_that_anybody_received(w: World) -> None:
    def watermark() -> float:
        return float(w.redis.hget(f"kelpie:g:{GROUP}:watermark", "4") or 0)

    w.submit()
    w.clock.advance(100)
    w.ask(received_at=START + 50)
    assert watermark() == START + 50
    w.ask(received_at=START + 20)
    assert watermark() == START + 50, "never back"
    w.ask(received_at=START + 101)
    assert watermark() == START + 50, "a time to come proves nothing"
    w.clock.set(START + 10)
    w.ask(received_at=START + 9)
    assert watermark() == START + 9, "Redis's clock was put back"


# -- bans ----------------------------------------------------------------------------------------------------------


def fail_on(w: World, machine: str, delay_s: float = 0.0) -> None:
    w.ledger.end_attempt(w.start(machine=machine), failure(delay_s=delay_s))


def test_a_machine_that_failed_a_job_leaves_it_to_another_live_one(w: World) -> None:
    w.submit()
    w.alive("m1", "m2")
    fail_on(w, "m1")
    assert w.ask(machine="m1") == Banned(0.05)
    assert w.ledger.counts(GROUP).delayed == 1
    assert w.ask(machine="m2") == Refused("delayed"), "the job is on its way to the back of its queue"
    assert w.wait(1).promoted == 1
    assert isinstance(w.ask(machine="m2"), Granted)


def test_the_pause_of_a_ban_grows_and_has_an_end(w: World) -> None:
    w.submit()
    w.alive("m1", "m2")
    fail_on(w, "m1")
    pauses = []
    for _ in range(10):
        answer = w.ask(machine="m1")
        assert isinstance(answer, Banned)
        pauses.append(answer.pause_s)
        w.alive("m2")
        assert w.wait(5).promoted == 1
    assert pauses[:4] == [0.05, 0.1, 0.2, 0.4]
    assert pauses[-1] == 5


def test_a_machine_that_is_alone_gets_the_job_again(w: World) -> None:
    w.submit()
    w.alive("m1")
    fail_on(w, "m1")
    assert isinstance(w.ask(machine="m1"), Granted)


def test_a_machine_that_was_not_heard_of_lately_is_not_waited_for(w: World) -> None:
    w.submit()
    w.alive("m2")
    fail_on(w, "m1")
    w.clock.advance(31)
    assert isinstance(w.ask(machine="m1"), Granted)


def test_when_every_machine_is_banned_any_may_have_the_job(w: World) -> None:
    w.submit(max_failures=5)
    w.alive("m1", "m2")
    fail_on(w, "m1")
    fail_on(w, "m2")
    assert isinstance(w.ask(machine="m1"), Granted)


def test_a_ban_yields_when_the_job_has_waited_long(w: World) -> None:
    w.submit()
    w.alive("m1", "m2")
    fail_on(w, "m1")
    w.clock.advance(299)
    w.alive("m2")
    assert isinstance(w.ask(machine="m1"), Banned)
    w.wait(2)
    assert isinstance(w.ask(machine="m1"), Granted)


def test_the_wait_that_makes_a_ban_yield_begins_when_the_retry_is_due(w: World) -> None:
    w.submit()
    w.alive("m1", "m2")
    fail_on(w, "m1", delay_s=600)
    w.wait(600)
    w.alive("m1", "m2")
    assert isinstance(w.ask(machine="m1"), Banned)


def test_a_ban_ends_after_its_time(w: World) -> None:
    w.submit()
    fail_on(w, "m1", delay_s=86390)
    w.clock.advance(86390)
    w.tick()
    w.alive("m1", "m2")
    assert isinstance(w.ask(machine="m1"), Banned)
    w.clock.advance(11)
    w.tick()
    w.alive("m1", "m2")
    assert isinstance(w.ask(machine="m1"), Granted)


# -- renew ---------------------------------------------------------------------------------------------------------


def test_a_heartbeat_renews_the_lease_and_is_counted_when_asked_to(w: World) -> None:
    w.submit()
    token = w.claim()
    w.clock.advance(10)
    renewal = w.ledger.renew(token, Phase.RESTORING)
    assert (renewal.cancel, renewal.ledger_now, renewal.lease_s) == (False, START + 10, 30.0)
    assert w.score("running") == START + 40
    w.ledger.renew(token, Phase.EXECUTING, count=False)
    assert w.ledger.get("j1").num_heartbeats == 1


def test_a_heartbeat_without_news_leaves_the_progress_as_it_is(w: World) -> None:
    w.submit()
    token = w.claim()
    w.ledger.renew(token, Phase.EXECUTING, '{"progress":0.1}')
    w.ledger.renew(token, Phase.EXECUTING)
    progress = w.ledger.get("j1").progress
    assert progress is not None
    assert progress.progress == 0.1


def transfer(w: World) -> float | None:
    """How much of a transfer under way is done; None without one."""
    found = w.ledger.get("j1").transfer
    return found.done_bytes if found else None


def test_a_heartbeat_tells_of_the_transfer_under_way_until_it_is_over(w: World) -> None:
    w.submit()
    token = w.claim()
    w.ledger.renew(token, Phase.RESTORING, transfer='{"stage":"restore","done_bytes":5}')
    assert transfer(w) == 5
    w.ledger.renew(token, Phase.RESTORING, '{"progress":0.1}')
    assert transfer(w) == 5, "nothing new"
    w.ledger.renew(token, Phase.EXECUTING, transfer="{}")
    assert transfer(w) is None


@pytest.mark.parametrize("how", ["ended", "reaped"])
def test_a_transfer_ends_with_its_attempt(w: World, how: str) -> None:
    w.submit()
    token = w.start()
    w.ledger.renew(token, Phase.EXECUTING, transfer='{"stage":"commit","done_bytes":5}')
    if how == "ended":
        w.ledger.end_attempt(token, interruption())
    else:
        w.wait(31)
    assert w.field("j1", "transfer") is None
    w.redis.hset(keys.job(GROUP, "j1"), "transfer", '{"done_bytes":6}')  # left by a ledger that lost its last writes
    w.claim()
    assert transfer(w) is None


def test_a_heartbeat_tells_of_a_cancel(w: World) -> None:
    w.submit()
    token = w.claim()
    w.ledger.cancel("j1")
    assert w.ledger.renew(token, Phase.EXECUTING).cancel


@pytest.mark.parametrize("wrong", ["attempt", "nonce"])
def test_a_heartbeat_of_another_attempt_is_refused(w: World, wrong: str) -> None:
    w.submit()
    token = w.claim()
    fake = other(token) if wrong == "nonce" else FencingToken("j1", 2, token.nonce)
    with pytest.raises(LeaseLost, match="running"):
        w.ledger.renew(fake, Phase.EXECUTING)


def test_a_heartbeat_for_an_unknown_or_ended_job_is_refused(w: World) -> None:
    with pytest.raises(LeaseLost, match="unknown"):
        w.ledger.renew(FencingToken("nope", 1, "n"), Phase.EXECUTING)
    w.submit()
    token = w.start()
    w.ledger.end_attempt(token, completed())
    with pytest.raises(LeaseLost, match="completed"):
        w.ledger.renew(token, Phase.EXECUTING)


def test_a_late_renewal_before_the_reaper_came_holds_the_job(w: World) -> None:
    w.submit()
    token = w.start()
    w.clock.advance(100)
    w.ledger.renew(token, Phase.EXECUTING)
    assert w.tick().reaped == 0
    assert w.ledger.get("j1").num_interruptions == 0


def test_a_late_renewal_after_the_reaper_takes_the_interruption_back(w: World) -> None:
    w.submit()
    token = w.start()
    w.ledger.renew(token, Phase.EXECUTING)
    assert w.wait(31).reaped == 1
    assert w.ledger.get("j1").num_interruptions == 1
    w.ledger.renew(token, Phase.EXECUTING)
    record = w.ledger.get("j1")
    assert (record.status, record.phase, record.num_interruptions) == (Status.RUNNING, Phase.EXECUTING, 0)
    assert record.attempts[-1].model_dump(include={"n", "ended", "outcome", "reason", "message"}) == {
        "n": 1, "ended": None, "outcome": None, "reason": None, "message": None,
    }  # fmt: skip
    assert w.ask(machine="m2") == Refused("running"), "the reaper's message finds nothing to do"
    assert w.ledger.end_attempt(token, completed()) == "completed"


def test_a_late_renewal_takes_back_also_what_a_ban_has_put_aside(w: World) -> None:
    w.submit()
    w.alive("m1", "m2", "m3")
    fail_on(w, "m2")
    token = w.start(machine="m1")
    w.wait(31)
    w.alive("m3")
    assert isinstance(w.ask(machine="m2"), Banned)
    w.ledger.renew(token, Phase.EXECUTING)
    assert w.ledger.status_of("j1") is Status.RUNNING
    assert w.wait(10).promoted == 0


def test_a_late_renewal_after_another_claim_is_refused(w: World) -> None:
    w.submit()
    token = w.start(machine="m1")
    w.wait(31)
    w.claim(machine="m2")
    with pytest.raises(LeaseLost, match="running"):
        w.ledger.renew(token, Phase.EXECUTING)
    assert w.ledger.get("j1").num_interruptions == 1


def test_an_attempt_that_gave_its_job_back_cannot_renew_it(w: World) -> None:
    w.submit()
    token = w.start()
    w.ledger.end_attempt(token, interruption())
    with pytest.raises(LeaseLost, match="pending"):
        w.ledger.renew(token, Phase.EXECUTING)


def test_an_attempt_that_gave_its_job_back_cannot_renew_it_though_the_one_before_was_reaped(w: World) -> None:
    w.submit()
    w.start(machine="m1")
    w.wait(31)
    second = w.start(machine="m2")
    w.ledger.end_attempt(second, interruption())
    with pytest.raises(LeaseLost, match="pending"):
        w.ledger.renew(second, Phase.EXECUTING)


# -- commit --------------------------------------------------------------------------------------------------------


def test_a_commit_is_recorded_and_handed_to_the_next_attempt(w: World) -> None:
    w.submit()
    token = w.start()
    w.ledger.commit(token, [], {"n": 1})
    w.ledger.commit(token, [], {"n": 2})
    w.ledger.commit(token, [], {"n": 2})
    record = w.ledger.get("j1")
    assert (record.commit, record.num_commits) == ({"n": 2}, 2), "a repeat is one commit"
    w.ledger.end_attempt(token, interruption())
    answer = w.ask()
    assert isinstance(answer, Granted)
    assert answer.commit == '{"n":2}'


def test_a_commit_after_the_reaper_came_takes_the_job_back_when_nobody_claimed_it(w: World) -> None:
    w.submit()
    token = w.start()
    assert w.wait(31).reaped == 1
    w.ledger.commit(token, [], {"n": 1})
    record = w.ledger.get("j1")
    assert (record.status, record.num_interruptions, record.commit) == (Status.RUNNING, 0, {"n": 1})


def test_a_commit_of_a_stale_attempt_is_refused(w: World) -> None:
    w.submit()
    old = w.start(machine="m1")
    w.wait(31)
    new = w.start(machine="m2")
    for stale in (old, other(new), FencingToken("nope", 1, "n")):
        with pytest.raises(LeaseLost):
            w.ledger.commit(stale, [], {"n": 1})
    assert w.ledger.get("j1").commit is None


# -- the end of an attempt -----------------------------------------------------------------------------------------


def test_completion_ends_the_job_with_its_result(w: World) -> None:
    w.submit()
    token = w.start()
    w.clock.advance(5)
    facts = {"exit_code": 0, "bytes_up": 123456789012, "warm_up_s": 0.25}
    assert w.ledger.end_attempt(token, completed({"ok": True}, facts=facts)) == "completed"
    record = w.ledger.get("j1")
    assert (record.status, record.result, record.ended) == (Status.COMPLETED, {"ok": True}, START + 5)
    assert (record.completions, record.num_failures, record.phase) == (1, 0, None)
    [attempt] = record.attempts
    assert (attempt.outcome, attempt.exit_code, attempt.ended) == (Outcome.COMPLETED, 0, START + 5)
    assert (attempt.model_extra or {})["bytes_up"] == 123456789012
    assert (attempt.model_extra or {})["warm_up_s"] == 0.25


def test_a_failure_is_counted_and_tried_again_after_its_delay(w: World) -> None:
    w.submit()
    assert w.ledger.end_attempt(w.start(), failure(delay_s=7.5, facts={"exit_code": 3})) == "pending"
    record = w.ledger.get("j1")
    assert (record.status, record.num_failures, record.num_interruptions) == (Status.PENDING, 1, 0)
    assert (record.reason, record.message, record.not_before) == ("exit_code", "exit code 1", START + 7.5)
    assert record.attempts[0].exit_code == 3
    assert w.wait(7).promoted == 0
    assert w.wait(0.5).promoted == 1


def test_the_last_counted_failure_ends_the_job(w: World) -> None:
    w.submit(max_failures=3)
    for machine in ("m1", "m2"):
        assert w.ledger.end_attempt(w.start(machine=machine), failure()) == "pending"
    assert w.ledger.end_attempt(w.start(machine="m3"), failure(Reason.TIMEOUT, "too long")) == "failed"
    record = w.ledger.get("j1")
    assert (record.status, record.num_failures, record.reason, record.message) == (
        Status.FAILED, 3, "timeout", "too long",
    )  # fmt: skip
    assert [a.machine for a in record.attempts] == ["m1", "m2", "m3"]


def test_a_final_failure_ends_the_job_at_once(w: World) -> None:
    w.submit()
    assert w.ledger.end_attempt(w.start(), failure(Reason.TOTAL_TIMEOUT, final=True)) == "failed"
    assert w.ledger.get("j1").num_failures == 1


def test_interruptions_are_free(w: World) -> None:
    w.submit(max_failures=1)
    for n in range(1, 30):
        assert w.ledger.end_attempt(w.start(), interruption()) == "pending"
        record = w.ledger.get("j1")
        assert (record.num_interruptions, record.num_failures) == (n, 0)


def test_run_me_again_is_neither_failure_nor_interruption(w: World) -> None:
    w.submit()
    assert w.ledger.end_attempt(w.start(), again()) == "pending"
    record = w.ledger.get("j1")
    assert (record.num_failures, record.num_interruptions) == (0, 0)
    answer = w.ask()
    assert isinstance(answer, Granted)
    assert (answer.continues, answer.token.attempt) == (1, 2)


def test_an_interruption_bans_nobody(w: World) -> None:
    w.submit()
    w.alive("m1", "m2")
    w.ledger.end_attempt(w.start(machine="m1"), interruption())
    assert isinstance(w.ask(machine="m1"), Granted)


def test_a_cancel_wins_over_a_completion_that_comes_later(w: World) -> None:
    w.submit()
    token = w.start()
    assert w.ledger.cancel("j1", "changed my mind") == "canceling"
    assert w.ledger.end_attempt(token, completed()) == "cancel"
    assert w.ledger.status_of("j1") is Status.RUNNING, "refused, and nothing else"
    assert w.ledger.end_attempt(token, canceled()) == "canceled"
    record = w.ledger.get("j1")
    assert (record.status, record.message) == (Status.CANCELED, "changed my mind")


@pytest.mark.parametrize("ending", [failure(), interruption(), again()], ids=lambda e: str(e.outcome))
def test_a_canceled_job_does_not_go_on_however_its_attempt_ends(w: World, ending: Ending) -> None:
    w.submit()
    token = w.start()
    w.ledger.cancel("j1")
    assert w.ledger.end_attempt(token, ending) == "canceled"
    record = w.ledger.get("j1")
    assert (record.num_failures, record.num_interruptions) == (0, 0)


@pytest.mark.parametrize(
    ("ending", "status"),
    [(completed(), "completed"), (failure(), "pending"), (failure(final=True), "failed"), (interruption(), "pending"),
     (again(), "pending"), (canceled(), "canceled"), (failure(delay_s=9), "pending")],
    ids=["completed", "failure", "final", "interruption", "continue", "canceled", "delayed"],
)  # fmt: skip
def test_an_ending_whose_answer_was_lost_is_answered_the_same_and_takes_effect_once(
    w: World, ending: Ending, status: str
) -> None:
    w.submit()
    token = w.start()
    assert w.ledger.end_attempt(token, ending) == status
    before = w.ledger.get("j1")
    assert w.ledger.end_attempt(token, ending) == status
    assert w.ledger.get("j1") == before


def test_an_ending_is_not_repeated_once_the_job_has_moved_on(w: World) -> None:
    """Celery would store RETRY over what it was told since, and whoever waits for the result would wait for ever."""
    w.submit("a")
    first = w.start("a", machine="m1")
    w.ledger.end_attempt(first, interruption())
    second = w.start("a", machine="m2")
    with pytest.raises(LeaseLost):
        w.ledger.end_attempt(first, interruption())
    assert w.ledger.end_attempt(second, completed()) == "completed"
    w.submit("b")
    third = w.start("b")
    w.ledger.end_attempt(third, interruption())
    w.ledger.cancel("b")
    with pytest.raises(LeaseLost):
        w.ledger.end_attempt(third, interruption())


def test_an_ending_is_stale_for_another_number_another_nonce_and_after_another_claim(w: World) -> None:
    w.submit()
    old = w.start(machine="m1")
    w.wait(31)
    new = w.start(machine="m2")
    for stale in (old, other(new), FencingToken("j1", 7, new.nonce), FencingToken("nope", 1, "n")):
        for ending in (completed(), failure(), interruption(), canceled()):
            with pytest.raises(LeaseLost):
                w.ledger.end_attempt(stale, ending)
    assert w.ledger.end_attempt(new, completed()) == "completed"


@pytest.mark.parametrize(
    ("ending", "status", "interruptions"),
    [(completed(), "completed", 0), (failure(), "pending", 0), (interruption(), "pending", 1)],
    ids=["completed", "failure", "interruption"],
)
def test_an_ending_after_the_reaper_came_counts_when_nobody_claimed_the_job(
    w: World, ending: Ending, status: str, interruptions: int
) -> None:
    w.submit()
    token = w.start()
    assert w.wait(31).reaped == 1
    assert w.ledger.end_attempt(token, ending) == status
    assert w.ledger.end_attempt(token, ending) == status
    record = w.ledger.get("j1")
    assert (record.status, record.num_interruptions) == (Status(status), interruptions)
    assert [a.outcome for a in record.attempts] == [ending.outcome]


def test_words_that_utf8_cannot_hold_do_not_keep_an_attempt_from_ending(w: World) -> None:
    w.submit()
    bad = failure(message="cannot read 'caf\udce9.dat'", facts={"last_lines": ["\udce9", "ok"], "none": None})
    assert w.ledger.end_attempt(w.start(), bad) == "pending"
    attempt = w.ledger.get("j1").attempts[0]
    assert attempt.message == "cannot read 'caf?.dat'"
    assert (attempt.model_extra or {})["last_lines"] == ["?", "ok"]


def test_the_history_keeps_the_last_fifty_attempts(w: World) -> None:
    w.submit()
    w.ledger.watching = False
    for _ in range(55):
        w.ledger.end_attempt(w.start(), interruption())
    record = w.ledger.get("j1")
    assert [a.n for a in record.attempts] == list(range(6, 56))
    assert record.attempt == 55


# -- running time --------------------------------------------------------------------------------------------------


def ran_s(w: World) -> float:
    answer = w.ask()
    assert isinstance(answer, Granted)
    return answer.ran_s


def test_the_running_time_of_earlier_attempts_counts_from_each_start_of_the_command(w: World) -> None:
    w.submit()
    assert ran_s(w) == 0
    token = FencingToken("j1", 1, "nonce1")
    w.clock.advance(7)  # it restores
    w.ledger.renew(token, Phase.EXECUTING)
    w.clock.advance(10)
    w.ledger.end_attempt(token, interruption())
    w.clock.advance(100)
    second = w.start()
    w.clock.advance(5)
    w.ledger.end_attempt(second, interruption())
    w.ledger.end_attempt(w.claim(), interruption())
    assert ran_s(w) == 15


def test_a_silent_death_ran_until_its_last_heartbeat(w: World) -> None:
    w.submit()
    token = w.start()
    w.clock.advance(10)
    w.ledger.renew(token, Phase.EXECUTING)
    w.wait(31)
    assert ran_s(w) == 10


def test_the_running_time_of_an_attempt_that_has_its_job_back_counts_once(w: World) -> None:
    w.submit()
    token = w.start()
    w.clock.advance(10)
    w.ledger.renew(token, Phase.EXECUTING)
    w.wait(40)
    w.ledger.renew(token, Phase.EXECUTING)
    w.clock.advance(10)
    w.ledger.end_attempt(token, interruption())
    assert ran_s(w) == 60


def test_a_final_upload_is_no_running_time_however_the_attempt_ends(w: World) -> None:
    """Given a storage that is away, so that uploads last for hours: that must not use up a ``total_timeout``."""
    w.submit()
    token = w.start()
    w.clock.advance(10)
    w.ledger.renew(token, Phase.UPLOADING)
    w.clock.advance(20)
    w.ledger.renew(token, Phase.UPLOADING)
    w.ledger.end_attempt(token, interruption())
    assert ran_s(w) == 10
    token = FencingToken("j1", 2, "nonce2")
    w.ledger.renew(token, Phase.EXECUTING)
    w.clock.advance(5)
    w.ledger.renew(token, Phase.UPLOADING)
    w.clock.advance(20)
    w.ledger.renew(token, Phase.UPLOADING)
    w.wait(31)  # a silent death
    w.ledger.renew(token, Phase.UPLOADING)  # of which it comes back
    w.clock.advance(20)
    w.ledger.end_attempt(token, interruption())
    assert ran_s(w) == 15


def test_a_worker_that_dies_while_it_only_uploads_does_not_poison_its_job(w: World) -> None:
    w.submit()
    for _ in range(w.ledger.timings.poison_deaths + 1):
        w.ledger.renew(w.start(), Phase.UPLOADING)
        w.wait(31)
    assert w.ledger.get("j1").status is Status.PENDING


# -- publish -------------------------------------------------------------------------------------------------------


def test_a_job_given_back_is_published_by_its_attempt(w: World) -> None:
    w.submit()
    w.pop()
    token = w.start()
    w.ledger.end_attempt(token, interruption())
    assert w.messages() == []
    assert w.ledger.publish(token)
    assert w.pop() == ("j1", START)


def test_nothing_is_published_for_a_job_that_is_delayed_claimed_or_ended(w: World) -> None:
    w.submit()
    w.pop()
    token = w.start()
    assert not w.ledger.publish(token), "it runs"
    w.ledger.end_attempt(token, failure(delay_s=5))
    assert not w.ledger.publish(token), "it is delayed"
    w.wait(5)
    second = w.claim()
    w.ledger.end_attempt(second, interruption())
    assert not w.ledger.publish(token), "a later attempt gave it back"
    w.ledger.cancel("j1")
    assert not w.ledger.publish(second), "it has ended"
    assert not w.ledger.publish(FencingToken("nope", 1, "n"))


def test_a_job_that_was_canceled_before_celery_recorded_its_retry_is_told_of_again(w: World) -> None:
    w.submit()
    token = w.start()
    w.ledger.end_attempt(token, interruption())
    w.ledger.cancel("j1")
    assert w.ledger.celery_done("j1"), "REVOKED is stored, and RETRY follows it"
    assert not w.ledger.publish(token)
    assert not w.ledger.get("j1").celery_done
    assert w.tick().outbox == ("j1",)
    assert isinstance(w.ask(may_run=False), Ended)


def test_real_leases_run_by_the_servers_own_clock(real_redis: Redis) -> None:
    ledger = Ledger(real_redis, Timings(min_lease_s=0.05, tick_interval_s=0.0))
    w = World(real_redis)
    ledger.submit(w.new(heartbeat_s=0.01))
    answer = ledger.claim("j1", "n1", "m1", "w1", None, may_run=True)
    assert isinstance(answer, Granted)
    assert abs(answer.ledger_now - ledger.server_time()) < 5
    assert answer.lease_s == 0.05
    reaped = 0
    deadline = threading.Event()
    timer = threading.Timer(5, deadline.set)
    timer.start()
    while not reaped and not deadline.is_set():
        tick = ledger.tick(GROUP, uptime_s=1e9, saw_outage=False, fresh=False)
        reaped = tick.reaped if tick else 0
    timer.cancel()
    assert reaped == 1
    assert real_redis.zcard(keys.index(GROUP, "pending")) == 1
    assert ledger.uptime_s() >= 0


# -- a result that is yet to be reported ----------------------------------------------------------------------------


def test_a_result_that_could_not_be_reported_is_given_to_the_next_attempt(w: World) -> None:
    w.submit()
    token = w.claim(nonce="n1")
    w.ledger.renew(token, Phase.UPLOADING)
    w.ledger.finished(token, {"exit_code": 0})
    w.ledger.finished(token, {"exit_code": 0})
    assert w.ledger.get("j1").status is Status.RUNNING
    w.clock.advance(3600)
    w.tick()
    answer = w.ask(machine="m2")
    assert isinstance(answer, Granted)
    assert (answer.token.attempt, json.loads(answer.finished)) == (2, {"exit_code": 0})


def test_only_the_attempt_that_owns_the_job_keeps_a_result(w: World) -> None:
    w.submit()
    token = w.claim(nonce="n1")
    with pytest.raises(LeaseLost):
        w.ledger.finished(other(token), {"exit_code": 0})
    w.clock.advance(3600)
    w.tick()
    second = w.claim(machine="m2", nonce="n2")
    with pytest.raises(LeaseLost):
        w.ledger.finished(token, {"exit_code": 0})
    w.ledger.end_attempt(second, completed())
    with pytest.raises(LeaseLost):
        w.ledger.finished(second, {"exit_code": 0})


def test_an_attempt_that_was_reaped_and_finishes_has_its_job_back(w: World) -> None:
    w.submit()
    token = w.claim(nonce="n1")
    w.clock.advance(3600)
    w.tick()
    assert w.ledger.get("j1").status is Status.PENDING
    w.ledger.finished(token, {"exit_code": 0})
    assert w.ledger.get("j1").status is Status.RUNNING
    w.ledger.end_attempt(token, completed())
    assert w.ledger.get("j1").status is Status.COMPLETED
