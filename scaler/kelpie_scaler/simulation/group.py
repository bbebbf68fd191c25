"""The container group of a simulation: its status, its count, its nodes, and what they cost.

Limits: it knows nothing of time passing; the engine says when a node is up, gone or lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from kelpie_celery.scaling.facts import FleetFacts, GroupStatus, WorkerFacts
from kelpie_scaler.simulation.nodes import Job, Node, State, victims
from kelpie_scaler.simulation.platform import Dice

OnNode = Callable[[Node, float], None]
"""Told of a node, and of when something happens to it, in epoch seconds."""


class Group:
    """A container group.

    Attributes:
        nodes: That there are, also those that are ending.
        billed_s: Seconds that nodes ran, of those that are gone.
        busy_s: Seconds in which they had a job.
        starts: How often it was started.
        changes: How often its count was set.
    """

    def __init__(self, slots: int, dice: Dice, on_start: OnNode, on_ending: OnNode) -> None:
        self.nodes: dict[int, Node] = {}
        self.billed_s = self.busy_s = 0.0
        self.starts = self.changes = 0
        self._slots, self._dice = slots, dice
        self._on_start, self._on_ending = on_start, on_ending
        self._status, self._replicas, self._made = GroupStatus.STOPPED, 0, 0
        self._free: deque[Node] = deque()
        self._draining = 0

    @property
    def stopped(self) -> bool:
        """Whether it is to have no nodes."""
        return self._status is GroupStatus.STOPPED

    # -- what the policy does --------------------------------------------------------------------------------------

    def set_replicas(self, count: int, now_s: float) -> None:
        """Have another count; nodes begin or end only where the group is not stopped."""
        self.changes += 1
        self._replicas = count
        if not self.stopped:
            self._adjust(now_s)

    def start(self, now_s: float) -> None:
        """Have nodes."""
        self.starts += 1
        self._status = GroupStatus.DEPLOYING
        self._adjust(now_s)

    def stop(self, now_s: float) -> None:
        """Have none."""
        self._status = GroupStatus.STOPPED
        for node in list(self.nodes.values()):
            self._end(node, now_s)

    def drain(self, count: int) -> None:
        """Have so many workers claim nothing: idle ones, and none that is busy."""
        if count == self._draining:
            return
        heard = [node for node in self.nodes.values() if node.state is not State.STARTING]
        draining = [node for node in heard if node.draining]
        idle = [node for node in heard if not node.jobs and not node.draining]
        for node in draining[count:]:
            node.draining = False
            self.free(node)
        for node in idle[: max(0, count - len(draining))]:
            node.draining = True
        self._draining = sum(node.draining for node in heard)

    # -- what happens to nodes -------------------------------------------------------------------------------------

    def up(self, node: Node, now_s: float) -> bool:
        """A container starts; False when the node was not waited for any more."""
        if node.state is not State.STARTING:
            return False
        node.state, node.up_s = State.RUNNING, now_s
        if self._status is GroupStatus.DEPLOYING:
            self._status = GroupStatus.RUNNING
        self.free(node)
        return True

    def remove(self, node: Node, now_s: float) -> list[Job]:
        """A node is gone.

        Returns:
            The jobs that it had.
        """
        jobs = list(node.jobs.values())
        for job in jobs:
            self.release(node, job, now_s)
        self.billed_s += now_s - node.up_s
        self._forget(node)
        if not self.stopped:
            self._adjust(now_s)
        return jobs

    def bill_until(self, now_s: float) -> None:
        """Count the nodes that there still are."""
        for node in self.nodes.values():
            if node.state is not State.STARTING:
                self.billed_s += now_s - node.up_s
                self.busy_s += now_s - node.busy_since_s if node.jobs else 0.0

    # -- slots -----------------------------------------------------------------------------------------------------

    def take_free(self) -> Node | None:
        """The node that has waited longest for a job."""
        while self._free:
            node = self._free.popleft()
            node.queued = False
            if node.state is not State.GONE and not node.draining and len(node.jobs) < self._slots:
                return node
        return None

    def free(self, node: Node) -> None:
        """A node may have room for a job."""
        if not node.queued and not node.draining and len(node.jobs) < self._slots:
            node.queued = True
            self._free.append(node)

    def occupy(self, node: Node, job: Job, now_s: float) -> None:
        """A job begins on a node."""
        if not node.jobs:
            node.busy_since_s = now_s
        node.jobs[job.number] = job
        self.free(node)

    def release(self, node: Node, job: Job, now_s: float) -> None:
        """A job has left a node."""
        del node.jobs[job.number]
        if not node.jobs:
            self.busy_s += now_s - node.busy_since_s

    # -- facts -----------------------------------------------------------------------------------------------------

    def facts(self, now_s: float) -> tuple[WorkerFacts, FleetFacts]:
        """As ledger and SaladCloud would tell them."""
        # One pass, as this is what a simulation spends most of its time in.
        allocating = creating = running = ending = busy = draining_idle = draining_busy = 0
        for node in self.nodes.values():
            if node.state is State.STARTING:
                if node.allocated_s > now_s:
                    allocating += 1
                else:
                    creating += 1
                continue
            if node.state is State.RUNNING:
                running += 1
            else:
                ending += 1
            if node.jobs:
                busy += 1
                draining_busy += node.draining
            else:
                draining_idle += node.draining
        heard = running + ending
        return (
            WorkerFacts(heard, heard * self._slots, busy, draining_idle, draining_busy),
            FleetFacts(self._status, self._replicas, allocating, creating, running, ending, pending_change=False),
        )

    def _adjust(self, now_s: float) -> None:
        kept = [node for node in self.nodes.values() if node.state is not State.ENDING]
        for node in victims(kept, len(kept) - self._replicas, now_s) if len(kept) > self._replicas else ():
            self._end(node, now_s)
        for _ in range(self._replicas - len(kept)):
            allocating_s, starting_s = self._dice.start_s()
            self._made += 1
            node = Node(self._made, now_s + allocating_s, now_s + starting_s)
            self.nodes[node.number] = node
            self._on_start(node, node.up_s)

    def _end(self, node: Node, now_s: float) -> None:
        if node.state is State.STARTING:
            self._forget(node)
        elif node.state is State.RUNNING:
            node.state = State.ENDING
            self._on_ending(node, now_s + self._dice.ending_s())

    def _forget(self, node: Node) -> None:
        node.state = State.GONE
        self._draining -= node.draining
        del self.nodes[node.number]
