"""Scaling decisions, case by case."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from typing import Any

import pytest

from kelpie_celery.lifecycle import Phase
from kelpie_celery.scaling.facts import GroupStatus, Memory, WorkerFacts
from kelpie_scaler.decision import Action
from tests.unit.cli_harness import Cli, cli
from tests.unit.scaling_support import NOW, decided, fleet, queue, workers

__all__ = ["cli"]  # a fixture

LONG_AGO = NOW - 3600
STOPPED, DEPLOYING, RUNNING = GroupStatus.STOPPED, GroupStatus.DEPLOYING, GroupStatus.RUNNING


def surplus(drain: int = 0, **more: float) -> Memory:
    """There have been too many nodes for an hour."""
    return Memory(surplus_since_s=LONG_AGO, drain=drain, **more)  # type: ignore[arg-type]  # each field has its own type


# -- out -----------------------------------------------------------------------------------------------------------


def test_work_starts_a_stopped_group_with_as_many_nodes_as_it_needs() -> None:
    decision = decided(queue(pending=3), workers(), fleet(1, STOPPED))

    assert (decision.action, decision.replicas, decision.drain) == (Action.START, 3, 0)
    assert decision.memory.last_scale_out_s == NOW
    assert decision.reasons[0] == "the group is stopped: 3 pending jobs need 3 nodes at 1 a node"


def test_a_start_carries_the_count_so_that_the_old_one_never_starts_first() -> None:
    """Kelpie's defect 12: it started the group, which then went to the old count."""
    decision = decided(queue(pending=2), workers(), fleet(400, STOPPED))

    assert (decision.action, decision.replicas) == (Action.START, 2)


def test_a_minimum_starts_a_stopped_group_without_work() -> None:
    decision = decided(queue(), workers(), fleet(0, STOPPED), min_replicas=2)

    assert (decision.action, decision.replicas) == (Action.START, 2)
    assert decision.reasons[0] == "the group is stopped: there is no work, and min_replicas is 2"


def test_a_stopped_group_without_work_stays_stopped() -> None:
    decision = decided(queue(last_activity_s=None), workers(), fleet(5, STOPPED))

    assert (decision.action, decision.replicas) == (Action.NOTHING, 0)
    assert decision.reasons == ("the group is stopped, and there is no work",)


def test_a_node_whose_worker_was_drained_by_hand_is_replaced_while_jobs_wait() -> None:
    """Or the job would wait for ever: by the counts there is a node for it."""
    withdrawn = replace(workers(1), withdrawn=1, withdrawn_slots=1)
    decision = decided(queue(pending=1), withdrawn, fleet(1))

    assert (decision.action, decision.replicas) == (Action.SET_REPLICAS, 2)
    assert "1 workers were drained by hand: jobs that wait need nodes in their place" in decision.reasons
    # Once the other one has the job, the node is too many like any other.
    later = decided(queue(running=1), replace(workers(2, busy=1), withdrawn=1, withdrawn_slots=1), fleet(2), surplus())
    assert (later.action, later.drain) == (Action.DRAIN, 1)
    assert decided(queue(), withdrawn, fleet(1), surplus(), idle_threshold_seconds=0).action is Action.DRAIN


def test_nodes_that_were_drained_by_hand_are_replaced_as_far_as_their_slots_are_free() -> None:
    """Ten nodes of eight slots each, drained while seven of them work: one job that waits needs one node, not nine."""
    drained = WorkerFacts(10, 80, 10, 0, 0, withdrawn=10, withdrawn_slots=10)
    assert decided(queue(pending=1, running=70), drained, fleet(10), max_replicas=99).replicas == 11
    assert decided(queue(pending=8, running=70), drained, fleet(10), max_replicas=99).replicas == 11
    assert decided(queue(pending=9, running=70), drained, fleet(10), max_replicas=99).replicas == 12
    # Half of each node's slots, by the rule: what is free of it is half as much.
    idle = WorkerFacts(2, 16, 0, 0, 0, withdrawn=2, withdrawn_slots=16)
    assert decided(queue(pending=1), idle, fleet(2), jobs_per_replica=4).replicas == 3


def test_more_work_than_nodes_scales_out_at_once() -> None:
    memory = Memory(last_scale_out_s=NOW - 1, last_scale_in_s=NOW - 1)
    decision = decided(queue(pending=4, running=2), workers(2, busy=2), fleet(2), memory)

    assert (decision.action, decision.replicas) == (Action.SET_REPLICAS, 6)
    assert decision.reasons[0] == "4 pending and 2 running jobs need 6 nodes at 1 a node, and the group has 2"
    assert "the oldest pending job has waited 30 s; 4 of priority 5, the highest" in decision.reasons


def test_nodes_that_are_on_their_way_count() -> None:
    decision = decided(queue(pending=5), workers(), fleet(5, DEPLOYING, allocating=2, creating=3, running=0))

    assert (decision.action, decision.replicas) == (Action.NOTHING, 5)
    assert "5 of 5 nodes are on their way" in decision.reasons


def test_the_maximum_limits_and_is_told() -> None:
    decision = decided(queue(pending=50), workers(), fleet(0, STOPPED))

    assert (decision.action, decision.replicas) == (Action.START, 10)
    assert "50 nodes would be needed, max_replicas is 10" in decision.reasons


@pytest.mark.parametrize(("status", "there", "count"), [(STOPPED, 8, 3), (RUNNING, 2, 5), (RUNNING, 9, 10)])
def test_one_decision_adds_no_more_than_max_step_up(status: GroupStatus, there: int, count: int) -> None:
    decision = decided(queue(pending=50), workers(), fleet(there, status), max_step_up=3)

    assert decision.replicas == count


@pytest.mark.parametrize(
    ("given", "reported", "remembered", "count"),
    [(None, 0, None, 8), (None, 4, None, 2), (None, 0, 4, 2), (3, 4, None, 3), (100, 0, None, 1)],
)
def test_a_node_is_there_for_its_slots_or_for_what_the_rule_says(
    given: int | None, reported: int, remembered: int | None, count: int
) -> None:
    there = workers(1, slots=reported) if reported else workers()
    decision = decided(queue(pending=8), there, fleet(0), Memory(slots=remembered), jobs_per_replica=given)

    assert decision.replicas == count


def test_the_slots_of_workers_are_remembered_for_the_next_start() -> None:
    assert decided(queue(), workers(2, slots=4), fleet(2)).memory.slots == 4


@pytest.mark.parametrize(("due_s", "count"), [(1.0, 2), (300.0, 2), (301.0, 0)])
def test_a_delayed_job_counts_once_it_is_due_within_a_start(due_s: float, count: int) -> None:
    decision = decided(queue(delayed=2, next_delayed_s=due_s), workers(), fleet(0, STOPPED))

    assert (decision.replicas, decision.action is Action.START) == (count, count > 0)


# -- in ------------------------------------------------------------------------------------------------------------


def test_surplus_nodes_stay_for_the_cooldown() -> None:
    q, w, f = queue(running=2), workers(5, busy=2), fleet(5)
    first = decided(q, w, f)
    assert (first.action, first.memory.surplus_since_s) == (Action.NOTHING, NOW)
    assert first.reasons[0] == (
        "3 of 5 nodes are too many: 2 running jobs need 2 nodes at 1 a node; "
        "scale_in_cooldown_s asks to wait 300 s more"
    )

    assert decided(q, w, f, Memory(surplus_since_s=NOW - 299)).action is Action.NOTHING
    assert decided(q, w, f, Memory(surplus_since_s=NOW - 300)).action is Action.DRAIN


def test_a_scale_in_drains_first_and_lowers_the_count_only_then() -> None:
    q, f = queue(running=2), fleet(5)
    drain = decided(q, workers(5, busy=2), f, surplus())
    assert (drain.action, drain.replicas, drain.drain) == (Action.DRAIN, 5, 3)

    waiting = decided(q, workers(5, busy=2), f, drain.memory)
    assert (waiting.action, waiting.drain) == (Action.NOTHING, 3)

    lower = decided(q, workers(5, busy=2, draining_idle=3), f, drain.memory)
    assert (lower.action, lower.replicas, lower.drain) == (Action.SET_REPLICAS, 2, 3)
    assert (lower.memory.last_scale_in_s, lower.memory.drain) == (NOW, 0)


def test_only_nodes_that_were_too_many_all_the_time_go() -> None:
    """Else a moment of little work takes nodes that the next one needs, and that take minutes to start."""
    lately = ((NOW - 301, 9), (NOW - 240, 4), (NOW - 60, 3))
    memory = Memory(surplus_since_s=LONG_AGO, wanted_lately=lately)
    q, w, f = queue(running=2), workers(5, busy=2), fleet(5)

    decision = decided(q, w, f, memory)
    assert (decision.action, decision.drain) == (Action.DRAIN, 1)
    assert decision.memory.wanted_lately == ((NOW - 240, 4), (NOW - 60, 3), (NOW, 2))

    held = decided(q, w, fleet(4), memory)
    assert held.action is Action.NOTHING
    assert held.reasons[0].endswith("4 were wanted within scale_in_cooldown_s, 300 s")
    assert decided(queue(running=3), w, f, memory).memory.wanted_lately == ((NOW - 240, 4), (NOW, 3))


def test_a_memory_that_went_through_json_is_as_good() -> None:
    memory = Memory(surplus_since_s=LONG_AGO, wanted_lately=((NOW - 240, 4),), slots=2)
    back = Memory(**json.loads(json.dumps(dataclasses.asdict(memory))))

    for facts in ((queue(running=4), workers(5, busy=2), fleet(5)), (queue(pending=9), workers(), fleet(0))):
        assert decided(*facts, back) == decided(*facts, memory)


def test_only_as_many_nodes_go_as_have_drained() -> None:
    decision = decided(queue(running=2), workers(5, busy=2, draining_idle=1), fleet(5), surplus(drain=3))

    assert (decision.action, decision.replicas) == (Action.SET_REPLICAS, 4)


def test_nodes_that_have_not_come_up_may_go_without_a_worker_to_drain() -> None:
    f = fleet(5, creating=3, running=2)
    drain = decided(queue(running=2), workers(2, busy=2), f, surplus())
    lower = decided(queue(running=2), workers(2, busy=2), f, drain.memory)

    assert (drain.action, drain.drain) == (Action.DRAIN, 3)
    assert (lower.action, lower.replicas) == (Action.SET_REPLICAS, 2)


def test_a_group_without_work_is_stopped_after_the_idle_threshold() -> None:
    w, f = workers(2), fleet(2)
    assert decided(queue(last_activity_s=299), w, f, surplus()).action is Action.NOTHING

    drain = decided(queue(last_activity_s=300), w, f)
    assert (drain.action, drain.drain) == (Action.DRAIN, 2)

    stop = decided(queue(last_activity_s=360), workers(2, draining_idle=2), f, drain.memory)
    assert (stop.action, stop.replicas, stop.memory.last_scale_in_s) == (Action.STOP, 0, NOW)


def test_a_group_goes_to_its_minimum_instead_of_a_stop() -> None:
    stop = decided(queue(last_activity_s=900), workers(4, draining_idle=3), fleet(4), surplus(drain=3), min_replicas=1)

    assert (stop.action, stop.replicas) == (Action.SET_REPLICAS, 1)


def test_a_group_is_not_stopped_while_one_worker_could_still_take_a_job() -> None:
    # SaladCloud counts two nodes, three workers were heard of.
    q, f = queue(last_activity_s=900), fleet(2)
    drain = decided(q, workers(3), f)
    assert drain.drain == 3

    assert decided(q, workers(3, draining_idle=2), f, drain.memory).action is Action.NOTHING
    assert decided(q, workers(3, draining_idle=3), f, drain.memory).action is Action.STOP


def test_a_worker_that_never_says_that_it_drains_holds_up_no_stop_but_does_not_count_for_a_shrink() -> None:
    """It vanished a moment ago, say, and is heard of still."""
    w, f = workers(3, draining_idle=2, unsettled=1), fleet(3)
    stop = decided(queue(last_activity_s=900), w, f, surplus(drain=3))
    assert stop.action is Action.STOP

    lower = decided(queue(last_activity_s=900), w, f, surplus(drain=2), min_replicas=1)
    assert (lower.action, lower.replicas) == (Action.SET_REPLICAS, 1)
    waiting = decided(queue(last_activity_s=900), workers(3, unsettled=2), f, surplus(drain=2), min_replicas=1)
    assert waiting.action is Action.NOTHING


def test_who_comes_up_between_the_looks_of_a_stop_drains_while_the_others_go_and_the_next_look_stops_all() -> None:
    q = queue(last_activity_s=900)
    first = decided(q, workers(3, draining_idle=2), fleet(3), surplus(drain=3))
    assert (first.action, first.replicas, first.drain, first.memory.drain) == (Action.SET_REPLICAS, 1, 3, 1)

    ending = fleet(1, stopping=2)
    assert decided(q, workers(1, unsettled=1), ending, first.memory).action is Action.STOP
    # Its node vanishes, another one comes, and both are heard of.
    more = decided(q, workers(2, unsettled=1), ending, first.memory)
    assert (more.action, more.replicas, more.drain) == (Action.DRAIN, 1, 2)
    assert decided(q, workers(2, unsettled=2), ending, more.memory).action is Action.STOP


def test_work_that_comes_while_the_last_nodes_of_a_stop_drain_keeps_them() -> None:
    q, w, memory = queue(pending=1), workers(1, draining_idle=1), Memory(last_scale_in_s=NOW - 50, drain=1)
    # It may be the one that SaladCloud takes: they cost the same.
    waiting = decided(q, w, fleet(1, stopping=2), memory)
    assert (waiting.action, waiting.drain) == (Action.NOTHING, 1)
    assert decided(q, w, fleet(1), memory).action is Action.UNDRAIN


def test_a_deploying_group_without_work_is_stopped() -> None:
    """Kelpie's defect 12: it stopped running groups only, and paid for one that came up later."""
    q, f = queue(last_activity_s=300), fleet(3, DEPLOYING, allocating=3, running=0)
    drain = decided(q, workers(), f)
    assert drain.action is Action.DRAIN

    assert decided(q, workers(), f, drain.memory).action is Action.STOP


def test_a_group_that_never_had_a_job_is_idle_from_the_first_look_on() -> None:
    q, f = queue(last_activity_s=None), fleet(1)
    first = decided(q, workers(1), f)
    assert first.action is Action.NOTHING

    later = replace(first.memory, surplus_since_s=NOW - 300)
    assert decided(q, workers(1), f, later).action is Action.DRAIN


SIX_FIELDS = {
    f"{role}_{part}": f"{role}-{part}" for role in ("input", "checkpoint", "output") for part in ("bucket", "prefix")
}
SYNC = {"after": [{"bucket": "bkt", "prefix": "out/", "local_path": "out", "direction": "upload"}]}


@pytest.mark.parametrize("storage", [{"sync": SYNC}, {"sync": None, **SIX_FIELDS}], ids=["sync", "six fields"])
def test_a_job_that_uploads_holds_its_node_whichever_form_its_storage_has(cli: Cli, storage: dict[str, Any]) -> None:
    """Kelpie's defect 11: only uploads of the older fields were kept from a scale-in. Here the lease counts."""
    token = cli.claim(cli.submit(**storage))
    cli.kelpie.app.ledger.renew(token, Phase.UPLOADING)
    running = cli.kelpie.counts("g").running
    assert running == 1

    for w in (workers(3, busy=1, draining_idle=2), workers(2, draining_idle=2)):  # its worker heard of, and not
        decision = decided(queue(running=running), w, fleet(3), surplus(drain=3))
        assert (decision.action, decision.replicas) == (Action.SET_REPLICAS, 1)
    last = decided(queue(running=running), workers(1, busy=1), fleet(1), surplus(drain=1), max_replicas=0)
    assert (last.action, last.replicas) == (Action.UNDRAIN, 1)


def test_leases_hold_nodes_also_while_their_workers_are_not_heard_of() -> None:
    q = queue(running=3)
    decision = decided(q, workers(), fleet(4, running=3, creating=1), surplus(drain=1), jobs_per_replica=10)

    assert (decision.action, decision.replicas) == (Action.SET_REPLICAS, 3)
    assert "3 nodes hold running jobs, and stay until these have ended" in decision.reasons


def test_busy_workers_stay_even_above_a_maximum_that_was_lowered() -> None:
    decision = decided(queue(running=8), workers(8, busy=8), fleet(8), surplus(), max_replicas=2)

    assert (decision.action, decision.replicas) == (Action.NOTHING, 8)
    assert "8 nodes hold running jobs, and stay until these have ended" in decision.reasons


def test_workers_of_nodes_that_are_going_anyway_do_not_raise_a_count_above_the_maximum() -> None:
    decision = decided(queue(running=3), workers(3, busy=3), fleet(2, stopping=1), max_replicas=2)

    assert (decision.action, decision.replicas) == (Action.NOTHING, 2)


def test_a_job_whose_node_vanished_is_work_before_anybody_has_noticed() -> None:
    """Else its group would seem to have been without work since another job ended, and idle workers would drain."""
    decision = decided(queue(lapsed=1), workers(3), fleet(3), surplus())
    assert (decision.action, decision.drain) == (Action.DRAIN, 2)
    assert decision.reasons[0].startswith("2 of 3 nodes are too many: 1 interrupted job needs 1 node at 1 a node")
    assert decided(queue(lapsed=1), workers(3), fleet(3)).action is Action.NOTHING, "the cooldown holds"


def test_nothing_is_given_back_while_jobs_are_pending() -> None:
    decision = decided(queue(pending=1, running=1), workers(5, busy=1), fleet(5), surplus())

    assert decision.action is Action.NOTHING
    assert "but jobs are pending, which idle workers take" in decision.reasons[0]


# -- drains taken back ---------------------------------------------------------------------------------------------


def test_new_work_takes_the_drains_back_before_anything_else() -> None:
    decision = decided(queue(pending=20, running=2), workers(5, busy=2, draining_idle=3), fleet(5), surplus(drain=3))

    assert (decision.action, decision.replicas, decision.drain) == (Action.UNDRAIN, 5, 0)
    assert decision.reasons[0] == "the workers that were draining take jobs again: 20 jobs are pending"
    assert (decision.memory.drain, decision.memory.surplus_since_s) == (0, None)


@pytest.mark.parametrize("paused", [True, False])
def test_workers_take_jobs_again_where_the_scaler_may_not_act(paused: bool) -> None:
    f = fleet(3, pending_change=not paused)
    decision = decided(queue(last_activity_s=900), workers(3, draining_idle=3), f, surplus(drain=3), paused=paused)

    assert (decision.action, decision.drain) == (Action.UNDRAIN, 0)


@pytest.mark.parametrize(
    "ending",
    [
        (fleet(2), 44),
        (fleet(2, stopping=3), 400),
        (fleet(2, running=5), 400),
    ],
)
def test_workers_of_nodes_that_are_ending_never_get_a_job(ending: tuple[object, float]) -> None:
    f, since_s = ending
    memory = Memory(last_scale_in_s=NOW - since_s)
    w = workers(5, busy=2, draining_idle=3)
    # Work that the remaining nodes do not suffice for: more nodes, but not these.
    decision = decided(queue(pending=2, running=2), w, f, memory)  # type: ignore[arg-type]  # a tuple of both

    assert (decision.action, decision.replicas, decision.drain) == (Action.SET_REPLICAS, 4, 3)
    assert decided(queue(running=2), w, f, memory).drain == 3  # type: ignore[arg-type]


def test_workers_that_outlive_a_scale_in_take_jobs_again() -> None:
    # SaladCloud took nodes that had not come up instead.
    w, f = workers(3, draining_idle=1, busy=2), fleet(3)
    assert decided(queue(running=3), w, f, Memory(last_scale_in_s=NOW - 46)).action is Action.UNDRAIN
    assert (
        decided(queue(running=3), w, fleet(3, stopping=1), Memory(last_scale_in_s=NOW - 901)).action is Action.UNDRAIN
    )


def test_work_starts_a_group_that_is_still_stopping() -> None:
    f = fleet(2, STOPPED, running=1, stopping=1)
    decision = decided(queue(pending=1), workers(2, draining_idle=2), f, Memory(last_scale_in_s=NOW - 30))

    assert (decision.action, decision.replicas, decision.drain) == (Action.START, 1, 2)


def test_nothing_more_is_given_back_while_nodes_are_ending() -> None:
    memory = Memory(last_scale_in_s=NOW - 30, surplus_since_s=LONG_AGO)
    decision = decided(queue(running=1), workers(3, busy=1), fleet(3), memory, scale_in_cooldown_s=0)

    assert decision.action is Action.NOTHING
    assert "still ending" in decision.reasons[0]


# -- hands off -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "more", "words"),
    [
        (GroupStatus.PENDING, {}, "prepares the image"),
        (GroupStatus.FAILED, {}, "mend the image's name or the registry's credentials"),
        (RUNNING, {"pending_change": True}, "a change of the group is on its way"),
    ],
)
@pytest.mark.parametrize("pending", [0, 5])
def test_a_group_that_cannot_be_changed_is_left_alone_with_a_reason(
    status: GroupStatus, more: dict[str, bool], words: str, pending: int
) -> None:
    decision = decided(queue(pending=pending, last_activity_s=9e9), workers(), fleet(2, status, **more), surplus())

    assert (decision.action, decision.replicas) == (Action.NOTHING, 2)
    assert words in decision.reasons[0]


@pytest.mark.parametrize(("pending", "f"), [(5, fleet(0, STOPPED)), (5, fleet(1)), (0, fleet(3))])
def test_a_paused_rule_leaves_the_group_as_it_is(pending: int, f: object) -> None:
    decision = decided(queue(pending, last_activity_s=9e9), workers(), f, surplus(), paused=True)  # type: ignore[arg-type]  # from a table

    assert decision.action is Action.NOTHING
    assert decision.reasons[0] == "the rule is paused; 'kelpie rules resume' lets the scaler act again"


def test_another_autoscaler_of_the_group_is_warned_of() -> None:
    decision = decided(queue(running=1), workers(1, busy=1), fleet(1, autoscaled_by=("queue autoscaler",)))

    assert decision.action is Action.NOTHING
    assert "warning: queue autoscaler of SaladCloud sets the count too; turn it off" in decision.reasons


def test_a_clock_that_was_put_back_does_not_hold_surplus_for_longer_than_the_cooldown() -> None:
    q, w, f = queue(running=1), workers(2, busy=1), fleet(2)
    after_jump = decided(q, w, f, Memory(surplus_since_s=NOW + 1e6, last_scale_in_s=NOW + 1e6))

    assert after_jump.memory.surplus_since_s == NOW


def test_a_silent_node_that_runs_is_no_reason_to_lower_the_count_while_others_have_jobs() -> None:
    """A frozen node keeps its deletion cost: SaladCloud would take the cheapest, which may be one that works."""
    silent = decided(queue(running=2), workers(2, busy=2), fleet(3), surplus(drain=1))
    assert silent.action is Action.NOTHING

    not_up = decided(queue(running=2), workers(2, busy=2), fleet(3, running=2, creating=1), surplus(drain=1))
    assert (not_up.action, not_up.replicas) == (Action.SET_REPLICAS, 2)

    no_job = decided(queue(last_activity_s=9999.0), workers(2), fleet(3), surplus(drain=1), min_replicas=2)
    assert (no_job.action, no_job.replicas) == (Action.SET_REPLICAS, 2)
