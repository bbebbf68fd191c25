"""Which operation the simulated API refuses when: every row of the table, strict and lenient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kelpie_celery.local.salad.errors import Refusal
from kelpie_celery.local.salad.states import GroupStatus
from tests.unit.salad_world import AUTOSCALER, NAME, Sim, simulated

PENDING, RUNNING, STOPPED = GroupStatus.PENDING, GroupStatus.RUNNING, GroupStatus.STOPPED
FAILED, DEPLOYING = GroupStatus.FAILED, GroupStatus.DEPLOYING
OK = 0
NEW_IMAGE: dict[str, Any] = {"container": {"image": "docker.io/example/worker:2"}}


def start(sim: Sim) -> None:
    sim.world.start(NAME)


def stop(sim: Sim) -> None:
    sim.world.stop(NAME)


def more(sim: Sim) -> None:
    sim.patch(replicas=5)


def rename(sim: Sim) -> None:
    sim.patch(display_name="Another name")


# Operation, status before, what strict and lenient answer, and the status right after where it was accepted.
ROWS = [
    (start, STOPPED, OK, OK, DEPLOYING),
    (start, DEPLOYING, 400, OK, DEPLOYING),
    (start, RUNNING, 400, OK, RUNNING),
    (start, PENDING, 400, OK, PENDING),
    (start, FAILED, 400, 400, FAILED),
    (stop, RUNNING, OK, OK, STOPPED),
    (stop, DEPLOYING, OK, OK, STOPPED),
    (stop, PENDING, 400, OK, PENDING),
    (stop, STOPPED, 400, OK, STOPPED),
    (stop, FAILED, 400, OK, FAILED),
    (more, STOPPED, OK, OK, STOPPED),
    (more, DEPLOYING, OK, OK, DEPLOYING),
    (more, RUNNING, OK, OK, RUNNING),
    (more, PENDING, 400, OK, PENDING),
    (more, FAILED, OK, OK, FAILED),
    (rename, PENDING, 400, OK, PENDING),
    (rename, FAILED, OK, OK, FAILED),
]


def status_of(act: Callable[[], object]) -> int:
    try:
        act()
    except Refusal as refusal:
        return refusal.status
    return OK


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
@pytest.mark.parametrize(("operation", "before", "strictly", "leniently", "after"), ROWS)
def test_a_row_of_the_table(
    operation: Callable[[Sim], None],
    before: GroupStatus,
    strictly: int,
    leniently: int,
    after: GroupStatus,
    strict: bool,
) -> None:
    sim = simulated(strict=strict)
    group = sim.in_status(before)
    answer = status_of(lambda: operation(sim))
    assert answer == (strictly if strict else leniently)
    assert group.status is (after if answer == OK else before)
    assert group.replicas == (5 if operation is more and answer == OK else 3)


def test_a_start_while_pending_is_carried_out_once_the_image_is_there_when_lenient() -> None:
    sim = simulated(strict=False)
    group = sim.in_status(PENDING)
    sim.world.start(NAME)
    sim.after(19)
    assert group.status is PENDING
    sim.after(2)
    assert group.status is DEPLOYING


def test_a_stop_while_pending_takes_the_start_back_when_lenient() -> None:
    sim = simulated(strict=False)
    group = sim.create(autostart_policy=True)
    sim.world.stop(NAME)
    sim.after(21)
    assert group.status is STOPPED


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
def test_nothing_can_be_changed_while_a_new_image_is_prepared_when_strict(strict: bool) -> None:
    sim = simulated(strict=strict)
    group = sim.up()
    sim.patch(**NEW_IMAGE)
    assert (group.status, group.pending_change) == (RUNNING, True)
    assert status_of(lambda: sim.patch(replicas=5)) == (400 if strict else OK)
    assert group.replicas == (3 if strict else 5)
    sim.after(21)
    assert status_of(lambda: sim.patch(replicas=6)) == OK


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
def test_a_failed_group_is_prepared_again_only_when_its_image_is_changed(strict: bool) -> None:
    sim = simulated(strict=strict)
    group = sim.in_status(FAILED)
    sim.patch(replicas=4, container={"environment_variables": {"A": "b"}})
    assert group.status is FAILED
    sim.patch(**NEW_IMAGE)
    assert group.status is PENDING
    sim.after(21)
    assert group.status is STOPPED


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
def test_replicas_that_are_patched_are_overridden_by_a_queue_autoscaler(strict: bool) -> None:
    sim = simulated(strict=strict)
    group = sim.in_status(RUNNING, queue_autoscaler=AUTOSCALER)
    sim.after(16)
    assert group.replicas == 1
    assert status_of(lambda: sim.patch(replicas=5)) == OK
    assert group.replicas == 5
    sim.after(16)
    assert group.replicas == 1


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
@pytest.mark.parametrize("status", [STOPPED, DEPLOYING, RUNNING, FAILED])
def test_more_replicas_than_the_quota_leaves_are_refused_in_any_status(status: GroupStatus, strict: bool) -> None:
    sim = simulated(strict=strict, replicas_quota=10)
    group = sim.in_status(status)
    sim.in_status(STOPPED, "other-workers", replicas=4)
    assert status_of(lambda: sim.patch(replicas=7)) == 403
    assert group.replicas == 3
    assert status_of(lambda: sim.patch(replicas=6)) == OK


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
def test_an_unknown_name_is_not_found_whatever_the_operation(strict: bool) -> None:
    world = simulated(strict=strict).world
    for act in (world.group, world.start, world.stop, world.delete):
        assert status_of(lambda act=act: act("no-such-group")) == 404  # type: ignore[misc]
    assert status_of(lambda: simulated(strict=strict).patch("no-such-group", replicas=1)) == 404
