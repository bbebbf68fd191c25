"""Facts of a scaling decision, made short; and a small world in which decisions are carried out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kelpie_celery.scaling.facts import FleetFacts, GroupStatus, Memory, QueueFacts, WorkerFacts
from kelpie_celery.scaling.rule import ScalingRule
from kelpie_scaler.decision import Action, Decision, decide

NOW = 1_700_000_000.0
TICK_S = 60.0
RULE = ScalingRule(container_group_id="g")


def queue(pending: int = 0, running: int = 0, delayed: int = 0, **more: Any) -> QueueFacts:
    """The work of a group; a job was there a moment ago unless something else is said."""
    facts: dict[str, Any] = {
        "oldest_pending_s": 30.0 if pending else 0.0,
        "next_delayed_s": 10.0 if delayed else None,
        "last_activity_s": 0.0,
        "pending_by_priority": {5: pending} if pending else {},
    }
    return QueueFacts(pending, delayed, running, **(facts | more))


def workers(count: int = 0, busy: int = 0, draining_idle: int = 0, unsettled: int = 0, slots: int = 1) -> WorkerFacts:
    """Workers with ``slots`` each."""
    return WorkerFacts(count, count * slots, busy, draining_idle, draining_busy=0, draining_unsettled=unsettled)


def fleet(replicas: int = 0, status: GroupStatus = GroupStatus.RUNNING, **more: Any) -> FleetFacts:
    """Nodes that all run, unless something else is said."""
    stopped = status in (GroupStatus.STOPPED, GroupStatus.PENDING, GroupStatus.FAILED)
    counts = {"allocating": 0, "creating": 0, "running": 0 if stopped else replicas, "stopping": 0}
    return FleetFacts(status, replicas, **({**counts, "pending_change": False} | more))


def decided(q: QueueFacts, w: WorkerFacts, f: FleetFacts, memory: Memory | None = None, **rule: Any) -> Decision:
    """A decision at `NOW`."""
    return decide(q, w, f, RULE.changed(**rule), memory or Memory(), NOW)


@dataclass
class Node:
    """A node, which is up once it is old enough."""

    age: int = 0
    jobs: int = 0
    draining: bool = False


@dataclass
class World:
    """A container group under a constant load: jobs that never end, of which each stays where it was claimed."""

    rule: ScalingRule
    load: int
    replicas: int = 0
    started: bool = False
    start_ticks: int = 2
    slots: int = 1
    now_s: float = NOW
    memory: Memory = field(default_factory=Memory)
    nodes: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.nodes = [Node(self.start_ticks) for _ in range(self.replicas)] if self.started else []

    def tick(self) -> Decision:
        """Look, decide, act, and let a minute pass."""
        self._claim()
        up = [node for node in self.nodes if node.age >= self.start_ticks]
        running = sum(node.jobs for node in up)
        idle_s = 0.0 if self.load else self.now_s - NOW
        busy, draining = sum(node.jobs > 0 for node in up), sum(node.draining for node in up)
        status = GroupStatus.RUNNING if up else GroupStatus.DEPLOYING
        decision = decide(
            queue(self.load - running, running, last_activity_s=idle_s),
            workers(len(up), busy, draining, slots=self.slots),
            fleet(
                self.replicas,
                status if self.started else GroupStatus.STOPPED,
                running=len(up),
                creating=len(self.nodes) - len(up),
            ),
            self.rule,
            self.memory,
            self.now_s,
        )
        self._act(decision)
        self.now_s += TICK_S
        return decision

    def _claim(self) -> None:
        takers = [node for node in self.nodes if node.age >= self.start_ticks and not node.draining]
        for _ in range(self.load - sum(node.jobs for node in self.nodes)):
            free = [node for node in takers if node.jobs < self.slots]
            if free:
                min(free, key=lambda node: node.jobs).jobs += 1

    def _act(self, decision: Decision) -> None:
        self.memory = decision.memory
        idle = [node for node in self.nodes if node.age >= self.start_ticks and not node.jobs]
        for position, node in enumerate(sorted(idle, key=lambda node: not node.draining)):
            node.draining = position < decision.drain
        if decision.action is Action.STOP:
            self.started = False
        elif decision.action is Action.START:
            self.started, self.replicas = True, decision.replicas
        elif decision.action is Action.SET_REPLICAS:
            self.replicas = decision.replicas
        # Those that are not up go first, then the drained ones.
        self.nodes.sort(key=lambda node: (node.age < self.start_ticks, node.draining, -node.jobs))
        wanted = self.replicas if self.started else 0
        ended = self.nodes[wanted:]
        assert not any(node.jobs for node in ended), "a running job was ended"
        self.nodes = [*self.nodes[:wanted], *(Node(-1) for _ in range(wanted - len(self.nodes)))]
        for node in self.nodes:
            node.age += 1
