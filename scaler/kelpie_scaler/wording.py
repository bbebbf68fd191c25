"""The reasons of scaling decisions, in words for a person.

Limits: English, one line each; ids and keys are not in them.
"""

from __future__ import annotations

from collections.abc import Iterator

from kelpie_celery.scaling.facts import GroupStatus
from kelpie_scaler.case import START_S, Case

FAILED = (
    "SaladCloud could not prepare the image of the group; mend the image's name or the registry's credentials there, "
    "the scaler goes on by itself once the group has left 'failed'"
)
PAUSED = "the rule is paused; 'kelpie rules resume' lets the scaler act again"
PREPARING = "SaladCloud prepares the image of the group; waiting until that is done"
CHANGING = "a change of the group is on its way to its nodes; waiting until it has arrived"
ENDING = "the nodes of the last scale-in are still ending; waiting until they are gone"
_DEAF_STATES = {GroupStatus.PENDING: PREPARING, GroupStatus.FAILED: FAILED}


def held(case: Case) -> str | None:
    """Why nothing may be asked of SaladCloud now, or None."""
    if case.rule.paused:
        return PAUSED
    return _DEAF_STATES.get(case.fleet.status, CHANGING if case.fleet.pending_change else None)


def nodes(count: int) -> str:
    """``1 node``, ``2 nodes``."""
    return f"{count} node{'' if count == 1 else 's'}"


def jobs(case: Case) -> str:
    """``3 pending and 2 running jobs``."""
    q = case.queue
    counts = ((q.pending, "pending"), (q.running, "running"), (q.lapsed, "interrupted"), (case.soon, "delayed"))
    found = [f"{count} {state}" for count, state in counts if count]
    return " and ".join(found) + (" job" if case.work == 1 else " jobs")


def need(case: Case) -> str:
    """How many nodes the work asks for."""
    if not case.work:
        return f"there is no work, and min_replicas is {case.rule.min_replicas}"
    verb = "needs" if case.work == 1 else "need"
    return f"{jobs(case)} {verb} {nodes(case.needed)} at {case.per_replica} a node"


def surplus(case: Case) -> str:
    """How many nodes are too many, and why."""
    return f"{case.too_many} of {nodes(case.fleet.replicas)} are too many: {need(case)}"


def patience(case: Case) -> str:
    """How long it is still waited, and by which field of the rule."""
    if case.patience_left_s <= 0:
        return f"{case.most_wanted} were wanted within scale_in_cooldown_s, {case.rule.scale_in_cooldown_s:.0f} s"
    name = "scale_in_cooldown_s" if case.work else "idle_threshold_seconds"
    return f"{name} asks to wait {case.patience_left_s:.0f} s more"


def undrained(case: Case, why_held: str | None) -> str:
    """Why workers that were to go stay."""
    if why_held is None:
        why_held = f"{case.queue.pending} jobs are pending" if case.queue.pending else "no node is too many any more"
    return f"the workers that were draining take jobs again: {why_held}"


def more(case: Case) -> Iterator[str]:
    """What else a person would want to know."""
    fleet, rule, queue = case.fleet, case.rule, case.queue
    if case.needed > rule.max_replicas:
        yield f"{nodes(case.needed)} would be needed, max_replicas is {rule.max_replicas}"
    if case.work and case.needed < rule.min_replicas:
        yield f"min_replicas is {rule.min_replicas}"
    if case.holding > min(max(case.needed, rule.min_replicas), rule.max_replicas):
        yield f"{nodes(case.holding)} hold running jobs, and stay until these have ended"
    if fleet.allocating or fleet.creating:
        yield f"{fleet.allocating + fleet.creating} of {case.supply} nodes are on their way"
    if queue.pending:
        highest = min(queue.pending_by_priority, default=None)
        of = "" if highest is None else f"; {queue.pending_by_priority[highest]} of priority {highest}, the highest"
        yield f"the oldest pending job has waited {queue.oldest_pending_s:.0f} s{of}"
    if queue.delayed and not case.soon:
        yield f"{queue.delayed} delayed jobs are due in {queue.next_delayed_s or 0:.0f} s, later than {START_S:.0f} s"
    if case.workers.withdrawn:
        yield f"{case.workers.withdrawn} workers were drained by hand: jobs that wait need nodes in their place"
    if case.draining:
        yield f"{case.draining} workers are draining"
    if fleet.autoscaled_by:
        yield f"warning: {' and '.join(fleet.autoscaled_by)} of SaladCloud sets the count too; turn it off"
