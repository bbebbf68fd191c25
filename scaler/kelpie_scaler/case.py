"""The facts of one scaling decision, and what follows from them at once: how many nodes are wanted.

Limits: what to do about it is `kelpie_scaler.decision`'s.
"""

from __future__ import annotations

import math

from kelpie_celery.scaling.facts import FleetFacts, GroupStatus, Memory, QueueFacts, WorkerFacts
from kelpie_celery.scaling.rule import ScalingRule

START_S = 300.0
"""A start takes minutes: a job that is due within this counts as waiting already."""

SETTLE_S = 45.0
"""How long after a lower count SaladCloud may not have begun to end nodes."""

ENDING_MAX_S = 900.0
"""Ended nodes are gone within minutes; what still drains after this is taken back."""

_STOPPED = frozenset({GroupStatus.STOPPED, GroupStatus.SUCCEEDED})


class Case:
    """One decision under way.

    Attributes:
        stopped: The group is stopped; its instances may still be ending.
        supply: Nodes that there are or that are on their way.
        draining: Workers that claim nothing any more.
        per_replica: Jobs that one node is there for.
        soon: Delayed jobs that count as waiting already.
        work: Jobs that need a node now, or by the time that one can have started.
        needed: Nodes for that work, without limits; while some waits, more in place of the free slots that a person has
            withdrawn.
        holding: Nodes that hold jobs, and so have to stay.
        wanted: Nodes that the group should have.
        most_wanted: The most that it should have had at any moment within the cooldown.
        ending: Nodes may still be on their way out after the last lower count; what drains belongs to them.
        memory: As it is to be, unless something is done.
    """

    __slots__ = (
        "draining", "ending", "fleet", "holding", "memory", "most_wanted", "needed", "now_s", "per_replica", "queue",
        "rule", "soon", "stopped", "supply", "wanted", "work", "workers",
    )  # fmt: skip

    def __init__(
        self,
        queue: QueueFacts,
        workers: WorkerFacts,
        fleet: FleetFacts,
        rule: ScalingRule,
        memory: Memory,
        now_s: float,
    ) -> None:
        self.queue, self.workers, self.fleet, self.rule, self.now_s = queue, workers, fleet, rule, now_s
        self.stopped = fleet.status in _STOPPED
        self.supply = fleet.allocating + fleet.creating + fleet.running
        self.draining = workers.draining
        slots = max(1, workers.slots // workers.workers) if workers.workers else memory.slots
        self.per_replica = rule.jobs_per_replica or slots or 1
        self.soon = queue.delayed if (queue.next_delayed_s or 0.0) <= START_S else 0
        self.work = queue.pending + queue.running + queue.lapsed + self.soon
        waits = queue.pending + queue.lapsed + self.soon > 0 and not self.stopped
        # A node that is drained while most of its slots still work is missed by the others only.
        each = slots or 1
        missing = workers.withdrawn_slots * self.per_replica if waits else 0
        self.needed = math.ceil((self.work * each + missing) / (self.per_replica * each))
        self.holding = self._holding(each)
        within = min(max(self.needed, rule.min_replicas), rule.max_replicas)
        self.wanted = max(within, self.holding)
        self.ending = self._ending(memory.last_scale_in_s)
        since = self._surplus_since(memory.surplus_since_s)
        lately = self._wanted_until_now(memory.wanted_lately)
        self.most_wanted = lately[0][1]
        # Written out: `replace` takes longer than all the rest, and a simulation makes a million of these.
        self.memory = Memory(
            memory.last_scale_out_s, memory.last_scale_in_s, since, memory.drain, slots, lately
        )  # fmt: skip

    @property
    def too_many(self) -> int:
        """Nodes beyond those that are wanted."""
        return self.fleet.replicas - self.wanted

    @property
    def may_go(self) -> int:
        """Nodes that were too many all the time within the cooldown; without work, all that are."""
        return self.too_many - (min(self.most_wanted, self.fleet.replicas) - self.wanted if self.work else 0)

    @property
    def unheard(self) -> int:
        """Nodes without a worker that SaladCloud would take first: not up yet; silent ones, where no job is to lose.

        What a silent one costs is not known: a frozen node may cost more than one that works.
        """
        unheard = max(0, self.supply - self.workers.workers)
        return min(unheard, self.fleet.allocating + self.fleet.creating) if self.holding else unheard

    @property
    def patience_left_s(self) -> float:
        """How much longer the surplus has to last before anything is given back, in seconds."""
        surplus_s = self.now_s - self.memory.surplus_since_s if self.memory.surplus_since_s is not None else 0.0
        if self.work:
            return self.rule.scale_in_cooldown_s - surplus_s
        idle_s = self.queue.last_activity_s
        return self.rule.idle_threshold_seconds - (surplus_s if idle_s is None else idle_s)

    def _holding(self, slots: int) -> int:
        """By the workers, and by the leases where workers have not been heard of; no more than there are to lose."""
        if self.stopped:
            return 0
        return min(max(self.workers.busy, math.ceil(self.queue.running / slots)), self.fleet.replicas)

    def _ending(self, last_scale_in_s: float | None) -> bool:
        passed_s = math.inf if last_scale_in_s is None else self.now_s - last_scale_in_s
        if not 0 <= passed_s < ENDING_MAX_S:
            return False
        left_over = self.supply > (0 if self.stopped else self.fleet.replicas)
        return passed_s < SETTLE_S or self.fleet.stopping > 0 or left_over

    def _wanted_until_now(self, before: tuple[tuple[float, int], ...]) -> tuple[tuple[float, int], ...]:
        """The most within any time that begins in the cooldown and ends now is the first entry after its begin."""
        if all(count <= self.wanted for _, count in before):
            return ((self.now_s, self.wanted),)
        since_s = self.now_s - self.rule.scale_in_cooldown_s
        kept = tuple((at, count) for at, count in before if since_s < at <= self.now_s and count > self.wanted)
        return (*kept, (self.now_s, self.wanted))

    def _surplus_since(self, since_s: float | None) -> float | None:
        if self.stopped or self.fleet.replicas <= self.wanted:
            return None
        return self.now_s if since_s is None else min(since_s, self.now_s)
