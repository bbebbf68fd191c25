"""The name, type and lifetime of every Redis key that the ledger owns.

The Lua scripts build the same names; ``lua/_common.lua`` lists them. Limits: one Redis, one database, no Redis
Cluster (a transition touches keys of one job, its group and the broker's list, which hash to different slots).
"""

from __future__ import annotations

import hashlib

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


def output(group: str, job_id: str) -> str:
    """List: the last lines that the job's command wrote, at most 200 and 16 KiB. Goes with the record."""
    return f"{group_prefix(group)}output:{job_id}"


def index(group: str, name: str) -> str:
    """Sorted set of job ids: ``pending running delayed ended outbox created published:<priority>``.

    Of ``webhooks`` and ``webhooks_dead`` the members are ``<job id>:<status>``; of ``leftover`` see ``lua/tick.lua``.
    """
    return f"{group_prefix(group)}{name}"


def counts(group: str) -> str:
    """Hash: ended jobs by status."""
    return f"{group_prefix(group)}counts"


def tick(group: str) -> str:
    """Hash: the state of a group's maintenance: when it was last done, in all and by each limit of entries."""
    return f"{group_prefix(group)}tick"


BEAT_LOCK = "kelpie:beat::lock"
"""String: RedBeat's lock; held while a beat is up, and 15 s more."""

RULES = "kelpie:rules"
"""Hash: the scaling rule of each container group, as JSON, by the group's id; never expires."""


def line_digest(endpoint: str, bucket: str, prefix: str) -> str:
    """What names the line of a checkpoint prefix."""
    return hashlib.sha256(f"{endpoint}\n{bucket}\n{prefix}".encode()).hexdigest()[:32]


def line(digest: str) -> str:
    """Hash: the commits of one checkpoint prefix. Expires ``line_retention_s`` after it was last used."""
    return f"kelpie:line:{digest}"


def workers(group: str) -> str:
    """Sorted set: the group's workers, by their last sign of life. An hour of silence removes one."""
    return f"{group_prefix(group)}workers"


def worker(group: str, worker_id: str) -> str:
    """Hash: one worker, as ``lua/_fleet.lua`` says. Goes with its silence, at the latest after a day."""
    return f"{group_prefix(group)}worker:{worker_id}"


def streaks(group: str) -> str:
    """Sorted set: machines, by jobs in a row that failed there and succeeded elsewhere. Expires after a week unused."""
    return f"{group_prefix(group)}streaks"


def succeeded(group: str) -> str:
    """Sorted set: machines, by the time of their last success, or of their pardon by a user; a week back."""
    return f"{group_prefix(group)}succeeded"


def moves(group: str) -> str:
    """Sorted set: the reallocations of the last hour. Expires with them."""
    return f"{group_prefix(group)}moves"


def machines(group: str) -> str:
    """Sorted set: machines, by the last sign of life of a worker there; a week back."""
    return f"{group_prefix(group)}machines"


def machine(group: str, machine_id: str) -> str:
    """Hash: what a machine did, for people. Expires a week after its last attempt's end."""
    return f"{group_prefix(group)}machine:{machine_id}"


def bans(group: str, machine_id: str) -> str:
    """Sorted set: jobs that a machine is not to have, by the end of the ban. Expires with the last of them."""
    return f"{group_prefix(group)}bans:{machine_id}"


def decisions(group: str) -> str:
    """List of JSON: the scaler's last 500 decisions and deeds, the newest first."""
    return f"{group_prefix(group)}decisions"


def scaler(group: str) -> str:
    """Hash: what the scaler remembers of a group: ``memory``, ``closed``, ``unsure``, ``name``, ``missing`` ..."""
    return f"{group_prefix(group)}scaler"


def scaling(group: str) -> str:
    """String: who scales the group now; expires with the holder's time."""
    return f"{group_prefix(group)}scaling"


def bucket(name: str) -> str:
    """String: when a bucket of tokens is full again. Expires when it is."""
    return f"kelpie:bucket:{name}"


def stats(group: str, day: int) -> str:
    """Hash: sums of one day since the epoch, ``<hour>:<what>``. Expires 90 days after it was last added to."""
    return f"{group_prefix(group)}stats:{day}"


def totals(group: str) -> str:
    """Hash: the same sums since ever, by what; never expires."""
    return f"{group_prefix(group)}totals"


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
