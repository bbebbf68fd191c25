"""Instances of the simulated SaladCloud, in virtual time: how they come up, move, and go."""

from __future__ import annotations

import signal

import pytest

from kelpie_celery.local.salad.behaviour import Behaviour, Timings
from kelpie_celery.local.salad.effects import Freeze, Kill, Launch, Notify, Wipe
from kelpie_celery.local.salad.errors import Refusal
from kelpie_celery.local.salad.model import NO_MACHINE
from kelpie_celery.local.salad.states import GroupStatus, InstanceState
from tests.unit.salad_world import NAME, UP_S, simulated, states

RUNNING = InstanceState.RUNNING


def test_an_instance_goes_through_all_states_and_is_launched_when_it_runs() -> None:
    sim = simulated()
    group = sim.in_status(GroupStatus.DEPLOYING, replicas=1)
    instance = group.instances[0]
    seen = [(instance.state.value, instance.machine_id != NO_MACHINE, len(sim.launched()))]
    for seconds in (30, 100, 10):
        sim.after(seconds)
        seen.append((instance.state.value, instance.machine_id != NO_MACHINE, len(sim.launched())))
    assert seen == [("allocating", False, 0), ("downloading", True, 0), ("creating", True, 0), ("running", True, 1)]
    assert group.status is GroupStatus.RUNNING


def test_a_jump_of_the_clock_gives_the_same_as_small_steps() -> None:
    one, many = simulated(seed=7, mean_run_s=300.0), simulated(seed=7, mean_run_s=300.0)
    groups = [sim.in_status(GroupStatus.DEPLOYING, replicas=4) for sim in (one, many)]
    one.after(5000)
    for _ in range(5000):
        many.after(1)
    assert groups[0].interruptions == groups[1].interruptions > 5
    assert states(groups[0]) == states(groups[1])
    assert groups[0].billed_until(one.world.agenda.now_s) == pytest.approx(
        groups[1].billed_until(many.clock.boottime())
    )


def test_the_time_factor_divides_everything() -> None:
    sim = simulated(time_factor=10)
    group = sim.in_status(GroupStatus.DEPLOYING, replicas=1)
    sim.after(UP_S / 10 - 0.1)
    assert states(group) == ["creating"]
    sim.after(0.2)
    assert states(group) == ["running"]


def test_a_container_gets_the_variables_of_the_platform_and_those_of_its_group() -> None:
    sim = simulated()
    container = {"image": "a", "resources": {"cpu": 1, "memory": 1024}, "environment_variables": {"COLOUR": "red"}}
    group = sim.up(1, container=container)
    (launch,) = sim.launched()
    instance = group.instances[0]
    expected = {
        "COLOUR": "red", "HOSTNAME": instance.id, "SALAD_INSTANCE_ID": instance.id,
        "SALAD_MACHINE_ID": instance.machine_id, "SALAD_CONTAINER_GROUP_ID": group.id,
        "SALAD_CONTAINER_GROUP_NAME": NAME, "SALAD_ORGANIZATION_NAME": "local", "SALAD_PROJECT_NAME": "default",
    }  # fmt: skip
    assert expected.items() <= launch.env.items()
    assert "red" not in repr(launch)


def test_the_group_stays_running_when_all_its_instances_are_gone() -> None:
    sim = simulated()
    group = sim.up(2)
    for instance in list(group.instances):
        sim.world.interrupt(instance.id)
    assert (group.status, states(group)) == (GroupStatus.RUNNING, ["allocating", "allocating"])


def test_a_scale_in_takes_what_does_not_run_yet_first_whatever_its_deletion_cost() -> None:
    sim = simulated()
    group = sim.up(2)
    running = list(group.instances)
    sim.patch(replicas=4)
    sim.after(31)
    for instance in group.instances:
        instance.deletion_cost = 0 if instance in running else 100
    sim.patch(replicas=2)
    assert group.instances == running


def test_a_scale_in_takes_the_lowest_deletion_cost_of_those_that_run() -> None:
    sim = simulated()
    group = sim.up(4)
    for instance, cost in zip(group.instances, (5, 0, 100_000, 2), strict=True):
        instance.deletion_cost = cost
    sim.patch(replicas=2)
    stopping = group.in_state(InstanceState.STOPPING)
    assert sorted(instance.deletion_cost for instance in stopping) == [0, 2]


def test_a_container_goes_on_after_a_stop_until_the_lag_is_over_and_gets_no_signal() -> None:
    sim = simulated()
    group = sim.up(1)
    instance = group.instances[0]
    sim.world.stop(NAME)
    sim.after(39)
    assert (states(group), sim.killed()) == (["stopping"], [])
    sim.after(2)
    assert (states(group), sim.killed()) == ([], [instance.id])
    assert not [effect for effect in sim.done if isinstance(effect, Notify)]


def test_a_signal_comes_a_grace_before_the_kill_when_it_is_wanted() -> None:
    sim = simulated(stop_signal=signal.SIGTERM, stop_grace_s=10.0)
    instance = sim.up(1).instances[0]
    sim.world.stop(NAME)
    sim.after(41)
    assert Notify(instance.id, signal.SIGTERM) in sim.done
    assert sim.killed() == []
    sim.after(10)
    assert sim.killed() == [instance.id]


def test_a_container_that_ends_upon_the_signal_is_gone_at_once() -> None:
    sim = simulated(stop_signal=signal.SIGTERM)
    group = sim.up(1)
    sim.world.stop(NAME)
    sim.after(41)
    sim.exit(group.instances[0], 0)
    assert group.instances == []


def test_an_interrupted_node_is_silent_first_and_killed_later_and_its_slot_begins_anew() -> None:
    sim = simulated()
    group = sim.up(1)
    lost = group.instances[0]
    sim.world.interrupt(lost.id)
    sim.after(1)
    assert Freeze(lost.id) in sim.done
    assert sim.killed() == []
    assert states(group) == ["allocating"]
    sim.after(30)
    assert sim.killed() == [lost.id]
    assert Wipe(lost.machine_id, lost.place) in sim.done
    sim.after(UP_S)
    assert group.instances[0].machine_id != lost.machine_id
    assert group.instances[0].id != lost.id
    assert group.interruptions == sim.world.fleet.interruptions == 1


def test_interruptions_come_at_the_seeded_rate() -> None:
    sim = simulated(mean_run_s=3600.0)
    group = sim.up(50)
    sim.after(10 * 3600)
    hours = group.billed_until(sim.clock.boottime()) / 3600
    assert 0.8 < group.interruptions / hours < 1.2


def test_a_running_instance_is_lost_every_so_many_seconds_when_that_is_ordered() -> None:
    sim = simulated(interrupt_every_s=3.0, time_factor=100)
    group = sim.in_status(GroupStatus.DEPLOYING, replicas=5)
    sim.after(61)
    assert 18 <= group.interruptions <= 20


def test_what_exits_is_started_again_on_its_node_with_another_id_and_file_system_and_is_running_all_the_while() -> None:
    sim = simulated()
    group = sim.up(1)
    instance = group.instances[0]
    before = sim.launched()[0]
    instance.deletion_cost = 9
    sim.exit(instance, 0)
    assert states(group) == ["running"]
    sim.after(3)
    first, second = sim.launched()
    assert first == before
    assert second.machine_id == first.machine_id
    assert second.instance_id != first.instance_id
    assert second.place != first.place
    assert Wipe(first.machine_id, first.place) in sim.done
    assert (instance.deletion_cost, group.moves) == (0, 0)


def test_clean_exits_are_relaunched_without_end_on_the_same_node() -> None:
    sim = simulated()
    instance = sim.up(1).instances[0]
    for _ in range(20):
        sim.exit(instance, 0)
        sim.after(3)
    assert len({launch.machine_id for launch in sim.launched()}) == 1


def test_after_five_relaunches_another_non_zero_exit_moves_it_to_another_node() -> None:
    sim = simulated()
    group = sim.up(1)
    for _ in range(5):
        sim.exit(group.instances[0], 1)
        sim.after(3)
    assert (len(sim.launched()), group.moves) == (6, 0)
    sim.exit(group.instances[0], 137)
    assert (states(group), group.moves, group.interruptions) == (["allocating"], 1, 0)
    sim.after(UP_S)
    assert len({launch.machine_id for launch in sim.launched()}) == 2


def test_a_clean_exit_in_between_begins_the_count_anew() -> None:
    sim = simulated()
    group = sim.up(1)
    for code in (1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1):
        sim.exit(group.instances[0], code)
        sim.after(3)
    assert group.moves == 0


def test_an_exit_that_is_told_late_of_a_container_that_was_killed_does_nothing() -> None:
    sim = simulated()
    group = sim.up(1)
    old = group.instances[0].id
    sim.world.interrupt(old)
    sim.world.fleet.exited(old, 137)
    assert states(group) == ["allocating"]


def test_a_reallocated_instance_runs_on_for_a_moment_and_begins_on_another_node() -> None:
    sim = simulated()
    group = sim.up(1)
    old = group.instances[0]
    sim.world.reallocate(group, old)
    sim.after(4)
    assert (states(group), sim.killed()) == (["running"], [])
    sim.after(2)
    assert (states(group), sim.killed(), group.moves) == (["allocating"], [old.id], 1)


def test_an_instance_that_is_still_downloading_can_be_reallocated() -> None:
    sim = simulated()
    group = sim.in_status(GroupStatus.DEPLOYING, replicas=1)
    sim.after(60)
    sim.world.reallocate(group, group.instances[0])
    sim.after(6)
    assert states(group) == ["allocating"]


@pytest.mark.parametrize("keep", [True, False], ids=["restart", "recreate"])
def test_restart_keeps_the_file_system_recreate_does_not_and_both_keep_the_node(keep: bool) -> None:
    sim = simulated()
    group = sim.up(1)
    sim.world.start_over(group, group.instances[0], keep=keep)
    sim.after(6)
    assert states(group) == ["creating"]
    sim.after(10)
    first, second = sim.launched()
    assert second.machine_id == first.machine_id
    assert (second.place == first.place) is keep
    assert (Wipe(first.machine_id, first.place) in sim.done) is not keep
    assert second.instance_id != first.instance_id


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
def test_only_a_running_instance_is_restarted(strict: bool) -> None:
    sim = simulated(strict=strict)
    group = sim.in_status(GroupStatus.DEPLOYING, replicas=1)
    if strict:
        with pytest.raises(Refusal, match="only a running one"):
            sim.world.start_over(group, group.instances[0], keep=True)
    else:
        sim.world.start_over(group, group.instances[0], keep=True)
        sim.after(6)
    assert states(group) == ["allocating"]


def test_a_stop_keeps_the_count_and_a_start_makes_new_instances_beside_those_that_still_stop() -> None:
    sim = simulated()
    group = sim.up(2)
    old = {instance.id for instance in group.instances}
    sim.world.stop(NAME)
    sim.world.start(NAME)
    assert states(group) == ["allocating", "allocating", "stopping", "stopping"]
    sim.after(UP_S)
    assert states(group) == ["running", "running"]
    assert not old & {instance.id for instance in group.instances}


def test_a_deleted_group_is_not_found_and_its_containers_end_all_the_same() -> None:
    sim = simulated()
    instance = sim.up(1).instances[0]
    sim.world.delete(NAME)
    with pytest.raises(Refusal, match="404"):
        sim.group()
    assert sim.world.container(instance.id)[1] is instance
    sim.after(41)
    assert sim.killed() == [instance.id]
    with pytest.raises(Refusal, match="404"):
        sim.world.container(instance.id)


def test_only_seconds_in_running_are_billed() -> None:
    sim = simulated()
    group = sim.in_status(GroupStatus.DEPLOYING, replicas=2)
    sim.after(UP_S + 100)
    assert group.billed_until(sim.clock.boottime()) == pytest.approx(200)
    sim.world.stop(NAME)
    sim.after(100)
    assert group.billed_until(sim.clock.boottime()) == pytest.approx(200)


def test_every_launch_is_followed_by_one_kill_and_one_wipe_whatever_happens() -> None:
    sim = simulated(seed=11, mean_run_s=400.0)
    group = sim.in_status(GroupStatus.DEPLOYING, replicas=6)
    for round_number in range(300):
        sim.after(7)
        running = [one for one in group.in_state(RUNNING) if one.alive]
        if running and round_number % 5 == 0:
            sim.exit(running[0], round_number % 2)
        if running and round_number % 7 == 0:
            sim.world.fleet.move(group, running[-1], "test")
        if round_number % 20 == 0:
            sim.patch(replicas=1 + round_number // 20 % 6)
        assert len(group.kept) == group.replicas
    sim.world.stop(NAME)
    sim.after(1000)
    launched = [effect.instance_id for effect in sim.done if isinstance(effect, Launch)]
    ends = [effect.instance_id for effect in sim.done if isinstance(effect, Kill)]
    assert len(set(launched)) == len(launched) > 50
    assert len(set(ends)) == len(ends)
    assert set(ends) <= set(launched)
    places = {(effect.machine_id, effect.place) for effect in sim.done if isinstance(effect, Launch)}
    wiped = [(effect.machine_id, effect.place) for effect in sim.done if isinstance(effect, Wipe)]
    assert sorted(wiped) == sorted(places)


def test_starts_take_as_long_as_the_vendor_measured() -> None:
    sim = simulated(timings=Timings(), replicas_quota=500)
    group = sim.in_status(GroupStatus.DEPLOYING, replicas=500)
    took = []
    for _ in range(100):
        sim.after(60)
        took.append(len(group.in_state(RUNNING)) / 500)
    first, by_10, by_20, by_40, by_80 = (took[minute - 1] for minute in (3, 10, 20, 40, 80))
    assert first > 0
    assert 0.4 < by_10 < 0.65
    assert 0.7 < by_20 < 0.9
    assert 0.85 < by_40 < 0.99
    assert by_80 > 0.98


def test_a_behaviour_that_is_not_possible_is_refused() -> None:
    with pytest.raises(Exception, match="time factor of 0"):
        Behaviour(time_factor=0)
    with pytest.raises(Exception, match="mean_run_s"):
        Behaviour(mean_run_s=-1)
