"""How many nodes a container group gets: one pure function of what is known at one moment.

Scale-out is immediate. A scale-in takes at least two calls: the first has surplus idle workers drained, that is, the
ledger has them claim nothing any more; a later one lowers the count by what is drained or has not come up, so that no
job dies with its node, also none that was claimed a moment before. Not-yet-running nodes go first on SaladCloud, then
those of the lowest deletion cost, which the drained ones have.

    no work for the idle threshold, or a surplus for the cooldown -> DRAIN, then SET_REPLICAS (lower) or STOP
    work while workers drain                                      -> UNDRAIN, unless their nodes are ending already
    more work than nodes                                          -> SET_REPLICAS (higher); START where it is stopped

Limits: it knows what it is told. It never raises a count above ``max_replicas``, and lowers none below the workers that
hold jobs. Between two calls the world moves on: whoever acts on a decision acts at once, and keeps its memory only when
the act succeeded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from kelpie_celery.scaling.facts import FleetFacts, Memory, QueueFacts, WorkerFacts
from kelpie_celery.scaling.rule import ScalingRule
from kelpie_scaler import wording
from kelpie_scaler.case import Case

LOOK_AGAIN_S = 5.0
"""After a DRAIN the next look is worth while so soon, seconds: workers hear of it within a second."""


class Action(StrEnum):
    """What is to be done now."""

    NOTHING = "nothing"
    START = "start"
    STOP = "stop"
    SET_REPLICAS = "set_replicas"
    DRAIN = "drain"
    UNDRAIN = "undrain"


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done, and why.

    Attributes:
        action: What is to be done.
        replicas: The count that the group is to have after it, 0 for one that is to be stopped. For START: set it if
            it differs, then start.
        drain: How many workers in all should be draining after it, whatever the action; 0 takes back all drains. It may
            exceed the idle workers where nodes have not come up yet.
        reasons: Words for a person, the deciding ones first.
        memory: For the next decision, once this one's act has succeeded.
    """

    action: Action
    replicas: int
    drain: int
    reasons: tuple[str, ...]
    memory: Memory


def decide(
    queue: QueueFacts, workers: WorkerFacts, fleet: FleetFacts, rule: ScalingRule, memory: Memory, now_s: float
) -> Decision:
    """Decide what to do for one container group.

    Args:
        queue: Its work.
        workers: Its workers.
        fleet: Its nodes.
        rule: Its rule.
        memory: Of the decision before; `Memory()` at first.
        now_s: The time, in epoch seconds.
    """
    case = Case(queue, workers, fleet, rule, memory, now_s)
    held = wording.held(case)
    if _must_undrain(case, held=held is not None):
        return _undrain(case, wording.undrained(case, held))
    if held is not None:
        return _nothing(case, held)
    if case.stopped:
        return _start(case) if case.wanted else _nothing(case, "the group is stopped, and there is no work")
    if case.too_many < 0:
        return _scale_out(case)
    if case.too_many > 0:
        return _scale_in(case)
    return _nothing(case, f"the group has the {wording.nodes(case.wanted)} that it should: {wording.need(case)}")


def _must_undrain(case: Case, *, held: bool) -> bool:
    # What drains while nodes are ending dies with them: it must not get a job.
    if case.ending or case.stopped or not (case.draining or case.memory.drain):
        return False
    return held or case.queue.pending > 0 or case.too_many <= 0


def _undrain(case: Case, why: str) -> Decision:
    memory = replace(case.memory, drain=0, surplus_since_s=None)
    return _decision(case, Action.UNDRAIN, case.fleet.replicas, 0, why, memory)


def _start(case: Case) -> Decision:
    memory = replace(case.memory, drain=0, last_scale_out_s=case.now_s)
    why = f"the group is stopped: {wording.need(case)}"
    return _decision(case, Action.START, _step_from(case, 0), case.draining, why, memory)


def _scale_out(case: Case) -> Decision:
    memory = replace(case.memory, drain=0, last_scale_out_s=case.now_s)
    why = f"{wording.need(case)}, and the group has {case.fleet.replicas}"
    count = _step_from(case, case.fleet.replicas)
    return _decision(case, Action.SET_REPLICAS, count, case.draining, why, memory)


def _step_from(case: Case, there: int) -> int:
    step = case.rule.max_step_up
    return case.wanted if step is None else min(case.wanted, there + step)


def _scale_in(case: Case) -> Decision:
    surplus = wording.surplus(case)
    if case.ending and not _being_stopped(case):
        return _nothing(case, wording.ENDING)
    if case.queue.pending:
        return _nothing(case, f"{surplus}; but jobs are pending, which idle workers take")
    if case.patience_left_s > 0 or not case.may_go:
        return _nothing(case, f"{surplus}; {wording.patience(case)}")
    if case.memory.drain < _to_drain(case) and (case.memory.drain == 0 or not _ready(case)):
        return _drain(case, f"{surplus}; idle workers stop taking jobs, so that their nodes can go")
    ready = _ready(case)
    if not ready:
        return _nothing(case, f"{surplus}; waiting for their workers to drain")
    return _lower(case, ready, f"{surplus}; {ready} of them hold no job and take none")


def _to_drain(case: Case) -> int:
    """All workers where the group is to be stopped: that ends each of them, also one that SaladCloud does not count."""
    return case.may_go if case.wanted else max(case.may_go, case.workers.workers)


def _being_stopped(case: Case) -> bool:
    return not case.wanted and case.memory.drain > 0


def _ready(case: Case) -> int:
    """How many nodes may go now; all of them when no worker would take a job any more.

    A stop ends whatever there is: it does not matter what else is ending, nor whether a worker has told what it costs.
    """
    drained = case.workers.draining_idle + case.workers.draining_unsettled
    if _being_stopped(case) and drained >= case.workers.workers:
        return case.fleet.replicas
    ready = min(case.may_go, case.memory.drain, case.workers.draining_idle + case.unheard)
    return 0 if case.ending or ready == case.fleet.replicas else ready


def _drain(case: Case, why: str) -> Decision:
    count = _to_drain(case)
    return _decision(case, Action.DRAIN, case.fleet.replicas, count, why, replace(case.memory, drain=count))


def _lower(case: Case, ready: int, why: str) -> Decision:
    count = case.fleet.replicas - ready
    # Whoever drains goes on until its node is gone, though from now on nobody is asked to any more; unless all are to
    # go: then those that came up since drain from now on, and the next look stops the group.
    left = 0 if case.wanted else count
    memory = replace(case.memory, drain=left, last_scale_in_s=case.now_s)
    action = Action.SET_REPLICAS if count else Action.STOP
    drain = max(case.draining, case.memory.drain) if case.wanted else max(ready, case.draining) + left
    return _decision(case, action, count, drain, why, memory)


def _nothing(case: Case, why: str) -> Decision:
    replicas = 0 if case.stopped else case.fleet.replicas
    drain = case.memory.drain
    if case.ending or case.stopped:
        drain = case.draining if case.wanted else max(case.draining, drain)
    return _decision(case, Action.NOTHING, replicas, drain, why, case.memory)


def _decision(case: Case, action: Action, replicas: int, drain: int, why: str, memory: Memory) -> Decision:
    return Decision(action, replicas, drain, (why, *wording.more(case)), memory)
