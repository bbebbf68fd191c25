"""The name, type and lifetime of every Redis key that the ledger owns.

The Lua scripts build the same names; ``lua/_common.lua`` lists them. Limits: one Redis, one database, no Redis
Cluster (a transition touches keys of one job, its group and the broker's list, which hash to different slots).
"""

from __future__ import annotations

GROUPS = "kelpie:groups"
"""Set of every container group that ever had a job; never expires."""

CONTROL_QUEUE = "kelpie.control"
"""The broker queue of the control worker."""

QUEUE_PREFIX = "kelpie."

PRIORITIES = range(10)
"""0 is the highest, as kombu's Redis transport has it."""

PRIORITY_SEPARATOR = ":"


def where(job_id: str) -> str:
    """String: the group of a job. Goes with the record."""
    return f"kelpie:where:{job_id}"


def group_prefix(group: str) -> str:
    """Prefix of everything that belongs to one container group."""
    return f"kelpie:g:{group}:"


def job(group: str, job_id: str) -> str:
    """Hash: the record. Deleted ``job_retention_s`` after the job's end; a draft by its own expiry."""
    return f"{group_prefix(group)}job:{job_id}"


def attempts(group: str, job_id: str) -> str:
    """List of JSON: the last 50 attempts. Goes with the record."""
    return f"{group_prefix(group)}attempts:{job_id}"


def index(group: str, name: str) -> str:
    """Sorted set of job ids: ``pending running delayed ended outbox created published:<priority>``."""
    return f"{group_prefix(group)}{name}"


def counts(group: str) -> str:
    """Hash: ended jobs by status."""
    return f"{group_prefix(group)}counts"


def queue_name(group: str) -> str:
    """The Celery queue of a container group."""
    return QUEUE_PREFIX + group


def group_of_queue(queue: str) -> str | None:
    """The container group that a queue serves; None for the control queue and foreign queues."""
    if queue == CONTROL_QUEUE or not queue.startswith(QUEUE_PREFIX):
        return None
    return queue.removeprefix(QUEUE_PREFIX)


def queue_list(group: str, priority: int) -> str:
    """The Redis list in which kombu keeps messages of one priority."""
    name = queue_name(group)
    return f"{name}{PRIORITY_SEPARATOR}{priority}" if priority else name
