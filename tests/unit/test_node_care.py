"""Node care: which instances are moved, when, and how many."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from kelpie_celery.clock import ManualClock
from kelpie_celery.errors import SaladUnavailable
from kelpie_celery.ledger.fleet import Leave, WorkerEntry
from kelpie_celery.scaling.facts import FleetFacts, GroupStatus
from kelpie_scaler.care import NodeCare
from kelpie_scaler.salad import Group, Instance, Place, Quotas

PLACE = Place("org", "project", "group")
SILENT_S = 900.0


class FakeLedger:
    """As much of the ledger as node care asks."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.entries: list[WorkerEntry] = []
        self.failing: dict[str, int] = {}
        self.notes: dict[str, str] = {}
        self.up_s = 1e6
        self.leaves = 10
        self.tokens: dict[str, tuple[float, int]] = {}
        self.no_token = False
        self.moved: list[tuple[str, str, str, int]] = []
        self.kept: list[dict[str, Any]] = []

    def server_time(self) -> float:
        return self._clock.now()

    def uptime_s(self) -> float:
        return self.up_s

    def worker_entries(self, group: str) -> list[WorkerEntry]:
        return self.entries

    def failing_machines(self, group: str, at_least: int) -> dict[str, int]:
        return {machine: count for machine, count in self.failing.items() if count >= at_least}

    def noted(self, group: str, name: str) -> str:
        return self.notes.get(name, "")

    def note(self, group: str, name: str, value: str) -> None:
        self.notes[name] = value

    def take_token(self, bucket: str, *, each_s: float, holds: int, most_s: float) -> float | None:
        self.tokens[bucket] = each_s, holds
        return None if self.no_token else 0.0

    def ask_to_move(self, group: str, machine: str, instance: str, reason: str, *, by: str, size: int = 0) -> Leave:
        if not self.leaves:
            return Leave(False, 1, 1)
        self.leaves -= 1
        self.moved.append((machine, instance, reason, size))
        return Leave(True, 1, 1)

    def keep_decision(self, group: str, entry: dict[str, Any], *, same: str = "") -> int:
        self.kept.append(entry)
        return 1


class FakeClient:
    """As much of SaladCloud."""

    def __init__(self) -> None:
        self.there: list[Instance] = []
        self.asked = 0
        self.quota_calls = 0
        self.limit = 10
        self.reallocated: list[str] = []
        self.error: Exception | None = None

    def instances(self, place: Place) -> list[Instance]:
        self.asked += 1
        return self.there

    def quotas(self, organization: str) -> Quotas:
        self.quota_calls += 1
        return Quotas(100, 10, self.limit)

    def reallocate(self, place: Place, instance_id: str) -> None:
        if self.error:
            raise self.error
        self.reallocated.append(instance_id)


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.ledger, self.client = FakeLedger(self.clock), FakeClient()
        settings: Any = SimpleNamespace(node_silent_s=SILENT_S, max_job_failures=3)
        self.care = NodeCare(self.ledger, settings, self.clock)  # type: ignore[arg-type]  # as much of one as is used
        facts = FleetFacts(GroupStatus.RUNNING, 20, 0, 0, 0, 0, pending_change=False)
        self.group = Group("id", "group", facts)

    def instance(self, number: int, *, state: str = "running", for_s: float = 5000.0, heard: str = "") -> Instance:
        """An instance, and its worker when ``heard`` says by what it is known."""
        made = Instance(f"i{number}", f"m{number}", state, self.clock.now() - for_s, 0)
        self.client.there.append(made)
        if heard:
            ids = {"instance": ("other", made.id), "machine": (made.machine_id, "another-id")}[heard]
            self.ledger.entries.append(WorkerEntry(f"w{number}", self.clock.now(), *ids, 0))
        running = sum(one.state == "running" for one in self.client.there)
        self.group = replace(self.group, facts=replace(self.group.facts, running=running))
        return made

    def look(self, times: int = 1) -> int:
        moved = 0
        for _ in range(times):
            moved += self.care.look("g", PLACE, self.group, self.client)  # type: ignore[arg-type]
            self.clock.advance(60)
            self.ledger.entries = [replace(e, heard_at=e.heard_at + 60) for e in self.ledger.entries]
        return moved


@pytest.fixture
def world() -> World:
    return World()


def test_where_every_running_instance_is_heard_of_none_is_asked_for(world: World) -> None:
    world.instance(1, heard="instance")
    world.instance(2, state="downloading")
    world.look(3)
    assert (world.client.asked, world.client.quota_calls) == (0, 0)


@pytest.mark.parametrize("known_by", ["instance", "machine"])
def test_an_instance_without_a_word_is_moved_when_it_is_silent_at_two_looks(world: World, known_by: str) -> None:
    world.instance(1, heard=known_by)
    world.instance(2)
    assert world.look() == 0
    assert world.look() == 1
    assert world.client.reallocated == ["i2"]
    [(machine, instance, reason, size)] = world.ledger.moved
    assert (machine, instance, size) == ("m2", "i2", 20)
    assert "not heard of for 900 s" in reason


@pytest.mark.parametrize("kind", [{"state": "creating"}, {"state": "stopping"}, {"for_s": SILENT_S - 100}])
def test_an_instance_that_has_had_no_time_to_speak_is_left_alone(world: World, kind: dict[str, Any]) -> None:
    world.instance(1, **kind)
    world.group = replace(world.group, facts=replace(world.group.facts, running=1))
    world.look()
    world.care.look("g", PLACE, world.group, world.client)  # type: ignore[arg-type]
    assert world.client.reallocated == []


def test_a_worker_that_speaks_again_is_no_suspect_any_more(world: World) -> None:
    silent = world.instance(1)
    world.look()
    world.ledger.entries = [WorkerEntry("w", world.clock.now(), silent.machine_id, silent.id, 0)]
    assert world.look(2) == 0
    world.ledger.entries = []
    assert world.look() == 0, "the first look at a new silence"


def test_nobody_is_silent_to_a_redis_that_was_not_up_for_so_long(world: World) -> None:
    world.ledger.up_s = SILENT_S - 1
    world.instance(1)
    assert world.look(5) == 0


@pytest.mark.parametrize("status", [GroupStatus.STOPPED, GroupStatus.FAILED])
def test_a_group_that_sleeps_is_left_alone(world: World, status: GroupStatus) -> None:
    world.instance(1)
    world.group = replace(world.group, facts=replace(world.group.facts, status=status))
    assert world.look(3) == 0


def test_a_group_whose_configuration_changes_is_left_alone(world: World) -> None:
    world.instance(1)
    world.group = replace(world.group, facts=replace(world.group.facts, pending_change=True))
    assert world.look(3) == 0


def test_an_instance_that_is_still_listed_after_its_move_is_not_moved_again_at_once(world: World) -> None:
    world.instance(1)
    assert [world.look() for _ in range(4)] == [0, 1, 0, 1]


def test_a_machine_that_fails_what_succeeds_elsewhere_is_left_at_once(world: World) -> None:
    world.instance(1, heard="machine")
    world.instance(2, heard="machine")
    world.ledger.failing = {"m1": 3, "m2": 2}
    assert world.look() == 1
    assert world.client.reallocated == ["i1"]
    assert "3 jobs in a row" in world.ledger.moved[0][2]


def test_a_machine_at_work_finishes_first(world: World) -> None:
    world.instance(1, heard="machine")
    world.ledger.entries = [replace(world.ledger.entries[0], jobs=1)]
    world.ledger.failing = {"m1": 5}
    assert world.look() == 0


def test_moves_keep_to_the_budget_of_the_group(world: World) -> None:
    for number in range(5):
        world.instance(number)
    world.ledger.leaves = 2
    assert world.look(3) == 2


def test_moves_keep_to_the_organizations_limit_a_minute_and_cost_no_leave_when_they_must_wait(world: World) -> None:
    world.instance(1)
    world.ledger.no_token = True
    assert world.look(3) == 0
    assert world.ledger.leaves == 10
    assert list(world.ledger.tokens) == ["moves:org"]


@pytest.mark.parametrize("limit", [1, 2, 7, 10, 100])
def test_no_minute_has_more_moves_than_the_organization_may(world: World, limit: int) -> None:
    world.client.limit = limit
    world.instance(1)
    world.look(2)
    each_s, holds = world.ledger.tokens["moves:org"]
    # At most ``holds`` at once, and then one every ``each_s``: by any minute's end, from a full bucket.
    assert holds >= 1
    assert limit == 1 or holds + 60 / each_s <= limit + 1e-9
    assert each_s == 60 or limit > 1


def test_an_organization_that_may_not_move_moves_nothing(world: World) -> None:
    world.client.limit = 0
    world.instance(1)
    assert world.look(3) == 0


def test_quotas_are_asked_for_every_ten_minutes_only(world: World) -> None:
    for number in range(3):
        world.instance(number)
    world.look(8)
    assert world.client.quota_calls == 1
    world.clock.advance(600)
    world.look(2)
    assert world.client.quota_calls == 2


def test_a_move_that_saladcloud_did_not_make_is_in_the_history(world: World) -> None:
    world.instance(1)
    world.client.error = SaladUnavailable("no answer")
    assert world.look(2) == 0
    assert world.ledger.kept[0]["reasons"] == ["instance i1 was not moved: no answer"]
