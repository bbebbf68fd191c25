r"""The states of a job, the one table of what may follow what, and why a job or an attempt ended.

    (draft) -> pending -> running -> completed
                  ^   \      |   \-> failed
                  |    \     |   \-> canceled
                  |     \----|-----> canceled
                  \----------/  interrupted, failed with tries left, or "run me again"

A draft is a later step of a Celery workflow whose definition waits in the ledger until Celery reaches it.
The ledger's Lua scripts make the transitions; this table is their specification, and tests compare the two.
"""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """Where a job stands."""

    DRAFT = "draft"
    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def ended(self) -> bool:
        """Whether nothing can follow."""
        return not TRANSITIONS[self]


class Phase(StrEnum):
    """What a running attempt is doing."""

    RESTORING = "restoring"
    EXECUTING = "executing"
    UPLOADING = "uploading"


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.DRAFT: frozenset({Status.PENDING, Status.CANCELED}),
    Status.PENDING: frozenset({Status.RUNNING, Status.CANCELED}),
    # running -> failed covers the last counted failure, total_timeout and poison.
    Status.RUNNING: frozenset({Status.PENDING, Status.COMPLETED, Status.FAILED, Status.CANCELED}),
    Status.COMPLETED: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELED: frozenset(),
}


class Outcome(StrEnum):
    """How one attempt ended."""

    COMPLETED = "completed"
    FAILURE = "failure"
    FREE = "free"  # a failure that a retry rule of the definition does not count
    INTERRUPTION = "interruption"
    CONTINUE = "continue"  # exit 75 after a new commit: neither a failure nor an interruption
    CANCELED = "canceled"


class Reason(StrEnum):
    """Why; what each means is in `kelpie_celery.reasons`."""

    DONE = "done"
    ADOPTED = "adopted"  # an earlier attempt had finished all but the report
    EXIT_CODE = "exit_code"
    SIGNAL = "signal"
    OOM = "oom"
    TIMEOUT = "timeout"
    TOTAL_TIMEOUT = "total_timeout"
    STALLED = "stalled"
    SETUP = "setup"
    DISK_FULL = "disk_full"
    NO_PROGRESS = "no_progress"  # exit 75 without a new commit
    POISONED = "poisoned"
    LEASE_EXPIRED = "lease_expired"
    WORKER_SHUTDOWN = "worker_shutdown"
    PREEMPTED = "preempted"  # the machine ended the command together with its worker
    STORAGE_UNAVAILABLE = "storage_unavailable"
    BROKER_UNAVAILABLE = "broker_unavailable"
    WORKER_ERROR = "worker_error"
    CHECKPOINTED = "checkpointed"  # exit 75 with a new commit
    ROLLED_BACK = "rolled_back"  # a user went back to an older checkpoint while the attempt ran
    CANCELED = "canceled"


def may_follow(before: Status, after: Status) -> bool:
    """Whether ``after`` is a legal next state of ``before``."""
    return after in TRANSITIONS[before]
