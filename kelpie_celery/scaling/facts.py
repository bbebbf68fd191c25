"""What a scaling decision is made from: a group's queue, its workers, its fleet, and what was decided before.

Limits: plain values of one moment; who reads them from the ledger and from SaladCloud is elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class QueueFacts:
    """The work of one container group, by the ledger.

    Attributes:
        pending: Jobs that may start now.
        delayed: Jobs that wait out the pause before a retry.
        running: Jobs with a live lease.
        oldest_pending_s: How long the oldest pending job has waited; 0 when there is none.
        next_delayed_s: Until the first delayed job is due; None without one.
        last_activity_s: Since a job was last pending or running; None when there never was one.
        pending_by_priority: Pending jobs by priority, of which 0 is the highest.
        lapsed: Jobs whose lease is over, since their node vanished: they will be pending in a moment.
    """

    pending: int
    delayed: int
    running: int
    oldest_pending_s: float
    next_delayed_s: float | None
    last_activity_s: float | None
    pending_by_priority: Mapping[int, int]
    lapsed: int = 0


class GroupStatus(StrEnum):
    """The status of a container group, in SaladCloud's words."""

    PENDING = "pending"
    RUNNING = "running"
    STOPPED = "stopped"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DEPLOYING = "deploying"


@dataclass(frozen=True, slots=True)
class FleetFacts:
    """The nodes of one container group, by SaladCloud.

    Attributes:
        status: Of the group. `RUNNING` is sticky: it says nothing of how many instances run.
        replicas: The desired count, as SaladCloud has it; it survives a stop.
        allocating: Instances that look for a node; not billed.
        creating: Instances that fetch or unpack the image; not billed.
        running: Instances whose container was started; billed.
        stopping: Instances that were told to stop.
        pending_change: A change of the group is not on all instances yet.
        autoscaled_by: What else sets the count there, such as "queue autoscaler" or "scheduled scaling".
    """

    status: GroupStatus
    replicas: int
    allocating: int
    creating: int
    running: int
    stopping: int
    pending_change: bool
    autoscaled_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """The workers of one container group, by their signs of life in the ledger.

    Attributes:
        workers: Heard of lately.
        slots: The sum over them.
        busy: Workers with at least one running job.
        draining_idle: Told to drain, without a job: they know, and cost nothing to delete.
        draining_busy: Told to drain, with a job.
        draining_unsettled: Told to drain, without a job: they claim nothing any more, and have not said yet that they
            know. One that vanished a moment ago never will.
        withdrawn: Told by a person to take nothing more (``celery control drain``), with a slot free, and not draining.
        withdrawn_slots: Their free slots.
    """

    workers: int
    slots: int
    busy: int
    draining_idle: int
    draining_busy: int
    draining_unsettled: int = 0
    withdrawn: int = 0
    withdrawn_slots: int = 0

    @property
    def draining(self) -> int:
        """All that were told to drain."""
        return self.draining_idle + self.draining_busy + self.draining_unsettled


@dataclass(frozen=True, slots=True)
class Memory:
    """What a decision needs to know of those before it; kept in the ledger as JSON.

    Attributes:
        last_scale_out_s: When the count was last raised, in epoch seconds.
        last_scale_in_s: When it was last lowered, or the group stopped.
        surplus_since_s: Since when there are more nodes than are needed; None while there are not.
        drain: How many workers were last asked to be draining.
        slots: Slots that a worker last reported, for the time when there are no workers to ask.
        wanted_lately: Pairs of an epoch second and how many nodes were wanted then, within the cooldown, the newest
            last, and without those that a later one reached.
    """

    last_scale_out_s: float | None = None
    last_scale_in_s: float | None = None
    surplus_since_s: float | None = None
    drain: int = 0
    slots: int | None = None
    wanted_lately: tuple[tuple[float, int], ...] = ()
