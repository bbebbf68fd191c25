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
    """Durations that the ledger works with, all in seconds."""

    min_lease_s: float = 30.0
    outbox_lease_s: float = 10.0
    job_retention_s: float = 30 * 86400.0
    ban_ttl_s: float = 86400.0
    ban_yield_s: float = 300.0
    machine_alive_s: float = 30.0
    tick_interval_s: float = 1.0
    watermark_slack_s: float = 2.0
    empty_list_s: float = 5.0
    poison_deaths: int = 10
    poison_window_s: float = 600.0


@dataclass(frozen=True)
class NewJob:
    """Everything that ``submit`` writes.

    Attributes:
        definition: JSON; empty when the job is a draft whose definition the ledger holds.
        message: kombu JSON in which ``@KELPIE_TAG@`` stands for the delivery tag.
        parents: JSON list: results of earlier steps of a workflow.
        drafts: Keys of drafts that this job's message refers to.
        submission: A nonce, so that a submit may be repeated when its answer was lost.
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
    """A claim that was granted; ``ran_s`` is how long the job's commands ran in earlier attempts, in seconds."""

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


@dataclass(frozen=True)
class Ended:
    """The job has ended, and Celery has not been told: replay its bookkeeping."""

    status: Status
    result: Any
    reason: str
    message: str


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
class Renewal:
    """A heartbeat that was accepted."""

    cancel: bool
    ledger_now: float
    lease_s: float


@dataclass(frozen=True)
class Ending:
    """How an attempt ended, as its worker saw it.

    Attributes:
        facts: Additional facts for the attempts' history (exit code, bytes, seconds); values JSON can hold.
        final: A failure that is not retried whatever ``max_failures`` says.
        delay_s: How long a retry waits.
    """

    outcome: Outcome
    reason: Reason
    message: str = ""
    result: Any = None
    facts: dict[str, Any] = field(default_factory=dict)
    final: bool = False
    delay_s: float = 0.0


@dataclass(frozen=True)
class Tick:
    """What one round of maintenance did; ``outbox`` holds the ids whose bookkeeping the caller replays now."""

    now: float
    reaped: int = 0
    promoted: int = 0
    republished: int = 0
    expired: int = 0
    outbox: tuple[str, ...] = ()


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
