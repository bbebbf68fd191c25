"""Nodes and jobs of a simulation, and which nodes go when the count is lowered.

Limits: what happens to them, and when, is the engine's.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto

_HEARTBEAT_S = 30.0


class State(Enum):
    """Of a node."""

    STARTING = auto()
    RUNNING = auto()
    ENDING = auto()
    GONE = auto()


class Job:
    """A job under way.

    Attributes:
        left_s: What is still to be computed.
        waited_s: How long it has been pending, in all.
        queued_s: Since when it is pending, or was.
        began_s: When the attempt that runs began.
        tries: Attempts so far; tells the ends of attempts apart.
        pending: Waits to be claimed.
    """

    __slots__ = ("began_s", "left_s", "number", "pending", "priority", "queued_s", "tries", "waited_s")

    def __init__(self, number: int, duration_s: float, priority: int) -> None:
        self.number, self.left_s, self.priority = number, duration_s, priority
        self.queued_s, self.waited_s, self.began_s, self.tries, self.pending = 0.0, 0.0, 0.0, 0, False


class Node:
    """One instance, from the moment that it was asked for.

    Attributes:
        allocated_s: When it is found.
        up_s: When its container runs, and is billed from.
        busy_since_s: Since when it has at least one job.
        jobs: Jobs that it runs.
        draining: It claims nothing any more.
    """

    __slots__ = ("allocated_s", "busy_since_s", "draining", "jobs", "number", "queued", "state", "up_s")

    def __init__(self, number: int, allocated_s: float, up_s: float) -> None:
        self.number, self.allocated_s, self.up_s, self.state = number, allocated_s, up_s, State.STARTING
        self.jobs: dict[int, Job] = {}
        self.busy_since_s, self.draining, self.queued = 0.0, False, False

    def deletion_cost(self, now_s: float) -> float:
        """As a worker sets it: 0 draining, 1 idle, 2 and rising with the heartbeats of its job."""
        if not self.jobs:
            return 0.0 if self.draining else 1.0
        return 2.0 + (now_s - self.busy_since_s) // _HEARTBEAT_S


def victims(nodes: Iterable[Node], count: int, now_s: float) -> list[Node]:
    """Those that go first: not yet running, the youngest first; then the lowest deletion cost."""

    def rank(node: Node) -> tuple[float, float]:
        starting = node.state is State.STARTING
        return (-1.0 if starting else node.deletion_cost(now_s), -node.up_s)

    return sorted(nodes, key=rank)[:count]
