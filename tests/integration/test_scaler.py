"""The scaler on a real Redis and a stub of SaladCloud: what it does, in which order, and what it keeps of it."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from kelpie_celery.app import KelpieApp
from kelpie_celery.celery import create_app
from kelpie_celery.clock import ManualClock
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.rules import Rules
from kelpie_celery.ledger.types import Granted, WorkerSign
from kelpie_celery.scaling.facts import FleetFacts, Memory, QueueFacts, WorkerFacts
from kelpie_celery.scaling.rule import ScalingRule
from kelpie_celery.settings import load_settings
from kelpie_scaler import tasks
from kelpie_scaler.decision import LOOK_AGAIN_S, Action, Decision
from kelpie_scaler.scale import MISSING_LOOKS, Scaler, client_of, in_a_while
from kelpie_scaler.turn import EXPIRES_S, Turn
from tests.harness.http_stub import Asked, Reply
from tests.harness.salad_stub import GROUP_ID, KEY, NAME, ORGANIZATION, PROJECT, SaladStub, group_body, problem
from tests.harness.waiting import eventually

P = f"/organizations/{ORGANIZATION}/projects/{PROJECT}/containers"


class Brain:
    """Decides as it is told, and remembers what it was asked; nothing when it was told nothing."""

    def __init__(self) -> None:
        self.told: list[tuple[Action, int, int]] = []
        self.asked: list[tuple[WorkerFacts, FleetFacts, Memory]] = []

    def next(self, action: Action, replicas: int = 0, drain: int = 0) -> None:
        self.told.append((action, replicas, drain))

    def __call__(
        self,
        queue: QueueFacts,
        workers: WorkerFacts,
        fleet: FleetFacts,
        rule: ScalingRule,
        memory: Memory,
        now_s: float,
    ) -> Decision:
        self.asked.append((workers, fleet, memory))
        action, replicas, drain = self.told.pop(0) if self.told else (Action.NOTHING, fleet.replicas, 0)
        return Decision(action, replicas, drain, (f"told to {action.value}",), Memory(last_scale_out_s=now_s))


class World:
    """One control worker's scaler, and what a test does around it."""

    def __init__(self, stub: SaladStub, redis_url: str) -> None:
        self.stub, self._redis_url = stub, redis_url
        self.brain = Brain()
        self.clock = ManualClock()
        self.apps: list[KelpieApp] = []
        self.app = self.new_app()
        self.ledger = self.app.ledger
        self.ledger.timings = replace(self.ledger.timings, shrink_takes_s=0.0)
        self.rules = Rules(self.ledger.redis)
        self.rules.put(ScalingRule(container_group_id=GROUP_ID))
        self.scalers: list[Scaler] = []
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.scaler = self.new_scaler()

    def new_app(self, **env: str) -> KelpieApp:
        named = {"SALAD_ORGANIZATION_NAME": ORGANIZATION, "SALAD_PROJECT": PROJECT, "SALAD_API_KEY": KEY}
        urls = {"KELPIE_REDIS_URL": self._redis_url, "KELPIE_SALAD_API_URL": self.stub.url}
        app = create_app(load_settings(urls | named | env))
        self.apps.append(app)
        return app

    def new_scaler(self, app: KelpieApp | None = None) -> Scaler:
        later = lambda delay_s, act: self.later.append((delay_s, act))  # noqa: E731
        made = Scaler(app or self.app, decide=self.brain, clock=self.clock, later=later)
        self.scalers.append(made)
        return made

    def tick(self, **kind: float) -> None:
        self.scaler.tick(**kind)

    def close(self) -> None:
        for scaler in self.scalers:
            scaler.close()
        for app in self.apps:
            app.ledger.redis.close()
            app.close()

    def calls(self) -> list[str]:
        """Every request but the look-up of the name."""
        return [c.replace(P, "P").replace(NAME, "G") for c in self.stub.calls() if not c.endswith("/containers")]

    def last(self) -> dict[str, Any]:
        return self.ledger.decisions(GROUP_ID)[0]

    def seen_as(self, **more: Any) -> None:
        self.stub.groups[NAME] = group_body(**more)

    def worker(self, name: str, *jobs: str, settled: bool = False) -> bool:
        sign = WorkerSign(name, name, f"i-{name}", 1, settled)
        return self.ledger.pulse(GROUP_ID, f"m-{name}", jobs, alive=True, sign=sign).draining

    def drained(self, *names: str) -> None:
        for name in names:
            self.worker(name)
        self.ledger.drain(GROUP_ID, len(names))
        for name in names:
            self.worker(name, settled=True)

    def submit(self) -> str:
        definition = {"command": "true", "container_group_id": GROUP_ID, "sync": {}}
        return str(self.app.tasks["kelpie.run_job"].delay(definition).id)

    def claim(self, job_id: str, worker: str) -> bool:
        answer = self.ledger.claim(job_id, job_id + worker, worker, worker, None, may_run=True, holder=worker)
        return isinstance(answer, Granted)


@pytest.fixture
def stub() -> Iterator[SaladStub]:
    with SaladStub() as stub:
        yield stub


@pytest.fixture
def world(stub: SaladStub, redis_url: str) -> Iterator[World]:
    world = World(stub, redis_url)
    yield world
    world.close()


# -- what is done, and in which order -----------------------------------------------------------------------------


def test_the_count_is_set_before_a_start(world: World) -> None:
    """Kelpie's defect 12: it started first, so that the old count came up."""
    world.brain.next(Action.START, 4)
    world.tick()
    assert world.calls() == ["GET P/G", "PATCH P/G", "POST P/G/start"]
    assert world.stub.groups[NAME]["replicas"] == 4
    assert world.last()["action"] == "start"
    assert world.ledger.memory(GROUP_ID).last_scale_out_s is not None


def test_a_start_with_the_right_count_patches_nothing(world: World) -> None:
    world.seen_as(replicas=4)
    world.brain.next(Action.START, 4)
    world.tick()
    assert world.calls() == ["GET P/G", "POST P/G/start"]


def test_a_group_that_deploys_is_stopped(world: World) -> None:
    """Kelpie's defect 12: it stopped running groups only, so that one without a free node was paid for later."""
    world.seen_as(status="deploying", replicas=4, allocating=4)
    world.brain.next(Action.STOP)
    world.tick()
    assert world.calls() == ["GET P/G", "POST P/G/stop"]


def test_nothing_is_sent_when_nothing_is_to_do(world: World) -> None:
    world.tick()
    world.tick()
    assert world.calls() == ["GET P/G", "GET P/G"]
    [entry] = world.ledger.decisions(GROUP_ID)
    assert (entry["action"], entry["count"]) == ("nothing", 2)


def test_the_name_is_looked_up_once(world: World) -> None:
    for _ in range(3):
        world.tick()
    assert sum(call.endswith("/containers") for call in world.stub.calls()) == 1


def test_drains_follow_the_decision(world: World) -> None:
    world.seen_as(status="running", replicas=2, running=2)
    for name in "ab":
        world.worker(name)
    world.brain.next(Action.DRAIN, 2, drain=1)
    world.tick()
    assert [world.worker(name, settled=True) for name in "ab"].count(True) == 1
    world.brain.next(Action.UNDRAIN, 2, drain=0)
    world.tick()
    assert world.brain.asked[-1][0] == WorkerFacts(2, 2, 0, 1, 0)
    assert [world.worker(name) for name in "ab"] == [False, False]


def test_after_a_drain_the_group_is_looked_at_again_soon(world: World) -> None:
    """Else its idle nodes would be paid for a whole interval more."""
    world.tick()
    assert world.later == []
    world.brain.next(Action.DRAIN, 2, drain=1)
    world.tick()
    [(delay_s, look_again)] = world.later
    assert delay_s == LOOK_AGAIN_S
    before = decided_times(world, GROUP_ID)
    look_again()
    eventually("it is decided once more", lambda: decided_times(world, GROUP_ID) == before + 1)
    assert len(world.later) == 1


@pytest.mark.parametrize("how", ["paused", "deleted", "closed"])
def test_a_group_is_not_looked_at_again_when_nothing_scales_it_any_more(world: World, how: str) -> None:
    world.brain.next(Action.DRAIN, 2, drain=1)
    world.tick()
    asked = len(world.stub.calls())
    {
        "paused": lambda: world.rules.pause(GROUP_ID),
        "deleted": lambda: world.rules.delete(GROUP_ID),
        "closed": world.scaler.close,
    }[how]()
    [(_, look_again)] = world.later
    look_again()
    world.scaler.close()
    assert len(world.stub.calls()) == asked


def test_where_ticks_are_as_frequent_no_look_is_added(world: World) -> None:
    world.brain.next(Action.DRAIN, 2, drain=1)
    world.new_scaler(world.new_app(KELPIE_SCALE_INTERVAL_S=f"{LOOK_AGAIN_S:g}")).tick()
    assert world.later == []


def test_what_is_to_be_done_later_is_done_by_a_thread_that_keeps_no_process_alive() -> None:
    done = threading.Event()
    threads: list[threading.Thread] = []

    def act() -> None:
        threads.append(threading.current_thread())
        done.set()

    in_a_while(0.0, act)
    assert done.wait(30)
    assert threads[0].daemon


def test_drained_workers_are_given_up_before_the_count_is_lowered(world: World) -> None:
    world.seen_as(status="running", replicas=3, running=3)
    world.drained("a", "b")
    world.worker("c")
    seen: list[bool] = []

    def look(asked: Asked) -> None:
        if asked.method == "PATCH":
            seen.append(bool(world.ledger.redis.hexists(keys.worker(GROUP_ID, "a"), "condemned")))

    world.stub.on_request = look
    world.brain.next(Action.SET_REPLICAS, 1, drain=2)
    world.tick()
    assert seen == [True]
    assert world.calls() == ["GET P/G", "PATCH P/G"]
    job = world.submit()
    assert not world.claim(job, "a"), "it is about to be removed"
    assert world.claim(job, "c")


def test_those_that_are_given_up_are_out_of_the_next_decision_and_are_not_taken_back_by_it(world: World) -> None:
    world.seen_as(status="running", replicas=2, running=2)
    world.drained("a", "b")
    world.brain.next(Action.SET_REPLICAS, 1, drain=2)
    world.tick()
    # SaladCloud has lowered the count, and not removed anything yet.
    world.brain.next(Action.UNDRAIN, 1, drain=0)
    world.tick()
    assert world.brain.asked[-1][0] == WorkerFacts(1, 1, 0, 1, 0)
    assert [world.worker(name, settled=True) for name in "ab"].count(True) == 1
    # It removed an instance that did not run yet instead: whoever was given up was spared.
    world.seen_as(status="running", replicas=1, running=1)
    world.tick()
    assert [world.worker(name) for name in "ab"] == [False, False]


def test_a_count_is_not_lowered_where_a_worker_that_may_claim_would_have_to_go(world: World) -> None:
    world.seen_as(status="running", replicas=3, running=3)
    world.drained("a")
    world.worker("b")
    world.worker("c")
    world.brain.next(Action.SET_REPLICAS, 1, drain=2)
    world.tick()
    assert world.calls() == ["GET P/G"]
    assert "not lowered" in world.last()["reasons"][-1]
    assert world.ledger.memory(GROUP_ID) == Memory()


def test_a_count_is_not_lowered_while_saladcloud_may_take_a_busy_worker_for_a_drained_one(world: World) -> None:
    world.seen_as(status="running", replicas=2, running=2)
    world.drained("a")
    sign = WorkerSign("b", "b", "i-b", 1, untold=True)
    world.ledger.pulse(GROUP_ID, "m-b", ("j",), alive=True, sign=sign)
    world.brain.next(Action.SET_REPLICAS, 1, drain=1)
    world.tick()
    assert world.calls() == ["GET P/G"]
    assert "not lowered: SaladCloud could not be told" in world.last()["reasons"][-1]
    assert world.ledger.memory(GROUP_ID) == Memory(), "no cooldown begins"
    world.worker("b", "j")
    world.brain.next(Action.SET_REPLICAS, 1, drain=1)
    world.tick()
    assert world.calls()[-1] == "PATCH P/G"


@pytest.mark.parametrize("others", [{"allocating": 1, "creating": 1}, {"running": 3}])
def test_instances_without_a_worker_may_go(world: World, others: dict[str, int]) -> None:
    world.seen_as(**{"status": "running", "replicas": 3, "running": 1, **others})
    world.worker("a")
    world.brain.next(Action.SET_REPLICAS, 1)
    world.tick()
    assert world.calls()[:2] == ["GET P/G", "PATCH P/G"]


def test_a_silent_instance_that_runs_may_not_go_while_another_one_has_a_job(world: World) -> None:
    world.seen_as(status="running", replicas=2, running=2)
    world.worker("a", "j")
    world.brain.next(Action.SET_REPLICAS, 1)
    world.tick()
    assert "PATCH P/G" not in world.calls()


def test_a_group_is_not_stopped_when_a_worker_claimed_since_the_look(world: World) -> None:
    world.seen_as(status="running", replicas=1, running=1)
    job = world.submit()
    world.worker("late")
    assert world.claim(job, "late")
    world.brain.next(Action.STOP)
    world.tick()
    assert world.calls() == ["GET P/G"]
    assert "not stopped" in world.last()["reasons"][-1]
    assert not world.worker("late"), "the group is open still"
    assert world.ledger.memory(GROUP_ID) == Memory()


def test_a_worker_that_comes_up_after_the_stop_claims_nothing_until_the_group_is_started(world: World) -> None:
    world.seen_as(status="running", replicas=1, running=1)
    world.drained("a")
    world.brain.next(Action.STOP)
    world.tick()
    job = world.submit()
    world.worker("late")
    assert not world.claim(job, "late")
    world.brain.next(Action.START, 1)
    world.tick()
    assert not world.claim(job, "a"), "it goes with the stop, however late"
    assert world.claim(job, "late")


# -- what is refused ----------------------------------------------------------------------------------------------


def test_after_a_400_the_group_is_looked_at_again_and_decided_anew(world: World) -> None:
    world.brain.next(Action.START, 1)
    world.brain.next(Action.SET_REPLICAS, 2)
    world.stub.next_time("start", problem(400, "it is deploying already"))
    world.tick()
    assert world.calls() == ["GET P/G", "PATCH P/G", "POST P/G/start", "GET P/G", "PATCH P/G"]
    assert world.last()["action"] == "set_replicas"
    assert "it is deploying already" in " ".join(world.last()["reasons"])


def test_what_was_refused_is_not_sent_again_in_the_same_look(world: World) -> None:
    for _ in range(2):
        world.brain.next(Action.STOP)
    world.seen_as(status="running", replicas=1)
    world.stub.next_time("stop", problem(400, "no"))
    world.tick()
    assert world.calls() == ["GET P/G", "POST P/G/stop", "GET P/G"]
    assert world.ledger.memory(GROUP_ID) == Memory(), "no cooldown for what was not done"


def stopped_already(world: World, *answers: Reply) -> None:
    """The first stop is carried out; whatever is answered is said of it and of the next ones."""

    def carry_out(asked: Asked) -> None:
        if asked.path.endswith("/stop"):
            world.seen_as(status="stopped", replicas=1, stopping=1)

    world.stub.on_request = carry_out
    world.stub.next_time("stop", *answers)


def test_a_stop_whose_answer_was_lost_counts_as_done_and_nobody_claims_on_a_node_that_goes(world: World) -> None:
    world.seen_as(status="running", replicas=1, running=1)
    world.drained("a")
    stopped_already(world, Reply(cut=True), problem(400, "it is stopped"))
    world.brain.next(Action.STOP)
    world.tick()
    assert world.last()["action"] == "stop"
    assert "looked again: it is stopped" in world.last()["reasons"][-1]
    assert world.ledger.memory(GROUP_ID) != Memory()
    job = world.submit()
    world.worker("late")
    assert not world.claim(job, "a")
    assert not world.claim(job, "late"), "its node goes too, only later"


@pytest.mark.parametrize("carried_out", [True, False])
def test_a_stop_of_which_nobody_knows_whether_it_was_carried_out_is_cleared_up_by_the_next_look(
    world: World, carried_out: bool
) -> None:
    """Else workers that live on would claim nothing for ten minutes, though there may be work."""
    world.seen_as(status="running", replicas=1, running=1)
    world.drained("a")
    answers = [Reply(cut=True)] * 4
    stopped_already(world, *answers) if carried_out else world.stub.next_time("stop", *answers)
    world.brain.next(Action.STOP)
    world.tick()
    assert world.last()["kind"] == "error"
    job = world.submit()
    assert not world.claim(job, "a")
    for _ in range(2):
        world.tick()
    assert world.claim(job, "a") is not carried_out


def test_a_quota_is_told_as_the_reason(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.brain.next(Action.START, 400)
    world.stub.next_time(NAME, Reply(200, group_body()), problem(403, "Replica quota of 100 exceeded"))
    world.tick()
    assert world.last()["reasons"] == ["told to start", "SaladCloud refused to start: Replica quota of 100 exceeded"]
    assert world.ledger.memory(GROUP_ID) == Memory()
    assert any("quotas" in record.message for record in caplog.records)


@pytest.mark.parametrize("status", [400, 403])
def test_workers_that_were_given_up_for_what_was_refused_work_again(world: World, status: int) -> None:
    world.seen_as(status="running", replicas=1, running=1)
    world.drained("a")
    for _ in range(2 if status == 400 else 1):  # after a 400 it is decided once more
        world.brain.next(Action.STOP)
    world.stub.next_time("stop", problem(status, "no"))
    world.tick()
    assert world.worker("a", settled=True)
    world.tick()
    assert world.brain.asked[-1][0] == WorkerFacts(1, 1, 0, 1, 0)
    assert not world.worker("a")


def test_one_404_changes_nothing(world: World) -> None:
    """Kelpie's defect 12: one 404 deleted the rule."""
    world.tick()
    for _ in range(3):
        world.stub.next_time(NAME, problem(404, "not now"))
        world.tick()
        world.tick()
    rule = world.rules.get(GROUP_ID)
    assert rule is not None
    assert not rule.paused


@pytest.mark.parametrize("how", ["gone", "another one of that name"])
def test_a_group_that_is_not_there_has_its_rule_paused_loudly_and_never_deleted(
    world: World, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.tick()
    if how == "gone":
        world.stub.groups.clear()
    else:
        world.seen_as(id="00000000-0000-4000-8000-000000000000")
    for look in range(MISSING_LOOKS):
        rule = world.rules.get(GROUP_ID)
        assert rule is not None
        assert not rule.paused, look
        world.tick()
    rule = world.rules.get(GROUP_ID)
    assert rule is not None
    assert rule.paused
    assert world.last()["kind"] == "suspended"
    assert "kelpie rules resume" in world.last()["reasons"][0]
    assert [r.levelno for r in caplog.records if r.__dict__["action"] == "rule_suspended"] == [logging.ERROR]
    before = len(world.stub.calls())
    world.tick()
    assert len(world.stub.calls()) == before


def test_without_a_place_the_rule_says_what_to_set(world: World) -> None:
    scaler = world.new_scaler(world.new_app(SALAD_ORGANIZATION_NAME=""))
    scaler.tick()
    assert "SALAD_ORGANIZATION_NAME" in world.last()["reasons"][0]
    world.rules.put(ScalingRule(container_group_id=GROUP_ID, organization=ORGANIZATION, group_name=NAME))
    scaler.tick()
    assert world.last()["action"] == "nothing"


def test_another_autoscaler_is_warned_of_once_and_told_with_each_decision(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.seen_as(queue_autoscaler={"max_replicas": 3})
    for _ in range(3):
        world.tick()
    assert [r.__dict__["action"] for r in caplog.records].count("scaled_by_others") == 1
    assert "queue autoscaler is active as well" in world.last()["reasons"][-1]


# -- one at a time, none for all ----------------------------------------------------------------------------------


def second_group(world: World) -> str:
    other = "11111111-2222-4333-8444-555555555555"
    world.stub.groups["other"] = group_body(id=other, name="other")
    world.rules.put(ScalingRule(container_group_id=other))
    return other


def test_a_group_that_hangs_delays_no_other_and_is_not_asked_twice(world: World) -> None:
    other = second_group(world)
    gate = threading.Event()
    world.tick()
    world.stub.next_time(f"/{NAME}", Reply(200, group_body(), wait=gate))
    try:
        for decided in (2, 3):
            world.tick(wait_s=0.2)
            eventually("the other group is decided on", lambda n=decided: decided_times(world, other) >= n)  # type: ignore[misc]
        assert sum(call.endswith(f"/{NAME}") for call in world.stub.calls()) == 2, "one before, one that hangs"
    finally:
        gate.set()
    eventually("the slow one is decided on", lambda: decided_times(world, GROUP_ID) >= 2)


def decided_times(world: World, group: str) -> int:
    return sum(entry["count"] for entry in world.ledger.decisions(group))


def test_two_control_workers_never_scale_a_group_at_once(world: World) -> None:
    gate = threading.Event()
    world.tick()
    world.stub.next_time(f"/{NAME}", Reply(200, group_body(), wait=gate))
    second = world.new_scaler(world.new_app())
    try:
        world.tick(wait_s=0)
        eventually("the first one asks", lambda: len(world.calls()) == 2)
        second.tick()
        assert len(world.calls()) == 2
    finally:
        gate.set()
    eventually("the first one is done", lambda: decided_times(world, GROUP_ID) == 2)
    second.tick()
    assert len(world.calls()) == 3


def test_who_was_too_slow_changes_nothing_any_more(world: World) -> None:
    world.tick()
    gate = threading.Event()
    world.brain.next(Action.START, 3)
    world.stub.next_time(f"/{NAME}", Reply(200, group_body(), wait=gate))
    world.tick(wait_s=0)
    eventually("it asks", lambda: len(world.calls()) == 2)
    world.ledger.redis.delete(keys.scaling(GROUP_ID))  # it ran out
    other = Turn(world.ledger, GROUP_ID, world.clock)
    assert other.acquire()
    world.clock.advance(EXPIRES_S)
    gate.set()
    eventually("it has given up", world.scaler._under_way[GROUP_ID].done)
    assert world.calls() == ["GET P/G", "GET P/G"]
    other.check()  # and took nothing from the other one
    other.release()
    assert not world.ledger.redis.exists(keys.scaling(GROUP_ID))


def test_a_turn_is_renewed_while_it_is_used(world: World) -> None:
    turn = Turn(world.ledger, GROUP_ID, world.clock)
    assert turn.acquire()
    for _ in range(10):
        world.clock.advance(EXPIRES_S / 2)
        turn.check()
    assert not Turn(world.ledger, GROUP_ID, world.clock).acquire()
    turn.release()
    assert Turn(world.ledger, GROUP_ID, world.clock).acquire()


def test_a_group_in_trouble_does_not_take_the_threads_of_the_others(world: World) -> None:
    world.tick()
    world.stub.next_time(f"/{NAME}", *[Reply(502, "<html>", "text/html")] * 8)
    world.tick()
    assert world.scaler._troubled == {GROUP_ID}
    assert world.last()["kind"] == "error"
    world.tick()
    assert world.last()["count"] == 2, "the same trouble is one entry"
    world.tick()
    assert world.scaler._troubled == set()
    assert world.last()["action"] == "nothing"


# -- when nothing scales ------------------------------------------------------------------------------------------


def test_without_a_key_scaling_is_off_with_one_line(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    app = world.new_app(SALAD_API_KEY="")
    assert client_of(app) is None
    scaler = world.new_scaler(app)
    for _ in range(3):
        scaler.tick()
    assert world.stub.calls() == []
    assert [r.__dict__["action"] for r in caplog.records].count("scaling_off") == 1


@pytest.mark.parametrize("how", ["paused", "deleted"])
def test_where_nothing_scales_a_group_any_more_its_workers_drain_no_more(world: World, how: str) -> None:
    world.submit()  # a group is known by its jobs
    world.drained("a")
    world.rules.pause(GROUP_ID) if how == "paused" else world.rules.delete(GROUP_ID)
    world.tick()
    assert not world.worker("a")
    assert world.stub.calls() == []


def test_a_group_without_a_rule_whose_keys_are_spoilt_stops_the_scaling_of_no_other(world: World) -> None:
    world.submit()
    world.ledger.redis.sadd(keys.GROUPS, "spoilt")
    world.ledger.redis.set(keys.workers("spoilt"), "no sorted set")
    world.tick()
    assert world.stub.calls()


def test_the_control_task_ticks_and_a_second_one_at_once_returns(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: list[float] = []
    inside, leave = threading.Event(), threading.Event()

    class Ticking:
        def tick(self) -> None:
            ticks.append(time.monotonic())
            inside.set()
            assert leave.wait(30)

    first = threading.Thread(target=tasks.tick_alone, args=(Ticking(),))
    first.start()
    assert inside.wait(30)
    tasks.tick_alone(Ticking())  # type: ignore[arg-type]  # as much of a scaler as is used
    assert len(ticks) == 1
    leave.set()
    first.join(30)


def test_beat_knows_the_task(world: World) -> None:
    entry = world.app.conf.beat_schedule["kelpie-scale"]
    assert (entry["task"], entry["schedule"]) == ("kelpie.scale", 60.0)
    assert entry["options"]["queue"] == "kelpie.control"


def test_neither_history_nor_logs_hold_the_key(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    world.brain.next(Action.START, 2)
    world.stub.next_time("start", problem(403, "no"))
    world.tick()
    said = json.dumps(world.ledger.decisions(GROUP_ID)) + repr([r.__dict__ for r in caplog.records])
    assert KEY not in said
    assert KEY in world.app.settings.secrets()
