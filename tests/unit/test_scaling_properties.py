"""Scaling decisions on any facts, and on a constant load: they settle, and nobody's job is ended."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kelpie_celery.scaling.facts import FleetFacts, GroupStatus, Memory, QueueFacts, WorkerFacts
from kelpie_celery.scaling.rule import ScalingRule
from kelpie_scaler.case import Case
from kelpie_scaler.decision import Action, Decision, decide
from tests.unit.scaling_support import NOW, World

SMALL = st.integers(0, 6)
AGES = st.none() | st.sampled_from([0.0, 30.0, 119.0, 121.0, 299.0, 300.0, 901.0, 4000.0])
STOPPED = (GroupStatus.STOPPED, GroupStatus.SUCCEEDED)


@st.composite
def rules(draw: st.DrawFn) -> ScalingRule:
    low = draw(SMALL)
    return ScalingRule(
        container_group_id="g",
        min_replicas=low,
        max_replicas=low + draw(SMALL),
        idle_threshold_seconds=draw(st.sampled_from([0.0, 60.0, 300.0])),
        scale_in_cooldown_s=draw(st.sampled_from([0.0, 60.0, 300.0])),
        jobs_per_replica=draw(st.none() | st.integers(1, 4)),
        max_step_up=draw(st.none() | st.integers(1, 3)),
        paused=draw(st.integers(0, 9)) == 0,
    )


@st.composite
def worker_facts(draw: st.DrawFn) -> WorkerFacts:
    busy, draining_idle, idle = draw(SMALL), draw(SMALL), draw(SMALL)
    count = busy + draining_idle + idle
    return WorkerFacts(count, count * draw(st.integers(1, 4)), busy, draining_idle, draw(st.integers(0, busy)))


QUEUES = st.builds(
    lambda pending, delayed, running, due_s, last_s: QueueFacts(
        pending, delayed, running, 5.0, due_s if delayed else None, last_s, {3: pending} if pending else {}
    ),
    SMALL, SMALL, SMALL, st.sampled_from([0.0, 300.0, 500.0]), AGES,
)  # fmt: skip
FLEETS = st.builds(
    FleetFacts,
    status=st.sampled_from(list(GroupStatus)),
    replicas=st.integers(0, 14), allocating=SMALL, creating=SMALL, running=SMALL, stopping=SMALL,
    pending_change=st.integers(0, 9).map(lambda n: n == 0),
    autoscaled_by=st.sampled_from([(), ("queue autoscaler",)]),
)  # fmt: skip


def _before(age_s: float | None) -> float | None:
    return None if age_s is None else NOW - age_s


LATELY = ((NOW - 250, 12), (NOW - 120, 7), (NOW - 60, 4))
MEMORIES = st.builds(
    lambda out, in_, surplus, drain, slots, lately: Memory(
        _before(out), _before(in_), _before(surplus), drain, slots, LATELY[:lately]
    ),
    AGES, AGES, AGES, SMALL, st.none() | st.integers(1, 4), st.integers(0, 3),
)  # fmt: skip


@given(QUEUES, worker_facts(), FLEETS, rules(), MEMORIES)
@settings(max_examples=600, deadline=None)
def test_no_facts_lead_to_an_act_that_harms(
    queue: QueueFacts, workers: WorkerFacts, fleet: FleetFacts, rule: ScalingRule, memory: Memory
) -> None:
    decision = decide(queue, workers, fleet, rule, memory, NOW)
    stopped = fleet.status in STOPPED

    _says_why(decision)
    if rule.paused or fleet.pending_change or fleet.status in (GroupStatus.PENDING, GroupStatus.FAILED):
        assert decision.action in (Action.NOTHING, Action.UNDRAIN)
    if decision.action is Action.START:
        assert stopped
        assert 0 < decision.replicas <= rule.max_replicas
    if decision.action in (Action.STOP, Action.SET_REPLICAS, Action.DRAIN, Action.UNDRAIN):
        assert not stopped
    if decision.action is Action.SET_REPLICAS:
        assert decision.replicas not in (0, fleet.replicas)  # never a PATCH without a difference
    if not stopped and decision.replicas > fleet.replicas:
        assert decision.replicas <= rule.max_replicas
    if not stopped and decision.replicas < fleet.replicas:
        _is_safe_scale_in(decision, queue, workers, fleet, memory)


def _says_why(decision: Decision) -> None:
    assert decision.reasons
    assert all(reason.isprintable() and len(reason) < 250 for reason in decision.reasons)


def _is_safe_scale_in(
    decision: Decision, queue: QueueFacts, workers: WorkerFacts, fleet: FleetFacts, memory: Memory
) -> None:
    lowered = fleet.replicas - decision.replicas
    unheard = max(0, fleet.allocating + fleet.creating + fleet.running - workers.workers)
    assert queue.pending == 0
    assert decision.replicas >= min(workers.busy, fleet.replicas)
    assert lowered <= memory.drain  # a drain was asked for by an earlier decision
    assert lowered <= workers.draining_idle + unheard
    assert decision.drain >= workers.draining_idle  # and goes on until the nodes are gone
    if decision.action is Action.STOP:
        assert (queue.running, workers.busy) == (0, 0)
        assert workers.draining_idle == workers.workers


@given(QUEUES, worker_facts(), FLEETS, rules(), MEMORIES)
@settings(max_examples=300, deadline=None)
def test_new_work_always_takes_the_drains_back_first(
    queue: QueueFacts, workers: WorkerFacts, fleet: FleetFacts, rule: ScalingRule, memory: Memory
) -> None:
    case = Case(queue, workers, fleet, rule, memory, NOW)
    if not queue.pending or not case.draining or case.ending or case.stopped:
        return
    decision = decide(queue, workers, fleet, rule, memory, NOW)

    assert (decision.action, decision.drain) == (Action.UNDRAIN, 0)


@given(QUEUES, worker_facts(), FLEETS, rules(), MEMORIES)
@settings(max_examples=300, deadline=None)
def test_constant_facts_never_alternate_between_draining_and_not(
    queue: QueueFacts, workers: WorkerFacts, fleet: FleetFacts, rule: ScalingRule, memory: Memory
) -> None:
    """Nothing that is asked for comes true, as with a broken API: then the same is asked for, or nothing."""
    asked = []
    for tick in range(8):
        decision = decide(queue, workers, fleet, rule, memory, NOW + 2000 + 60 * tick)
        memory = decision.memory
        asked.append(decision.action)

    assert not {Action.DRAIN, Action.UNDRAIN} <= set(asked[1:])


WORLDS = st.builds(
    World,
    rule=rules(), load=st.integers(0, 30), replicas=st.integers(0, 14), started=st.booleans(),
    start_ticks=st.integers(0, 5), slots=st.integers(1, 4),
)  # fmt: skip


@given(WORLDS)
@settings(max_examples=300, deadline=None)
def test_on_a_constant_load_decisions_settle_and_stay(world: World) -> None:
    world.memory = Memory(slots=world.slots)
    steps = 0 if world.rule.max_step_up is None else -(-14 // world.rule.max_step_up)
    actions = _acts_of_an_hour(world)
    acts = [action for action in actions if action is not Action.NOTHING]

    # Out, or a drain and in; never back.
    assert len(acts) <= 2 + steps, acts
    assert acts.count(Action.DRAIN) <= 1
    assert Action.UNDRAIN not in acts
    assert set(actions[-20:]) == {Action.NOTHING}


@given(WORLDS)
@settings(max_examples=200, deadline=None)
def test_nodes_with_more_slots_than_was_known_settle_too(world: World) -> None:
    actions = _acts_of_an_hour(world)

    assert set(actions[-20:]) == {Action.NOTHING}, actions


@given(WORLDS)
@settings(max_examples=200, deadline=None)
def test_without_patience_and_steps_decisions_settle_within_three_ticks(world: World) -> None:
    world.rule = world.rule.changed(
        idle_threshold_seconds=0.0, scale_in_cooldown_s=0.0, max_step_up=None, jobs_per_replica=world.slots
    )
    actions = _acts_of_an_hour(world)

    assert set(actions[3:]) == {Action.NOTHING}, actions


def _acts_of_an_hour(world: World) -> list[Action]:
    """The world itself asserts that no scale-in ends a running job."""
    return [world.tick().action for _ in range(60)]
