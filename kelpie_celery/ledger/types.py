"""What goes into the ledger and what comes out: the words of its transitions.

Limits: plain values only; nothing here talks to Redis.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from kelpie_celery.lifecycle import Outcome, Reason, Status


@dataclass(frozen=True)
class Timings:
    """Durations that the ledger works with, all in seconds, and how often something may happen."""

    min_lease_s: float = 30.0
    outbox_lease_s: float = 10.0
    job_retention_s: float = 30 * 86400.0
    line_retention_s: float = 90 * 86400.0
    ban_ttl_s: float = 86400.0
    ban_yield_s: float = 300.0
    machine_alive_s: float = 30.0
    tick_interval_s: float = 1.0
    watermark_slack_s: float = 2.0
    empty_list_s: float = 5.0
    poison_deaths: int = 10
    poison_window_s: float = 600.0
    drain_holds_s: float = 300.0
    """A drain that the scaler does not renew for so long is void: without a scaler, workers work."""
    stop_takes_s: float = 600.0
    """SaladCloud takes up to "several minutes" to end instances; who lives on was spared."""
    shrink_takes_s: float = 120.0
    """The same once it says that it has nothing left to remove; containers were seen to run on for 80 s."""
    max_free: int = 20
    retry_max_s: float = 600.0


@dataclass(frozen=True)
class NewJob:
    """Everything that ``submit`` writes.

    Attributes:
        definition: JSON; empty when the job is a draft whose definition the ledger holds.
        message: kombu JSON in which ``@KELPIE_TAG@`` stands for the delivery tag.
        parents: JSON list: results of earlier steps of a workflow.
        drafts: Keys of drafts that this job's message refers to.
        submission: A nonce, so that a submit may be repeated when its answer was lost.
        webhook: The URL that is told of the job's statuses; empty for none.
    """

    job_id: str
    group: str
    definition: str
    message: str
    priority: int
    heartbeat_s: float
    max_failures: int
    digest: str = ""
    parents: str = "[]"
    delay_s: float = 0.0
    idempotency_key: str = ""
    drafts: tuple[str, ...] = ()
    name: str = ""
    submission: str = ""
    webhook: str = field(default="", repr=False)


@dataclass(frozen=True)
class Submitted:
    """The answer to a submit: ``created``, ``exists`` or ``conflict``, and the id of the job that holds the place."""

    what: str
    job_id: str
    status: Status


@dataclass(frozen=True)
class FencingToken:
    """Proof of being the one attempt that runs a job: number and nonce, since a number alone may be given twice."""

    job_id: str
    attempt: int
    nonce: str


@dataclass(frozen=True)
class Granted:
    """A claim that was granted.

    Attributes:
        ran_s: How long the job's commands ran in earlier attempts, in seconds.
        finished: The result (JSON) of an earlier attempt that succeeded and could not report it; empty without one.
    """

    token: FencingToken
    lease_s: float
    ledger_now: float
    definition: str = field(repr=False)
    parents: str
    num_failures: int
    created: float
    started: float
    commit: str
    continues: int
    ran_s: float = 0.0
    finished: str = field(default="", repr=False)


@dataclass(frozen=True)
class Ended:
    """The job has ended, and Celery has not been told: replay its bookkeeping."""

    status: Status
    result: Any
    reason: str
    message: str


REFUSED_DRAINING = "draining"
"""Why a claim is refused to a worker that drains; its message was published again."""


@dataclass(frozen=True)
class Refused:
    """Nothing to do with this message: a duplicate, or somebody else's."""

    why: str


@dataclass(frozen=True)
class Banned:
    """This machine failed the job before; it is offered again, to others first, after ``pause_s``."""

    pause_s: float


Claim = Granted | Ended | Refused | Banned


@dataclass(frozen=True)
class WorkerSign:
    """What a worker process tells of itself with each sign of life.

    Attributes:
        id: Of this process, never of another one: a container that starts again is another worker.
        name: Its Celery host name.
        instance: SaladCloud's id of the container run; empty when unknown.
        slots: Commands that it runs at once.
        settled: It knows that it drains, and SaladCloud knows that it may go first, or cannot be told.
        untold: SaladCloud may take it for what it is not: a busy one for a drained one, or the other way about.
        by_hand: A person had it take nothing more; it will not, whatever the scaler does.
    """

    id: str
    name: str
    instance: str
    slots: int
    settled: bool = False
    untold: bool = False
    by_hand: bool = False


@dataclass(frozen=True)
class Pulsed:
    """The answer to a pulse.

    Attributes:
        cancel: Ids of the jobs that are to be canceled.
        draining: The worker is to claim nothing any more.
        streak: How many jobs in a row failed on its machine and succeeded elsewhere.
    """

    cancel: tuple[str, ...] = ()
    draining: bool = False
    streak: int = 0


@dataclass(frozen=True)
class Renewal:
    """A heartbeat that was accepted."""

    cancel: bool
    ledger_now: float
    lease_s: float


@dataclass(frozen=True)
class NewOutput:
    """What is new of the last lines that an attempt's command wrote.

    Attributes:
        lines: The new ones, oldest first; at least one, at most 200.
        last: The number of the last one among all that the command wrote; it counts from 1.
        kept: How many of the last lines there are to be in all, older ones included.
    """

    lines: tuple[str, ...] = field(repr=False)
    last: int
    kept: int


@dataclass(frozen=True)
class Ending:
    """How an attempt ended, as its worker saw it.

    Attributes:
        facts: Additional facts for the attempts' history (exit code, bytes, seconds); values JSON can hold.
        final: A failure that is not retried whatever ``max_failures`` says.
        delay_s: How long a retry waits.
        output: What the command wrote last, as far as the ledger has not heard of it.
    """

    outcome: Outcome
    reason: Reason
    message: str = ""
    result: Any = None
    facts: dict[str, Any] = field(default_factory=dict)
    final: bool = False
    delay_s: float = 0.0
    output: NewOutput | None = field(default=None, repr=False)


@dataclass(frozen=True)
class LineAddress:
    """What a line of commits belongs to; ``endpoint`` is without credentials, and empty for AWS."""

    endpoint: str
    bucket: str
    prefix: str

    @property
    def url(self) -> str:
        """``s3://bucket/prefix``."""
        return f"s3://{self.bucket}/{self.prefix}"


@dataclass(frozen=True)
class NewCommit:
    """A commit whose manifest is on the storage, and that the ledger has not accepted yet.

    Attributes:
        id: ``<generation, 10 digits>-<attempt>-<nonce[:8]>``, the same in all lines of the commit.
        generation: 1 + the highest known in ledger or listing over all lines of the job.
        manifest: Its key.
        why: ``quiet``, ``report``, ``marker``, ``exit``, ``sigterm``, ``rollback``.
        bytes: Of all its files.
        sent_bytes: What of them was uploaded for it.
        base: Id of the line's head as the attempt read it before it restored; empty when the line had none. The same
            for all commits of an attempt. The ledger refuses the first one when the head has moved since.
    """

    line: LineAddress
    id: str
    generation: int
    manifest: str
    why: str
    files: int
    bytes: int
    sent_bytes: int
    base: str = ""


@dataclass(frozen=True)
class CommitEntry:
    """A commit that the ledger accepted, at ``at`` by its clock."""

    id: str
    generation: int
    manifest: str
    job_id: str
    attempt: int
    why: str
    at: float
    files: int
    bytes: int
    sent_bytes: int


@dataclass(frozen=True)
class Dropped:
    """A commit that is not kept since ``at``, and whose objects may be there still."""

    commit: CommitEntry
    at: float


@dataclass(frozen=True)
class Line:
    """The commits of one checkpoint prefix at the moment ``now``, by the ledger's clock.

    Attributes:
        holder: The job that committed last.
        holder_lives: It is pending or running: no other job may commit.
        head: The newest commit, which a restore gets.
        kept: The commits that can be restored, oldest first; the head is the last one.
        dropped: Those that cannot, in the order in which they were dropped, at most 1000.
        generation: The highest that the line ever had; 0 for a line without commits.
    """

    address: LineAddress
    holder: str | None
    holder_lives: bool
    head: CommitEntry | None
    kept: tuple[CommitEntry, ...]
    dropped: tuple[Dropped, ...]
    generation: int
    now: float


@dataclass(frozen=True)
class Tick:
    """What one round of maintenance did.

    Attributes:
        outbox: The ids whose bookkeeping the caller replays now.
        lost: The jobs that were reaped: nobody but the caller can tell Celery's listeners of it.
    """

    now: float
    reaped: int = 0
    promoted: int = 0
    republished: int = 0
    expired: int = 0
    outbox: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


@dataclass(frozen=True)
class GroupCounts:
    """How many jobs of a group stand where; ``delayed`` ones are part of ``pending``."""

    pending: int = 0
    delayed: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    canceled: int = 0


def compact(value: Any) -> str:
    """JSON without white space."""
    return encodable(json.dumps(value, separators=(",", ":"), ensure_ascii=False))


def encodable(words: str) -> str:
    """Words that UTF-8 can hold: what a command printed, or called its files, may carry lone surrogates."""
    return words.encode("utf-8", "replace").decode()
