"""What the platform is told of a worker, and when a worker leaves its node."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kelpie_celery.clock import Instant, ManualClock
from kelpie_celery.errors import ImdsAbsent, ImdsError, LedgerUnavailable
from kelpie_celery.ledger.fleet import Leave
from kelpie_celery.ledger.types import FencingToken
from kelpie_celery.lifecycle import Phase
from kelpie_celery.running import RunningJob, RunningJobs
from kelpie_worker.leaving import AGAIN_S, SETTLE_S
from kelpie_worker.standing import KILLED_WITHIN_S, Standing, deletion_cost


def job(phase: Phase | None = None, beats: int = 0, job_id: str = "j") -> RunningJob:
    made = RunningJob(FencingToken(job_id, 1, job_id), Instant(0, 0), lambda: None)
    if phase is not None:
        made.note(phase, beats)
    return made


@pytest.mark.parametrize(
    ("jobs", "draining", "cost"),
    [
        ([], True, 0),
        ([], False, 1),
        ([job()], False, 2),
        ([job(Phase.RESTORING, 0)], False, 2),
        ([job(Phase.EXECUTING, 5)], False, 7),
        ([job(Phase.EXECUTING, 5), job(Phase.EXECUTING, 9)], False, 11),
        ([job(Phase.EXECUTING, 5)], True, 7),
        ([job(Phase.EXECUTING, 10**7)], False, 99_999),
        ([job(Phase.UPLOADING, 5)], False, 100_000),
        ([job(Phase.UPLOADING, 5), job(Phase.EXECUTING, 1)], True, 100_000),
    ],
)
def test_what_it_costs_to_delete_an_instance(jobs: list[RunningJob], draining: bool, cost: int) -> None:
    assert deletion_cost(jobs, draining=draining) == cost


class FakeImds:
    """Takes what it is told, or raises."""

    def __init__(self) -> None:
        self.costs: list[int] = []
        self.reasons: list[str] = []
        self.errors: list[Exception] = []
        self.recreated = 0
        self.absent = False

    def set_deletion_cost(self, cost: int) -> None:
        self._raise()
        self.costs.append(cost)

    def reallocate(self, reason: str) -> None:
        self._raise()
        self.reasons.append(reason)

    def recreate(self) -> None:
        self._raise()
        self.recreated += 1

    def _raise(self) -> None:
        if self.errors:
            raise self.errors.pop(0)


class FakeLedger:
    """Grants moves, or not."""

    def __init__(self) -> None:
        self.granted: bool | Exception = True
        self.asked: list[tuple[str, str, str]] = []

    def ask_to_move(self, group: str, machine: str, instance: str, reason: str, *, by: str, size: int = 0) -> Leave:
        self.asked.append((group, machine, by))
        if isinstance(self.granted, Exception):
            raise self.granted
        return Leave(self.granted, 1, 1)


class World:
    """A standing whose thread is the test's own."""

    def __init__(self, **more: Any) -> None:
        self.imds, self.ledger, self.clock, self.running = FakeImds(), FakeLedger(), ManualClock(), RunningJobs()
        settings = SimpleNamespace(
            **{"metadata_uri": "http://imds", "machine_id": "m", "instance_id": None, "max_job_failures": 3,
               "max_retries": 3, "max_time_with_no_work_s": 0.0, "recreate_between_jobs": False, **more}
        )  # fmt: skip
        app: Any = SimpleNamespace(settings=settings, running=self.running, ledger=self.ledger)
        self.standing = Standing(app, self.imds, self.clock)  # type: ignore[arg-type]  # as much of one as is used
        self.standing._start = lambda: None  # type: ignore[method-assign]

    def tend(self, *, draining: bool = False, streak: int = 0) -> bool:
        """Pulses until the worker has been at rest for long enough, and then what the thread does."""
        for _ in range(2):
            self.standing.tend("g", draining=draining, streak=streak)
            self.clock.advance(SETTLE_S)
        self.standing.tend("g", draining=draining, streak=streak)
        self.standing.work()
        return self.standing.tend("g", draining=draining, streak=streak)


@pytest.fixture
def world() -> World:
    return World()


def test_the_platform_is_told_of_changes_only(world: World) -> None:
    running = job(Phase.EXECUTING, 0)
    world.tend()
    world.tend()
    world.running.add(running)
    world.tend()
    running.note(Phase.EXECUTING, 1)
    world.tend()
    running.note(Phase.UPLOADING, 1)
    world.tend()
    world.running.remove(running)
    world.tend()
    world.tend(draining=True)
    assert world.imds.costs == [1, 2, 3, 100_000, 1, 0]


def test_a_pulse_waits_for_nobody_and_says_so_until_the_platform_knows(world: World) -> None:
    assert not world.standing.tend("g", draining=True, streak=0)
    assert world.imds.costs == []
    world.standing.work()
    assert world.standing.tend("g", draining=True, streak=0)


def test_a_job_that_begins_is_told_without_a_pulse(world: World) -> None:
    world.tend()
    world.running.add(job())
    world.standing.refresh()
    world.standing.work()
    assert world.imds.costs == [1, 2]


def test_where_there_is_no_service_a_drain_need_not_be_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    world.imds.errors = [ImdsAbsent("none here")]
    world.standing.tend("g", draining=True, streak=0)
    world.standing.work()
    world.imds.absent = True
    assert world.standing.tend("g", draining=True, streak=0)
    world.imds.absent, world.imds.errors = False, [ImdsAbsent("none here")]
    world.standing.work()
    assert [r.__dict__["action"] for r in caplog.records] == ["imds_absent"], "one quiet line"


def test_a_service_that_refuses_holds_up_a_drain_for_three_tries_only(world: World) -> None:
    world.imds.errors = [ImdsError("no")] * 3
    assert [world.tend(draining=True) for _ in range(3)] == [False, False, True]
    assert world.tend(draining=True)
    assert world.imds.costs == [0]


def test_a_service_that_goes_on_refusing_is_told_of_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.imds.errors = [ImdsError("403")] * 20
    world.tend(draining=True)
    for _ in range(20):
        world.standing.work()
    assert [record.__dict__["action"] for record in caplog.records] == ["deletion_cost_untold"]


def test_a_busy_worker_that_counts_as_drained_on_the_platform_says_so_until_it_was_told(world: World) -> None:
    world.tend(draining=True)
    assert not world.standing.untold
    world.imds.errors = [ImdsError("no")] * 8
    world.running.add(job())
    for _ in range(4):
        world.tend()
    assert world.standing.untold, "however often it was tried"
    world.imds.errors = [ImdsError("no")]
    world.imds.absent = True
    assert world.standing.untold, "there was a service, so there is a cost"
    world.imds.absent, world.imds.errors = False, []
    world.tend()
    assert not world.standing.untold


def test_a_busy_worker_whose_newer_cost_is_not_taken_is_safe_by_the_older_one(world: World) -> None:
    running = job(Phase.EXECUTING, 0)
    world.running.add(running)
    world.tend()
    world.imds.errors = [ImdsError("no")] * 8
    running.note(Phase.EXECUTING, 9)
    world.tend()
    assert not world.standing.untold
    world.running.remove(running)
    for _ in range(4):
        settled = world.tend(draining=True)
    assert settled
    assert world.standing.untold, "a busy one may be cheaper than this drained one"


def test_where_there_is_no_service_nothing_is_untold(world: World) -> None:
    world.imds.absent = True
    world.running.add(job())
    world.tend()
    assert not world.standing.untold


def test_a_machine_that_fails_jobs_is_left_with_leave_of_the_ledger(world: World) -> None:
    world.tend(streak=2)
    assert world.ledger.asked == []
    world.tend(streak=3)
    assert world.ledger.asked == [("g", "m", "worker")]
    [reason] = world.imds.reasons
    assert "3 jobs in a row" in reason


def test_a_worker_that_is_to_leave_takes_no_job_and_finishes_the_one_it_has(world: World) -> None:
    running = job(Phase.EXECUTING)
    world.running.add(running)
    world.tend(streak=3)
    assert world.running.held_back
    assert world.ledger.asked == []
    world.running.remove(running)
    world.standing.tend("g", draining=False, streak=3)
    world.standing.work()
    assert world.imds.reasons == [], "a message may have been on its way when it stopped fetching"
    assert world.running.held_back
    world.tend(streak=3)
    assert world.imds.reasons
    assert not world.running.held_back, "it was not killed after all: it works on"


@pytest.mark.parametrize("granted", [False, LedgerUnavailable("away")])
def test_a_move_that_is_not_granted_is_asked_for_again_after_a_while(world: World, granted: bool | Exception) -> None:
    world.ledger.granted = granted
    for _ in range(5):
        world.tend(streak=3)
    assert (len(world.ledger.asked), world.imds.reasons, world.running.held_back) == (1, [], False)
    world.clock.advance(AGAIN_S + 1)
    world.ledger.granted = True
    world.tend(streak=3)
    assert len(world.imds.reasons) == 1


def test_a_worker_works_on_when_somebody_else_saw_to_its_machine(world: World) -> None:
    world.running.add(job())
    world.tend(streak=3)
    assert world.running.held_back
    world.tend(streak=0)
    assert not world.running.held_back


def test_without_a_service_nobody_leaves(world: World) -> None:
    world.imds.absent = True
    world.tend(streak=9)
    assert (world.ledger.asked, world.running.held_back) == ([], False)


# -- no work, and fresh containers --------------------------------------------------------------------------------


def test_a_worker_without_work_for_long_leaves_its_node_within_the_groups_budget() -> None:
    world = World(max_time_with_no_work_s=600.0)
    world.tend()
    world.clock.advance(500)
    world.tend()
    assert world.imds.reasons == []
    world.clock.advance(100)
    world.tend()
    [reason] = world.imds.reasons
    assert "no work for 610 s" in reason
    assert world.ledger.asked == [("g", "m", "worker")]
    assert not world.running.held_back


def test_work_a_drain_or_nobody_to_ask_keeps_a_worker_where_it_is() -> None:
    world = World(max_time_with_no_work_s=600.0)
    running = job(Phase.EXECUTING)
    world.running.add(running)
    world.clock.advance(700)
    world.tend()
    world.running.remove(running)
    world.tend()
    world.clock.advance(599 - 3 * SETTLE_S)
    world.tend()
    assert world.imds.reasons == [], "it counts from the last job's end"
    world.clock.advance(100)
    world.tend(draining=True)
    world.imds.absent = True
    world.tend()
    assert (world.imds.reasons, world.running.held_back) == ([], False)


def test_never_is_the_default(world: World) -> None:
    world.clock.advance(10**7)
    world.tend()
    assert world.imds.reasons == []


def test_a_job_that_comes_in_before_the_move_is_asked_for_keeps_the_worker() -> None:
    world = World(max_time_with_no_work_s=60.0)
    world.clock.advance(61)
    world.standing.tend("g", draining=False, streak=0)
    world.clock.advance(SETTLE_S)
    world.standing.tend("g", draining=False, streak=0)
    world.running.add(job())
    world.standing.work()
    assert (world.ledger.asked, world.imds.reasons) == ([], [])
    world.standing.tend("g", draining=False, streak=0)
    assert not world.running.held_back


def test_a_container_begins_anew_after_each_job_when_that_is_wanted() -> None:
    world = World(recreate_between_jobs=True)
    for number in (1, 2):
        world.tend()
        running = job(Phase.EXECUTING)
        world.running.add(running)
        world.standing.refresh()
        world.tend()
        assert not world.running.held_back
        world.standing.job_over()
        assert world.running.held_back, "before the slot is free"
        world.running.remove(running)
        world.tend()
        assert world.imds.recreated == number
        assert not world.running.held_back, "it was not ended after all: it works on"
    assert world.ledger.asked == [], "it stays on its node"


def test_a_container_does_not_begin_anew_while_another_slot_works_or_bookkeeping_is_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(recreate_between_jobs=True)
    first, second = job(Phase.EXECUTING, job_id="a"), job(Phase.EXECUTING, job_id="b")
    world.running.add(first)
    world.running.add(second)
    world.standing.job_over()
    world.running.remove(first)
    for _ in range(5):
        world.tend()
    assert (world.imds.recreated, world.running.held_back) == (0, True)
    monkeypatch.setattr("kelpie_celery.gate.state.reserved_requests", {"the second job's"})
    world.running.remove(second)
    world.tend()
    assert (world.imds.recreated, world.running.held_back) == (0, True)
    monkeypatch.setattr("kelpie_celery.gate.state.reserved_requests", set())
    world.tend()
    assert world.imds.recreated == 1


def test_the_next_job_waits_for_a_fresh_container_also_while_the_one_before_uploads() -> None:
    world = World(recreate_between_jobs=True)
    running = job(Phase.EXECUTING)
    world.running.add(running)
    world.standing.refresh()
    assert not world.running.held_back
    running.note(Phase.UPLOADING, 1)
    world.standing.refresh()
    assert world.running.held_back


@pytest.mark.parametrize("errors", [[ImdsError("no")] * 3, [ImdsAbsent("none")] * 3])
def test_where_a_container_cannot_begin_anew_the_worker_works_on(errors: list[Exception]) -> None:
    world = World(recreate_between_jobs=True, max_retries=len(errors))
    world.tend()
    world.standing.job_over()
    world.imds.errors = list(errors)
    world.tend()
    assert (world.imds.recreated, world.running.held_back) == (0, False)


def test_a_call_that_fails_is_tried_as_often_as_max_retries_says() -> None:
    world = World(max_retries=2)
    world.tend()
    world.imds.errors = [ImdsError("no")]
    world.tend(streak=3)
    assert len(world.imds.reasons) == 1
    world.clock.advance(AGAIN_S)
    world.imds.errors = [ImdsError("no")] * 3
    world.tend(streak=3)
    assert (len(world.imds.reasons), len(world.imds.errors)) == (1, 1)


def test_a_streak_in_one_group_is_not_forgotten_for_another_ones_sake(world: World) -> None:
    for _ in range(3):
        world.standing.tend("bad", draining=False, streak=3)
        world.standing.tend("good", draining=False, streak=0)
        assert world.running.held_back
        world.clock.advance(SETTLE_S)
    world.standing.work()
    assert [group for group, *_ in world.ledger.asked] == ["bad"]


def test_a_worker_that_is_to_be_ended_takes_nothing_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[tuple[float, bool]] = []
    monkeypatch.setattr(world.clock, "sleep", lambda s: held.append((s, world.running.held_back)))
    world.tend(streak=3)
    assert held == [(KILLED_WITHIN_S, True)]
