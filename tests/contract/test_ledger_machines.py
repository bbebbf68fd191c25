"""The ledger's contract: what is known of machines, bans among four of them, and moves that a thousand typos cause."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

from dataclasses import replace

import pytest
from redis import Redis

from kelpie_celery.errors import LeaseLost
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.machines import MachineEntry
from kelpie_celery.ledger.types import Banned, Granted, WorkerSign
from kelpie_celery.lifecycle import Phase, Status
from tests.contract.ledger_cases import GROUP, World, again, canceled, completed, failure, interruption
from tests.contract.ledger_fixtures import any_redis, ledger_valkey, real_redis, w  # noqa: F401


def machine(w: World, name: str = "m1") -> MachineEntry:
    return next(entry for entry in w.ledger.machines(GROUP) if entry.machine == name)


def end(w: World, job_id: str, name: str, ending: object) -> None:
    w.ledger.end_attempt(w.start(job_id, name), ending)  # type: ignore[arg-type]


def sign(w: World, name: str, jobs: tuple[str, ...] = ()) -> None:
    w.ledger.pulse(GROUP, name, jobs, alive=True, sign=WorkerSign(f"{name}.x", f"w@{name}", f"i-{name}", 1))


# -- what each did ------------------------------------------------------------------------------------------------


def test_a_machine_is_told_with_what_it_did_and_when_it_was_last_heard_of(w: World) -> None:
    sign(w, "m1", ("x", "y"))
    endings = (completed(), completed(), failure(), interruption(), canceled(), again())
    for number, ending in enumerate(endings):
        w.submit(f"j{number}")
        end(w, f"j{number}", "m1", ending)
    found = machine(w)
    assert (found.completed, found.failures, found.interruptions, found.others) == (2, 1, 1, 2)
    assert (found.heard_at, found.workers, found.jobs, found.streak, found.bans) == (w.clock.now, 1, 2, 0, 1)
    w.clock.advance(w.ledger.timings.machine_alive_s + 1)
    assert (machine(w).workers, machine(w).jobs, machine(w).completed) == (0, 0, 2)


def test_a_silent_death_is_counted_and_taken_back_with_the_job(w: World) -> None:
    w.alive("m1")
    w.submit()
    token = w.start()
    w.wait(31)
    assert machine(w).interruptions == 1
    w.ledger.renew(token, Phase.EXECUTING)
    assert machine(w).interruptions == 0
    w.ledger.end_attempt(token, completed())
    assert (machine(w).completed, machine(w).interruptions) == (1, 0)


def test_an_ending_without_effect_counts_nothing(w: World) -> None:
    w.alive("m1", "m2")
    w.submit()
    stale = w.start(machine="m1")
    w.wait(31)
    w.ledger.end_attempt(w.start(machine="m2"), completed())
    with pytest.raises(LeaseLost):
        w.ledger.end_attempt(stale, completed())
    assert (machine(w, "m1").completed, machine(w, "m2").completed) == (0, 1)


def test_the_rates_of_transfers_are_means_over_all_attempts(w: World) -> None:
    w.alive("m1", "m2")
    for number, seconds in enumerate((2.0, 6.5)):
        facts = {"received_bytes": 1000, "received_s": 0.5, "sent_bytes": 3400, "sent_s": seconds}
        w.submit(f"j{number}")
        end(w, f"j{number}", "m1", replace(completed(), facts=facts))
    assert (machine(w).received_bytes_s, machine(w).sent_bytes_s) == (2000, 800)
    assert (machine(w, "m2").received_bytes_s, machine(w, "m2").sent_bytes_s) == (None, None)


def test_a_machine_is_forgotten_after_a_week_of_silence(w: World) -> None:
    w.alive("old")
    w.clock.advance(6 * 86400)
    w.alive("new")
    w.tick()
    assert {entry.machine for entry in w.ledger.machines(GROUP)} == {"old", "new"}
    w.clock.advance(86400 + 1)
    w.tick()
    assert {entry.machine for entry in w.ledger.machines(GROUP)} == {"new"}
    w.submit()
    end(w, "j1", "new", completed())
    assert 0 < int(w.redis.ttl(keys.machine(GROUP, "new"))) <= 604800


# -- bans ---------------------------------------------------------------------------------------------------------


def failed_on(w: World, job_id: str, *machines: str) -> None:
    """The job failed on these, and is due again."""
    w.submit(job_id, max_failures=9)
    for name in machines:
        end(w, job_id, name, failure())


def test_one_bad_machine_of_four_is_avoided(w: World) -> None:
    """Every job that failed on it is completed by one of the others, whoever asks first and how often."""
    w.ledger.watching = False
    names = ("bad", "m2", "m3", "m4")
    for number in range(12):
        w.submit(f"j{number:02}")
        end(w, f"j{number:02}", "bad", failure())
    ran: dict[str, list[str]] = {}
    for step in range(200):
        w.alive(*names)
        w.wait(1)
        for at in range(4):
            name = names[(step + at) % 4]  # each is the first to ask at times
            popped = w.pop()
            claim = w.ask(popped[0], name) if popped else None
            if popped and isinstance(claim, Granted):
                ran.setdefault(popped[0], []).append(name)
                w.ledger.end_attempt(claim.token, failure() if name == "bad" else completed())
    assert len(ran) == 12
    assert all(len(machines) == 1 and machines[0] != "bad" for machines in ran.values()), ran
    assert w.ledger.counts(GROUP).completed == 12
    assert machine(w, "bad").failures == 12
    assert machine(w, "bad").bans == 0, "what has ended is not banned any more"
    assert w.ledger.failing_machines(GROUP, 3) == {"bad": 12}


def test_a_group_in_which_every_machine_is_banned_goes_on_at_once_and_a_busy_one_after_the_yield(w: World) -> None:
    names = ("m1", "m2", "m3", "m4")
    w.alive(*names)
    failed_on(w, "everywhere", *names)
    assert isinstance(w.ask("everywhere", "m2"), Granted)
    failed_on(w, "j1", "m1", "m2", "m3")  # m4 lives, and is busy with something else for ever
    pauses = []
    while not isinstance(claim := w.ask("j1", "m1"), Granted):
        assert isinstance(claim, Banned)
        pauses.append(claim.pause_s)
        w.alive(*names)
        w.wait(claim.pause_s, step_s=min(claim.pause_s, 5))
    assert w.ledger.timings.ban_yield_s <= sum(pauses) < w.ledger.timings.ban_yield_s + 10
    assert pauses == sorted(pauses)


def test_bans_that_nobody_can_serve_cause_no_hot_loop(real_redis: Redis) -> None:
    """A machine that takes every message at once, and may have none of 50 jobs: one message a job and 5 s at most."""
    w = World(real_redis)
    w.ledger.watching = False
    for number in range(50):
        failed_on(w, f"j{number:02}", "m1")
    bounces = 0

    def take_all() -> None:
        nonlocal bounces
        while popped := w.pop():
            assert isinstance(w.ask(popped[0], "m1"), Banned)
            bounces += 1

    def seconds(count: int) -> int:
        nonlocal bounces
        bounces = 0
        for _ in range(count * 2):
            w.alive("m1", "m2")  # m2 is there, and busy
            w.clock.advance(0.5)
            w.tick(limit=10)
            w.tick(limit=100)
            take_all()
        return bounces

    first = seconds(30)
    assert first <= 50 * 12, "seven growing pauses, and then one every 5 s"
    steady = seconds(100)
    print(f"messages: {first} in the first 30 s, then {steady / 100:.1f} a second for 50 banned jobs")
    assert steady <= 50 * 100 / 5 + 50
    assert steady > 0, "they are still offered"


def test_a_machine_is_let_have_one_job_again_or_all_of_them(w: World) -> None:
    w.alive("m1", "m2")
    for number in range(3):
        failed_on(w, f"j{number}", "m1")
    assert machine(w).bans == 3
    assert w.ledger.unban(GROUP, "m1", "j0") == 1
    assert w.ledger.unban(GROUP, "m1", "j0") == 0
    assert isinstance(w.ask("j0", "m1"), Granted)
    assert isinstance(w.ask("j1", "m1"), Banned)
    w.wait(5)
    assert w.ledger.unban(GROUP, "m1") == 2
    assert machine(w).bans == 0
    assert isinstance(w.ask("j1", "m1"), Granted)
    assert isinstance(w.ask("j2", "m1"), Granted)


def test_more_bans_than_one_call_lifts_are_all_lifted(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kelpie_celery.ledger.machines.UNBANNED_AT_ONCE", 2)
    for number in range(5):
        failed_on(w, f"j{number}", "m1")
    assert w.ledger.unban(GROUP, "m1") == 5


def test_a_machine_that_is_let_have_jobs_again_begins_a_new_streak(w: World) -> None:
    for number in range(3):
        failed_on(w, f"j{number}", "m1")
        end(w, f"j{number}", "m2", completed())
    assert w.ledger.failing_machines(GROUP, 3) == {"m1": 3}
    assert w.ledger.unban(GROUP, "m1") == 0
    assert w.ledger.failing_machines(GROUP, 1) == {}


def test_what_failed_before_the_pardon_does_not_bring_the_streak_back(w: World) -> None:
    for number in range(3):
        failed_on(w, f"j{number}", "m1")
    assert w.ledger.unban(GROUP, "m1") == 3
    w.clock.advance(1)
    for number in range(3):
        end(w, f"j{number}", "m2", completed())
    assert w.ledger.failing_machines(GROUP, 1) == {}
    failed_on(w, "j3", "m1")
    end(w, "j3", "m2", completed())
    assert w.ledger.failing_machines(GROUP, 1) == {"m1": 1}, "what fails after it counts"


def test_bans_of_machines_that_are_unknown_or_over_are_none(w: World) -> None:
    w.alive("m1")
    assert w.ledger.unban(GROUP, "who", "what") == 0
    failed_on(w, "j1", "m1")
    w.clock.advance(w.ledger.timings.ban_ttl_s + 1)
    assert machine(w).bans == 0
    assert w.ledger.unban(GROUP, "m1") == 0


# -- moves --------------------------------------------------------------------------------------------------------


def ask_all(w: World, names: list[str], at_least: int = 3) -> int:
    """Every worker whose pulse tells it that its machine fails jobs asks for a move; how many get one."""
    unfit = [name for name in names if w.ledger.pulse(GROUP, name, [], alive=True).streak >= at_least]
    return sum(w.ledger.ask_to_move(GROUP, name, f"i-{name}", "fails", by="worker").granted for name in unfit)


def test_a_thousand_jobs_with_a_typo_move_nobody(real_redis: Redis) -> None:
    """They fail wherever they run: not a single machine is blamed for them."""
    w = World(real_redis)
    w.ledger.watching = False
    names = [f"m{n:02}" for n in range(20)]
    for number in range(1000):
        w.submit(f"j{number}", max_failures=3)
        for attempt in range(3):
            end(w, f"j{number}", names[(number + attempt * 7) % 20], failure())
    assert w.ledger.counts(GROUP).failed == 1000
    assert ask_all(w, names, at_least=1) == 0
    assert sum(entry.failures for entry in w.ledger.machines(GROUP)) == 3000
    assert sum(entry.bans for entry in w.ledger.machines(GROUP)) == 0


def test_a_thousand_jobs_that_fail_by_chance_move_a_tenth_of_the_fleet_an_hour_at_most(real_redis: Redis) -> None:
    """Each fails once, and completes elsewhere: whoever was unlucky is blamed, and the budget bounds what it costs."""
    w = World(real_redis)
    w.ledger.watching = False
    names = [f"m{n:02}" for n in range(30)]
    for name in names:
        sign(w, name)
    for number in range(1000):
        failed_on(w, f"j{number}", names[number % 15])
        end(w, f"j{number}", names[15 + number % 15], completed())
    assert len(w.ledger.failing_machines(GROUP, 3)) == 15
    assert sum(ask_all(w, names) for _ in range(10)) == 3
    assert len(w.ledger.decisions(GROUP)) == 3
    w.clock.advance(3601)
    for name in names:
        sign(w, name)
    assert sum(ask_all(w, names) for _ in range(10)) == 3


def test_a_job_that_ended_leaves_no_ban_behind(w: World) -> None:
    failed_on(w, "j1", "m1", "m2")
    w.ledger.cancel("j1")
    assert w.ledger.get("j1").status is Status.CANCELED
    assert not w.redis.exists(keys.bans(GROUP, "m1"), keys.bans(GROUP, "m2"))
