"""The ledger's contract: reap, amnesty, poison, promote, reconcile, retention; each bounded, none starved."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

from dataclasses import replace

import pytest

from kelpie_celery.ledger import keys
from kelpie_celery.ledger.types import FencingToken, GroupCounts
from kelpie_celery.lifecycle import TRANSITIONS, Outcome, Phase, Status
from tests.contract.ledger_cases import (
    GROUP,
    START,
    World,
    canceled,
    completed,
    failure,
    interruption,
)
from tests.contract.ledger_fixtures import SEEN, any_redis, ledger_valkey, w  # noqa: F401

DAY_S = 86400.0


def run_many(w: World, count: int, **given: float) -> list[FencingToken]:
    for n in range(count):
        w.submit(f"j{n:02}", **given)
    return [w.start(f"j{n:02}") for n in range(count)]


# -- reap ----------------------------------------------------------------------------------------------------------


def test_a_job_whose_lease_ran_out_goes_back_to_its_queue(w: World) -> None:
    w.submit()
    w.pop()
    w.start(machine="m1")
    assert w.wait(29.9).reaped == 0
    assert w.wait(0.2).reaped == 1
    record = w.ledger.get("j1")
    assert (record.status, record.num_interruptions, record.num_failures) == (Status.PENDING, 1, 0)
    [attempt] = record.attempts
    assert (attempt.outcome, attempt.reason) == (Outcome.INTERRUPTION, "lease_expired")
    assert "m1" in (attempt.message or "")
    assert w.pop() == ("j1", w.clock.now)
    assert w.ledger.counts(GROUP) == GroupCounts(pending=1)


def test_a_tick_names_who_was_lost_apart_from_whose_end_is_to_be_told(w: World) -> None:
    for job_id in ("lost", "canceled"):
        w.submit(job_id)
        w.start(job_id)
    w.ledger.cancel("canceled", "by the user")
    told = w.wait(31)
    assert (told.reaped, set(told.lost)) == (2, {"lost", "canceled"})
    assert "lost" not in told.outbox
    assert w.ledger.get("lost").status == "pending"
    assert w.ledger.get("canceled").status == "canceled"


def test_what_is_renewed_is_not_reaped(w: World) -> None:
    w.submit()
    token = w.start()
    for _ in range(20):
        w.wait(15)
        w.ledger.renew(token, Phase.EXECUTING)
    assert w.ledger.get("j1").num_interruptions == 0


def test_a_tick_does_a_bounded_amount_and_the_next_goes_on(w: World) -> None:
    run_many(w, 25)
    w.wait(29)
    w.clock.advance(2)
    assert [w.tick(limit=10).reaped for _ in range(4)] == [10, 10, 5, 0]


def test_a_restarted_server_reaps_nobody_for_one_lease(w: World) -> None:
    w.submit()
    token = w.start()
    w.wait(29)
    w.clock.advance(2)
    assert w.tick(uptime_s=3).reaped == 0
    w.clock.advance(26)
    assert w.tick(uptime_s=29).reaped == 0
    w.ledger.renew(token, Phase.EXECUTING)
    w.clock.advance(5)
    assert w.tick(uptime_s=34).reaped == 0
    assert w.wait(30).reaped == 1, "and then it is dead"


def test_an_outage_that_the_caller_saw_spares_everybody_for_one_lease(w: World) -> None:
    w.submit()
    w.start()
    w.tick()
    w.clock.advance(120)
    assert w.tick(saw_outage=True).reaped == 0
    assert w.wait(29.5).reaped == 0
    assert w.wait(0.6).reaped == 1


def test_the_first_tick_of_a_group_may_tell_of_an_outage(w: World) -> None:
    w.submit()
    w.start()
    w.clock.advance(120)
    assert w.tick(saw_outage=True).reaped == 0
    assert w.wait(29).reaped == 0


def test_an_outage_of_one_caller_alone_keeps_nobody_alive(w: World) -> None:
    """Given a large group, in which somebody always comes back from a network of his own that failed."""
    w.submit()
    w.start()
    reaped = 0
    for _ in range(12):
        w.clock.advance(2.9)
        w.tick()
        reaped += w.tick(saw_outage=True).reaped
    assert reaped + w.ledger.get("j1").num_interruptions >= 1


def test_a_clock_that_was_put_back_and_a_caller_that_noticed_spare_everybody(w: World) -> None:
    w.submit()
    token = w.start()
    w.tick()
    w.clock.advance(-90)
    assert w.tick(saw_outage=True).reaped == 0
    w.ledger.renew(token, Phase.EXECUTING)
    assert w.wait(29).reaped == 0
    assert w.wait(2).reaped == 1


def test_an_unusual_silence_is_an_outage_to_who_was_here_before_noticed_or_not(w: World) -> None:
    """A tick that was under way when the server froze knows of no outage."""
    w.submit()
    token = w.start()
    w.wait(10, step_s=1)
    w.clock.advance(120)
    assert w.tick().reaped == 0
    assert w.wait(29).reaped == 0
    w.ledger.renew(token, Phase.EXECUTING)
    assert w.wait(29).reaped == 0
    assert w.wait(2).reaped == 1


def test_who_saw_the_outage_is_heard_also_after_one_who_did_not(w: World) -> None:
    w.submit()
    w.start()
    w.wait(10, step_s=1)
    w.clock.advance(120)
    w.tick(fresh=True)
    w.clock.advance(1)
    w.tick(saw_outage=True)
    assert w.wait(29).reaped == 0
    assert w.wait(2).reaped == 1


def test_a_caller_that_has_just_started_gives_live_holders_a_moment(w: World) -> None:
    w.submit()
    w.start()
    w.tick()
    w.clock.advance(40)
    assert w.tick(fresh=True).reaped == 0
    assert w.wait(9.5).reaped == 0
    assert w.wait(1).reaped == 1


def test_a_caller_that_has_just_started_finds_nothing_unusual_where_others_looked(w: World) -> None:
    w.submit()
    w.start()
    w.wait(25)
    w.clock.advance(6)
    assert w.tick(fresh=True).reaped == 1


def test_a_group_that_is_looked_after_rarely_is_reaped_all_the_same(w: World) -> None:
    w.submit()
    w.start()
    w.tick()
    assert w.wait(180, step_s=60).reaped == 1


def test_those_who_are_spared_do_not_stand_before_others(w: World) -> None:
    """Given ten dead jobs with leases of two hours before one with a short lease, just after a restart."""
    run_many(w, 10, heartbeat_s=3600)
    w.wait(7190, step_s=600)
    w.submit("short")
    w.start("short")
    reaped_at = [up_s for up_s in range(1, 40) if w.wait(1, uptime_s=up_s).reaped]
    assert reaped_at == [30]
    assert w.ledger.get("short").num_interruptions == 1


def test_ticks_that_come_too_soon_do_nothing(w: World) -> None:
    w.ledger.timings = replace(w.ledger.timings, tick_interval_s=1.0)
    common = {"uptime_s": 1e9, "saw_outage": False, "fresh": False}
    assert w.ledger.tick(GROUP, **common) is not None  # type: ignore[arg-type]
    assert w.ledger.tick(GROUP, **common) is None  # type: ignore[arg-type]
    assert w.ledger.tick("other", **common) is not None  # type: ignore[arg-type]
    w.clock.advance(1.0)
    assert w.ledger.tick(GROUP, **common) is not None  # type: ignore[arg-type]


def test_many_small_ticks_do_not_keep_out_a_large_one(w: World) -> None:
    w.ledger.timings = replace(w.ledger.timings, tick_interval_s=1.0)
    w.tick(limit=10)
    assert w.tick(limit=100).reaped == 0


def test_a_record_that_somebody_deleted_does_not_stop_the_maintenance_of_others(w: World) -> None:
    w.ledger.watching = False
    for job_id in ("running", "delayed", "pending", "good"):
        w.submit(job_id, delay_s=5.0 if job_id == "delayed" else 0.0)
    for job_id in ("running", "good"):
        w.start(job_id)
    for job_id in ("running", "delayed", "pending"):
        w.redis.delete(keys.job(GROUP, job_id))
    w.redis.delete(keys.queue_list(GROUP, 4))
    assert w.wait(31).reaped == 1
    assert w.ledger.status_of("good") is Status.PENDING
    for index in ("running", "delayed", "published:4"):
        assert {"running", "delayed", "pending"}.isdisjoint(w.ledger.ids(GROUP, index, 0, -1))


# -- poison --------------------------------------------------------------------------------------------------------


def die(w: World, machine: str = "m1", *, after_s: float = 0.0, commits: bool = False) -> Status | None:
    """One attempt that ends without a goodbye."""
    token = w.start(machine=machine)
    while after_s > 0:
        w.wait(min(after_s, 15))
        w.ledger.renew(token, Phase.EXECUTING)
        after_s -= 15
    if commits:
        w.ledger.commit(token, [], {"n": token.attempt})
    w.wait(31)
    return w.ledger.status_of("j1")


def test_ten_silent_deaths_in_a_row_end_a_job_as_poisoned(w: World) -> None:
    w.submit()
    w.alive("m1")
    assert [die(w) for _ in range(9)] == [Status.PENDING] * 9
    assert die(w) is Status.FAILED
    record = w.ledger.get("j1")
    assert (record.reason, record.num_interruptions, record.num_failures) == ("poisoned", 10, 0)
    assert "10 times in a row" in (record.message or "")


@pytest.mark.parametrize("machines", [2, 3])
def test_where_there_are_several_machines_each_counts_its_share_only(w: World, machines: int) -> None:
    w.submit()
    for n in range(machines):
        w.alive(f"m{n}")
    for _ in range(12):
        assert die(w, "m0") is Status.PENDING, "one bad machine does not condemn a job"
    others = 5 if machines == 2 else 6
    results = [die(w, f"m{1 + n % (machines - 1)}") for n in range(others)]
    assert results == [Status.PENDING] * (others - 1) + [Status.FAILED]


def test_where_there_are_ten_machines_it_takes_ten(w: World) -> None:
    w.submit()
    w.alive(*(f"m{n}" for n in range(40)))
    for n in range(18):
        assert die(w, f"m{n % 9}") is Status.PENDING
    assert die(w, "m9") is Status.FAILED


def test_deaths_of_one_machine_are_remembered_up_to_a_bound(w: World) -> None:
    w.ledger.timings = replace(w.ledger.timings, poison_deaths=3)
    w.submit()
    w.alive("m0", "m1", "m2")
    for _ in range(8):
        die(w, "m0")
    assert w.field("j1", "deaths") == '["m0","m0","m0"]'


def test_a_new_commit_begins_the_row_anew(w: World) -> None:
    w.submit()
    w.alive("m1")
    for _ in range(9):
        die(w)
    assert die(w, commits=True) is Status.PENDING
    assert [die(w) for _ in range(10)] == [Status.PENDING] * 9 + [Status.FAILED]


def test_a_goodbye_begins_the_row_anew(w: World) -> None:
    w.submit()
    w.alive("m1")
    for _ in range(9):
        die(w)
    w.ledger.end_attempt(w.start(), interruption())
    assert die(w) is Status.PENDING


def test_a_death_long_after_the_start_begins_the_row_anew(w: World) -> None:
    w.submit()
    w.alive("m1")
    for _ in range(9):
        die(w)
    assert die(w, after_s=615) is Status.PENDING
    assert die(w) is Status.PENDING


def test_a_death_before_the_command_started_does_not_count(w: World) -> None:
    w.submit()
    w.ledger.end_attempt(w.start(), interruption())
    for _ in range(15):
        w.claim()
        w.wait(31)
    assert w.ledger.status_of("j1") is Status.PENDING


# -- reconcile -----------------------------------------------------------------------------------------------------


def test_a_lost_message_is_published_again_once_a_newer_one_was_received(w: World) -> None:
    w.submit("lost")
    w.pop()
    w.clock.advance(3)
    w.submit("newer")
    w.submit("waiting")
    got = w.pop()
    assert got == ("newer", START + 3)
    assert w.tick().republished == 0, "nothing proves a loss yet"
    w.ask("newer", received_at=got[1])
    assert w.tick().republished == 1
    assert w.tick().republished == 0, "once"
    assert [m.split('"')[5].split(".")[2] for m in w.messages()] == ["waiting", "lost"]


def test_messages_that_are_about_as_old_as_the_newest_received_may_still_be_on_their_way(w: World) -> None:
    w.submit("first")
    w.clock.advance(1.5)
    w.submit("second")
    w.submit("third")
    w.pop()
    second = w.pop()
    assert second is not None
    w.ask("second", received_at=second[1])
    assert w.tick().republished == 0


def test_an_empty_list_proves_the_loss_of_what_is_old_enough(w: World) -> None:
    w.submit()
    w.pop()
    assert w.wait(4.9).republished == 0
    assert w.wait(0.2).republished == 1
    assert w.pop() == ("j1", w.clock.now)


def test_a_watermark_of_one_priority_proves_nothing_for_another(w: World) -> None:
    w.submit("low", priority=9)
    w.clock.advance(30)
    w.submit("high", priority=0)
    w.ask("high", received_at=w.clock.now)
    assert w.tick().republished == 0
    w.pop(priority=9)
    assert w.tick().republished == 1
    assert w.pop(priority=9) is not None


def test_a_job_that_was_given_back_but_never_published_is_found(w: World) -> None:
    """Given a worker that was killed between giving its job back and publishing it."""
    w.submit()
    w.pop()
    w.ledger.end_attempt(w.start(), interruption())
    assert w.wait(5.1).republished == 1
    assert w.pop() is not None


def test_a_deleted_queue_is_published_again_as_a_whole_a_bounded_piece_at_a_time(w: World) -> None:
    w.ledger.submit_many([w.new(f"j{n}", priority=n % 3) for n in range(60)])
    for priority in range(3):
        w.redis.delete(keys.queue_list(GROUP, priority))
    w.clock.advance(6)
    done: list[int] = []
    while sum(done) < 60:
        done.append(w.tick(limit=10).republished)
        w.clock.advance(0.01)
        assert 0 < done[-1] <= 20
        for priority in range(3):  # workers are quick
            while w.pop(priority):
                pass
    assert sum(done) == 60


def test_a_clock_that_was_put_back_does_not_have_everything_published_again(w: World) -> None:
    w.submit("old")
    got = w.pop()
    assert got is not None
    w.claim("old")
    w.ask("old", received_at=got[1])
    w.clock.advance(-3600)
    w.ledger.submit_many([w.new(f"j{n}") for n in range(20)])
    assert w.wait(60, step_s=1).republished == 0


# -- retention -----------------------------------------------------------------------------------------------------


def test_ended_jobs_go_after_retention_and_leave_nothing(w: World) -> None:
    w.submit("a", idempotency_key="k")
    w.submit("b")
    w.submit("c")
    w.ledger.end_attempt(w.start("a"), completed())
    w.ledger.end_attempt(w.start("b"), failure(final=True))
    w.ledger.cancel("c")
    for job_id in "abc":
        w.ledger.celery_done(job_id)
    w.clock.advance(30 * DAY_S - 1)
    assert w.tick().expired == 0
    w.clock.advance(2)
    assert [w.tick(limit=2).expired for _ in range(3)] == [2, 1, 0]
    assert w.ledger.counts(GROUP) == GroupCounts()
    assert w.ledger.get_many(list("abc")) == []
    assert w.submit("a2", idempotency_key="k").what == "created", "the key is free again"
    left = {key if isinstance(key, str) else key.decode() for key in w.redis.keys("kelpie:*")}
    assert not {key for key in left if key.endswith((":a", ":b", ":c"))}


def test_an_expired_job_does_not_take_a_key_with_it_that_belongs_to_another(w: World) -> None:
    w.submit("a", idempotency_key="k")
    w.ledger.end_attempt(w.start("a"), completed())
    [idem] = list(w.redis.scan_iter(f"kelpie:g:{GROUP}:idem:*"))
    w.redis.set(idem, "b")
    w.clock.advance(31 * DAY_S)
    assert w.tick().expired == 1
    assert w.redis.get(idem) in ("b", b"b")


# -- the table -----------------------------------------------------------------------------------------------------


def test_the_ledger_makes_every_transition_of_the_table_and_no_other(w: World) -> None:
    edges = w.ledger.edges = set()
    w.ledger.draft("d1", GROUP, "{}")
    w.ledger.cancel("d1")
    w.ledger.draft("d2", GROUP, "{}")
    w.submit("d2", definition="")
    for job_id, ending in (("c", completed()), ("f", failure(final=True)), ("x", canceled()), ("p", interruption())):
        w.submit(job_id)
        w.ledger.end_attempt(w.start(job_id), ending)
    w.ledger.cancel("p")
    table = {(str(before), str(after)) for before, follow in TRANSITIONS.items() for after in follow}
    created = {("", "draft"), ("", "pending")}
    assert edges == table | created


def test_all_that_was_seen_in_these_suites_is_in_the_table() -> None:
    table = {(str(before), str(after)) for before, follow in TRANSITIONS.items() for after in follow}
    gone = {(str(status), "") for status in Status if status.ended}
    assert table | gone | {("", "draft"), ("", "pending")} >= SEEN
