"""Container groups of the simulated SaladCloud, in virtual time: creation, changes, quotas, limits."""

from __future__ import annotations

from typing import Any

import pytest

from kelpie_celery.local.salad import views
from kelpie_celery.local.salad.bodies import InstancePatch, parsed
from kelpie_celery.local.salad.errors import Refusal
from kelpie_celery.local.salad.states import GroupStatus
from tests.unit.salad_world import AUTOSCALER, IMAGE, NAME, UP_S, Sim, simulated, states

OTHER = "docker.io/example/worker:2"


def test_a_new_group_is_pending_until_its_image_is_prepared_then_stopped() -> None:
    sim = simulated()
    group = sim.create()
    assert group.status is GroupStatus.PENDING
    sim.after(21)
    assert (group.status, group.instances) == (GroupStatus.STOPPED, [])


def test_a_new_group_with_autostart_deploys_by_itself() -> None:
    sim = simulated()
    group = sim.create(autostart_policy=True)
    sim.after(21)
    assert (group.status, len(group.instances)) == (GroupStatus.DEPLOYING, 3)


def test_an_image_that_cannot_be_pulled_fails_the_group_and_says_so() -> None:
    sim = simulated(bad_images=[IMAGE])
    group = sim.create(autostart_policy=True)
    sim.after(21)
    assert group.status is GroupStatus.FAILED
    assert IMAGE in group.description


def test_a_start_and_a_stop_show_a_moment_later() -> None:
    sim = simulated()
    group = sim.in_status(GroupStatus.STOPPED)
    sim.world.start(NAME)
    sim.after(0.3)
    assert sim.world.shown_status(group) is GroupStatus.STOPPED
    sim.after(0.2)
    assert sim.world.shown_status(group) is GroupStatus.DEPLOYING


def test_replicas_of_a_stopped_group_are_kept_for_its_next_start() -> None:
    sim = simulated()
    group = sim.in_status(GroupStatus.STOPPED)
    sim.patch(replicas=5)
    assert group.instances == []
    sim.world.start(NAME)
    assert len(group.instances) == 5


def test_no_replicas_is_not_stopped() -> None:
    sim = simulated()
    group = sim.up(2)
    sim.patch(replicas=0)
    sim.after(100)
    assert (group.status, group.instances) == (GroupStatus.RUNNING, [])


def test_the_quota_counts_stopped_groups_and_the_maximum_of_an_autoscaler() -> None:
    sim = simulated(replicas_quota=20)
    sim.in_status(GroupStatus.STOPPED, "stopped-workers", replicas=6)
    sim.in_status(GroupStatus.RUNNING, "scaled-workers", replicas=1, queue_autoscaler=AUTOSCALER)
    assert sim.world.replicas_used == 13
    with pytest.raises(Refusal, match="403"):
        sim.create(replicas=8)
    sim.in_status(GroupStatus.STOPPED, replicas=7)
    with pytest.raises(Refusal, match="403"):
        sim.patch(queue_autoscaler={**AUTOSCALER, "max_replicas": 8})


def test_a_group_that_is_over_a_lowered_quota_can_be_made_smaller() -> None:
    sim = simulated()
    group = sim.up(5)
    sim.world.replicas_quota = 2
    sim.patch(replicas=4)
    assert group.replicas == 4


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
def test_the_name_of_a_deleted_group_is_free_again_after_minutes_when_strict(strict: bool) -> None:
    sim = simulated(strict=strict)
    sim.create()
    with pytest.raises(Refusal, match="exists already"):
        sim.create()
    sim.world.delete(NAME)
    if strict:
        with pytest.raises(Refusal, match="being deleted"):
            sim.create()
        sim.after(181)
    sim.create()


def test_a_new_image_is_prepared_first_then_downloaded_by_every_instance_on_its_node() -> None:
    sim = simulated()
    group = sim.up(2)
    machines = [instance.machine_id for instance in group.instances]
    sim.patch(container={"image": OTHER})
    sim.after(19)
    assert (states(group), group.version, group.pending_change) == (["running", "running"], 1, True)
    sim.after(2)
    assert (states(group), group.version, group.pending_change) == (["downloading", "downloading"], 2, True)
    sim.after(UP_S)
    assert (states(group), group.pending_change) == (["running", "running"], False)
    assert [instance.machine_id for instance in group.instances] == machines
    assert group.container["image"] == OTHER
    assert len(sim.killed()) == 2


def test_an_image_that_cannot_be_pulled_leaves_a_running_group_as_it_was() -> None:
    sim = simulated(bad_images=[OTHER])
    group = sim.up(1)
    sim.patch(container={"image": OTHER})
    sim.after(21)
    assert (group.status, group.version, group.container["image"]) == (GroupStatus.RUNNING, 1, IMAGE)
    assert OTHER in group.description


@pytest.mark.parametrize(
    ("body", "restarts"),
    [
        ({"container": {"environment_variables": {"A": "b"}}}, True),
        ({"container": {"command": ["other"]}}, True),
        ({"startup_probe": {"failure_threshold": 1, "initial_delay_seconds": 0, "period_seconds": 1,
                            "success_threshold": 1, "timeout_seconds": 1, "tcp": {"port": 80}}}, True),
        ({"replicas": 2}, False),
        ({"display_name": "Other"}, False),
        ({"container": {"priority": "low"}}, False),
        ({"queue_autoscaler": AUTOSCALER}, False),
        ({}, False),
    ],
)  # fmt: skip
def test_command_environment_and_probes_restart_everything_and_nothing_else_does(
    body: dict[str, Any], restarts: bool
) -> None:
    sim = simulated()
    group = sim.up(2)
    sim.patch(**body)
    assert group.version == (2 if restarts else 1)
    assert group.pending_change is restarts
    assert states(group) == (["creating"] * 2 if restarts else ["running"] * 2)


def test_ten_instances_a_minute_may_be_reallocated_by_the_api_and_each_action_has_its_own_limit() -> None:
    sim = simulated()
    group = sim.up(12)
    for instance in group.instances[:10]:
        sim.world.reallocate(group, instance)
    with pytest.raises(Refusal, match="429"):
        sim.world.reallocate(group, group.instances[10])
    sim.world.start_over(group, group.instances[10], keep=True)
    sim.world.reallocate(group, group.instances[11], by_imds=True)
    sim.after(61)
    sim.world.reallocate(group, group.instances[0])


def test_the_limit_of_a_minute_is_not_divided_by_the_time_factor() -> None:
    sim = simulated(time_factor=100, actions_per_minute=1)
    group = sim.up(2)
    sim.world.reallocate(group, group.instances[0])
    sim.after(59)
    with pytest.raises(Refusal, match="429"):
        sim.world.reallocate(group, group.instances[1])


def test_the_deletion_cost_that_the_api_shows_stays_in_its_range() -> None:
    sim = simulated()
    instance = sim.up(1).instances[0]
    for cost, shown in ((999_999_999, 100_000), (-5, 0), (17, 17)):
        instance.deletion_cost = cost
        assert views.of_instance(sim.world, instance)["deletion_cost"] == shown
    sim.world.patch_instance(instance, InstancePatch(deletion_cost=None))
    assert instance.deletion_cost == 0


def test_downloading_counts_as_creating_and_shows_its_progress() -> None:
    sim = simulated()
    group = sim.in_status(GroupStatus.DEPLOYING, replicas=1)
    sim.after(30 + 25)
    assert views.counts(group)["creating_count"] == 1
    assert views.of_instance(sim.world, group.instances[0])["pulling_progress"] == 25.0


def test_times_are_written_as_the_live_service_writes_them() -> None:
    assert views.timestamp(1_713_803_857.5) == "2024-04-22T16:37:37.5000000+00:00"


def test_an_instance_is_found_by_its_machine_id_too_but_never_by_that_of_no_machine() -> None:
    sim = simulated()
    group = sim.up(1)
    instance = group.instances[0]
    assert sim.world.instance(group, instance.machine_id) is instance
    sim.patch(replicas=2)
    with pytest.raises(Refusal, match="404"):
        sim.world.instance(group, group.instances[1].machine_id)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"name": "Upper"}, "name"),
        ({"replicas": 501}, "replicas"),
        ({"replicas": True}, "replicas"),
        ({"replicas": "3"}, "replicas"),
        ({"restart_policy": "sometimes"}, "restart_policy"),
        ({"autostart_policy": None}, "autostart_policy"),
        ({"country_codes": ["US"]}, "country_codes.0"),
        ({"scaling-actions": [{"replicas": 1, "schedule": "daily"}]}, "scaling-actions.0.schedule"),
        ({"container": {"resources": {"cpu": 1, "memory": 1024}}}, "container.image"),
        ({"container": {"image": "a", "resources": {"cpu": 1, "memory": 5}}}, "container.resources.memory"),
    ],
)
def test_a_body_that_the_specification_does_not_allow_is_refused_by_field(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(Refusal) as refused:
        simulated().create(**fields)
    assert refused.value.status == 400
    assert list(refused.value.fields) == [named]


def test_a_refused_body_does_not_show_its_values() -> None:
    container = {"image": "a", "resources": {"cpu": 1, "memory": 1024}, "environment_variables": {"KEY": ["hunter2"]}}
    with pytest.raises(Refusal) as refused:
        simulated().create(container=container)
    assert "hunter2" not in str(refused.value)


def test_unknown_fields_are_ignored_in_a_group_and_refused_in_an_instance() -> None:
    sim = simulated()
    assert sim.up(1).replicas == 1
    sim.patch(replica=7)
    with pytest.raises(Refusal, match="400"):
        parsed(InstancePatch, {"deletion_costs": 1})


def test_the_event_log_tells_of_the_whole_life() -> None:
    sim = simulated()
    sim.create(autostart_policy=True, replicas=1)
    sim.after(20 + UP_S + 1)
    sim.patch(replicas=2)
    sim.world.interrupt(sim.group().instances[0].id)
    names = [event.name for event in sim.group().events]
    assert names == [
        "Container Group Started", "Instance Allocated", "Instance Downloading", "Instance Creating",
        "Instance Running", "Container Group Desired Replica Count Updated from 1 to 2",
        "Instance Interrupted (Node Offline)",
    ]  # fmt: skip


def test_a_status_that_nothing_reaches_cannot_be_forced() -> None:
    sim = simulated()
    sim.create()
    with pytest.raises(Refusal, match="succeeded"):
        sim.world.force_status(NAME, GroupStatus.SUCCEEDED)


def test_two_worlds_with_one_seed_do_the_same() -> None:
    def history(sim: Sim) -> list[str]:
        group = sim.in_status(GroupStatus.DEPLOYING, replicas=5)
        sim.after(4000)
        return [f"{event.name} {event.at}" for event in group.events]

    assert history(simulated(seed=3, mean_run_s=500.0)) == history(simulated(seed=3, mean_run_s=500.0))
    assert history(simulated(seed=3, mean_run_s=500.0)) != history(simulated(seed=4, mean_run_s=500.0))
