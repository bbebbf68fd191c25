"""What is known of a job and of its container group at one moment: what every sentence of `explain` rests on.

Times are seconds since the epoch by Redis's clock. Limits: plain values; who reads them is elsewhere
(`kelpie_celery.ledger.looks`). None stands for what is not known, or not there, as each attribute says.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kelpie_celery.ledger.records import JobRecord
from kelpie_celery.ledger.types import GroupCounts
from kelpie_celery.lifecycle import Status


@dataclass(frozen=True)
class WorkersSeen:
    """The workers of a group that were heard of in the last ``alive_s`` seconds.

    Attributes:
        heard: How many.
        looked_at: How many of them the other counts are about: the ones heard of last, 500 at most.
        idle: Without a job, and not draining.
        busy: With a job in their process, draining ones too.
        draining: Told to take no more jobs.
        free_slots: Of those that do not drain.
        machines: Their machines.
        last_heard: When a worker on any machine last gave a sign of life; None when none did within a week.
    """

    heard: int = 0
    looked_at: int = 0
    idle: int = 0
    busy: int = 0
    draining: int = 0
    free_slots: int = 0
    machines: frozenset[str] = frozenset()
    last_heard: float | None = None
    alive_s: float = 30.0


@dataclass(frozen=True)
class RuleSeen:
    """What matters of a scaling rule."""

    paused: bool
    min_replicas: int
    max_replicas: int


@dataclass(frozen=True)
class DecisionSeen:
    """The scaler's last word about a group.

    Attributes:
        at: When it was last said; the facts in it are as old.
        kind: ``decision``, ``error`` (SaladCloud did not answer as it should) or ``suspended`` (the rule was paused).
        action: ``nothing``, ``start``, ``stop``, ``set_replicas``, ``drain``, ``undrain``; empty for other kinds.
        reasons: In words, the deciding one first.
        status: Of the container group, in SaladCloud's words; empty when not known.
        replicas: The count that the group was to have when it was looked at; None when not known.
        wanted: The count that was decided on; None when not known.
        drain: How many workers were to drain; None when not known.
        allocating: Instances that looked for a node; this and what follows None when not known.
        creating: Instances that fetched the image.
        running: Instances whose container was started.
    """

    at: float
    kind: str
    action: str = ""
    reasons: tuple[str, ...] = ()
    status: str = ""
    replicas: int | None = None
    wanted: int | None = None
    drain: int | None = None
    allocating: int | None = None
    creating: int | None = None
    running: int | None = None


@dataclass(frozen=True)
class GroupSeen:
    """A container group.

    Attributes:
        rule: None when it has none, or when that is not known.
        rule_known: Whether the rules could be read: a group's own Redis user may not.
        decision: None when the scaler never said anything of it.
        closed_until: Until when no worker of the group takes a job, since it is being stopped; None when it is not.
        maintained: When anybody last did maintenance of the group; None when nobody did.
        control: When the control worker last did; None when it never did.
        beat: Whether a beat holds its lock; None when that is not known.
        spoilt: Its keys hold what they should not: but for the rule nothing is known of it.
        nearest: Another group with workers or a rule, whose name is near this one's; empty for none.
    """

    group: str
    counts: GroupCounts = field(default_factory=GroupCounts)
    workers: WorkersSeen = field(default_factory=WorkersSeen)
    rule: RuleSeen | None = None
    rule_known: bool = True
    decision: DecisionSeen | None = None
    closed_until: float | None = None
    maintained: float | None = None
    control: float | None = None
    beat: bool | None = None
    spoilt: bool = False
    nearest: str = ""


@dataclass(frozen=True)
class StepSeen:
    """A later step of a workflow, which Celery has not reached.

    Attributes:
        waits_for: Jobs that lead to it and have not ended.
        first: The job that its part of the workflow began with; empty when that is not one.
        first_status: Of that job; None when it is not known.
        forgotten_in_s: When it is forgotten if nothing leads to it; None while something does.
    """

    waits_for: int = 0
    first: str = ""
    first_status: Status | None = None
    forgotten_in_s: float | None = None


@dataclass(frozen=True)
class JobSeen:
    """A job.

    Attributes:
        now: When it was looked at.
        ahead: Jobs before it in its queue; None when it is in none.
        ahead_higher: Those of them that have a higher priority.
        pending_since: Since when it is pending, or when its try is due.
        published: When its message last went to the queue; None when it is in no queue.
        bounces: How often it was offered in vain to machines that failed it, since it is pending.
        bans: Until when a machine may not have it, as long as others may.
        lease_until: When the lease of a running job ends; None when it has none.
        lease_s: How long that lease is after each heartbeat.
        launched: When the command of the running attempt was launched; None before.
        exited: When the command had exited and its outputs began to go up; None before.
        attempt_started: When the running attempt was granted.
        step: Of a draft.
        ban_yields_s: A ban yields to a job that has waited so long.
        scale_interval_s: How often the scaler is to look, by the settings of whoever asks.
    """

    now: float
    record: JobRecord
    group: GroupSeen
    ahead: int | None = None
    ahead_higher: int = 0
    pending_since: float | None = None
    published: float | None = None
    bounces: int = 0
    bans: dict[str, float] = field(default_factory=dict)
    lease_until: float | None = None
    lease_s: float | None = None
    launched: float | None = None
    exited: float | None = None
    attempt_started: float | None = None
    step: StepSeen | None = None
    ban_yields_s: float = 300.0
    scale_interval_s: float = 60.0
