"""What decides in a simulation: our rules through `kelpie_scaler.decision`, or Kelpie's algorithm.

Kelpie (kelpie-api 0.7.0), every five minutes: as many replicas as there are jobs that are pending, running, or ended
within the idle threshold, between minimum and maximum. It starts the group and sets the count, stops it at zero only
when its status is `running`, and does not know of draining.

Limits: a policy sees the facts of one moment, and nothing of the trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from kelpie_celery.scaling.facts import FleetFacts, GroupStatus, Memory, QueueFacts, WorkerFacts
from kelpie_celery.scaling.rule import ScalingRule
from kelpie_scaler.decision import LOOK_AGAIN_S, Action, decide

KELPIE_INTERVAL_S = 300.0
SCALE_INTERVAL_S = 60.0


@dataclass(frozen=True, slots=True)
class View:
    """What a policy sees.

    Attributes:
        ended_lately: Jobs that ended within the policy's ``window_s``.
    """

    queue: QueueFacts
    workers: WorkerFacts
    fleet: FleetFacts
    ended_lately: int


@dataclass(frozen=True, slots=True)
class Act:
    """What a policy does.

    Attributes:
        start: Start the group.
        stop: Stop it.
        replicas: Set the count to this before, if not None.
        drain: Have this many workers drain.
        again_s: Look again so soon, besides the looks that are due anyway; None: do not.
    """

    start: bool = False
    stop: bool = False
    replicas: int | None = None
    drain: int = 0
    again_s: float | None = None


class Policy(Protocol):
    """Looks every ``interval_s``, by facts of which some reach ``window_s`` back."""

    name: str
    interval_s: float
    window_s: float

    def act(self, view: View, now_s: float) -> Act:
        """What to do now."""


class OurRule:
    """One of our rules."""

    window_s = 0.0

    def __init__(self, name: str, rule: ScalingRule, interval_s: float = SCALE_INTERVAL_S) -> None:
        self.name, self.interval_s = name, interval_s
        self._rule, self._memory = rule, Memory()

    def act(self, view: View, now_s: float) -> Act:
        """As the scaler would."""
        decision = decide(view.queue, view.workers, view.fleet, self._rule, self._memory, now_s)
        self._memory = decision.memory
        sets = decision.action in (Action.START, Action.SET_REPLICAS) and decision.replicas != view.fleet.replicas
        return Act(
            start=decision.action is Action.START,
            stop=decision.action is Action.STOP,
            replicas=decision.replicas if sets else None,
            drain=decision.drain,
            again_s=LOOK_AGAIN_S if decision.action is Action.DRAIN and self.interval_s > LOOK_AGAIN_S else None,
        )


class KelpieRule:
    """Kelpie's algorithm, with the limits of one of our rules."""

    def __init__(self, name: str, rule: ScalingRule) -> None:
        self.name, self.interval_s, self.window_s = name, KELPIE_INTERVAL_S, rule.idle_threshold_seconds
        self._rule = rule

    def act(self, view: View, now_s: float) -> Act:  # noqa: ARG002 -- a policy's signature
        """Replicas are jobs."""
        jobs = view.queue.pending + view.queue.running + view.queue.delayed + view.ended_lately
        count = min(max(jobs, self._rule.min_replicas), self._rule.max_replicas)
        if count == 0:
            return Act(stop=view.fleet.status is GroupStatus.RUNNING)
        return Act(start=view.fleet.status is GroupStatus.STOPPED, replicas=count)
