"""Reads and cancels over many jobs, in pipelines over the ledger's indexes.

Limits: redis-py's errors pass; the caller maps them (``kelpie_celery._calls``). Ended jobs have one index for
all of their statuses: to list the failed ones alone it is walked page by page, until as many are found as the
group's counts say that there are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kelpie_celery.ledger import keys
from kelpie_celery.ledger.scripts import register, text
from kelpie_celery.ledger.types import encodable
from kelpie_celery.lifecycle import Phase, Status

if TYPE_CHECKING:
    from redis import Redis

PAGE = 500

# The score of a pending job is this much for each step of priority, and the time since when it is pending.
_PRIORITY_STEP = 100_000_000_000

_GLANCED = (
    "status",
    "phase",
    "attempt",
    "machine",
    "num_failures",
    "num_interruptions",
    "progress",
    "cancel",
)

Scored = tuple[float, str]


@dataclass(frozen=True)
class Glance:
    """The little of a job's record that one follows while waiting.

    Attributes:
        progress: What the job said of itself, usually 0 to 1.
        message: The same in words.
    """

    id: str
    status: Status
    phase: Phase | None = None
    attempt: int = 0
    machine_id: str | None = None
    num_failures: int = 0
    num_interruptions: int = 0
    progress: float | None = None
    message: str | None = None
    cancel_requested: bool = False


class Glances:
    """Looks at many jobs again and again; where a job's record is, is asked once."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._groups: dict[str, str] = {}

    def look(self, job_ids: Sequence[str]) -> dict[str, Glance]:
        """A glance of each job that exists, in the order asked for."""
        found: dict[str, Glance] = {}
        for page in _pages(job_ids):
            self._find(page)
            found |= self._look(page)
        return found

    def _find(self, page: Sequence[str]) -> None:
        unknown = [job_id for job_id in page if job_id not in self._groups]
        if unknown:
            groups = self._redis.mget([keys.where(job_id) for job_id in unknown])
            self._groups |= {i: text(g) for i, g in zip(unknown, groups, strict=True) if g}

    def _look(self, page: Sequence[str]) -> dict[str, Glance]:
        known = [job_id for job_id in page if job_id in self._groups]
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in known:
                pipe.hmget(keys.job(self._groups[job_id], job_id), _GLANCED)
            rows = pipe.execute()
        return {i: _glance(i, row) for i, row in zip(known, rows, strict=True) if row[0]}


def _glance(job_id: str, row: Sequence[Any]) -> Glance:
    fields = {name: text(value) for name, value in zip(_GLANCED, row, strict=True) if value is not None}
    status = Status(fields["status"])
    progress, message = _said(fields.get("progress", ""))
    phase = fields.get("phase")
    return Glance(
        id=job_id,
        status=status,
        phase=Phase(phase) if phase and status is Status.RUNNING else None,
        attempt=int(fields.get("attempt", 0)),
        machine_id=fields.get("machine"),
        num_failures=int(fields.get("num_failures", 0)),
        num_interruptions=int(fields.get("num_interruptions", 0)),
        progress=progress,
        message=message,
        cancel_requested="cancel" in fields,
    )


def _said(progress: str) -> tuple[float | None, str | None]:
    """Progress and message of a report; whatever else a worker wrote counts as nothing."""
    try:
        said = json.loads(progress) if progress else None
    except ValueError:
        return None, None
    if not isinstance(said, Mapping):
        return None, None
    number: Any = said.get("progress")
    words = said.get("message")
    # A bool is an int to Python.
    is_number = isinstance(number, int | float) and number is not True and number is not False
    return (float(number) if is_number else None), (words if isinstance(words, str) else None)


def newest_ids(
    redis: Redis, groups: Sequence[str], status: Status | None, limit: int, *, newest_first: bool
) -> list[str]:
    """Ids of the newest (or oldest) jobs of some groups: at most ``limit``, in that order.

    New is judged by creation; of pending jobs by since when they are pending, or when their retry is due; of
    ended ones by their end, when one ended status is asked for.
    """
    found: list[Scored] = []
    for group in groups:
        found += _of_group(redis, group, status, limit, newest_first)
    found.sort(reverse=newest_first)
    return [job_id for _, job_id in found[:limit]]


def _of_group(redis: Redis, group: str, status: Status | None, limit: int, newest_first: bool) -> list[Scored]:
    if status is None:
        return _range(redis, group, "created", 0, limit - 1, newest_first)
    if status is Status.PENDING:
        return _pending(redis, group, limit, newest_first)
    if status is Status.RUNNING:
        return _running(redis, group, limit, newest_first)
    return _ended(redis, group, status, limit, newest_first)


def _range(redis: Redis, group: str, index: str, start: int, stop: int, newest_first: bool) -> list[Scored]:
    rows: Any = redis.zrange(keys.index(group, index), start, stop, desc=newest_first, withscores=True)
    return [(float(score), text(job_id)) for job_id, score in rows]


def _pending(redis: Redis, group: str, limit: int, newest_first: bool) -> list[Scored]:
    """The index is ordered by priority, then age: the newest of each priority are candidates."""
    name = keys.index(group, "pending")
    with redis.pipeline(transaction=False) as pipe:
        for priority in keys.PRIORITIES:
            low, high = str(priority * _PRIORITY_STEP), f"({(priority + 1) * _PRIORITY_STEP}"
            if newest_first:
                pipe.zrevrangebyscore(name, high, low, start=0, num=limit, withscores=True)
            else:
                pipe.zrangebyscore(name, low, high, start=0, num=limit, withscores=True)
        rows = pipe.execute()
    pending = [
        (float(score) - priority * _PRIORITY_STEP, text(job_id))
        for priority, found in zip(keys.PRIORITIES, rows, strict=True)
        for job_id, score in found
    ]
    return pending + _range(redis, group, "delayed", 0, limit - 1, newest_first)


def _running(redis: Redis, group: str, limit: int, newest_first: bool) -> list[Scored]:
    """The index is ordered by lease expiry; as many as a group has slots, they are ordered by creation here."""
    indexes = {keys.index(group, "created"): 1.0, keys.index(group, "running"): 0.0}
    rows: Any = redis.zinter(indexes, withscores=True)
    found = sorted(((float(score), text(job_id)) for job_id, score in rows), reverse=newest_first)
    return found[:limit]


def _ended(redis: Redis, group: str, status: Status, limit: int, newest_first: bool) -> list[Scored]:
    count = redis.hget(keys.counts(group), status)
    wanted = min(limit, int(text(count)) if count else 0)
    found: dict[str, float] = {}
    start = 0
    while len(found) < wanted:
        page = _range(redis, group, "ended", start, start + PAGE - 1, newest_first)
        if not page:
            break
        found |= {job_id: ended for ended, job_id in _with_status(redis, group, page, status)}
        start += PAGE
    return [(ended, job_id) for job_id, ended in found.items()]


def _with_status(redis: Redis, group: str, page: Sequence[Scored], status: Status) -> Iterator[Scored]:
    with redis.pipeline(transaction=False) as pipe:
        for _, job_id in page:
            pipe.hget(keys.job(group, job_id), "status")
        rows = pipe.execute()
    for entry, row in zip(page, rows, strict=True):
        if row and text(row) == status:
            yield entry


def cancel_all(redis: Redis, job_ids: Sequence[str], why: str, retention_s: float) -> list[str]:
    """Cancel in one pipeline; for each id what ``Ledger.cancel`` answers, or ``unknown``."""
    if not job_ids:
        return []
    script = register(redis)["cancel"]
    with redis.pipeline(transaction=False) as pipe:
        for job_id in job_ids:
            script(keys=[], args=[job_id, encodable(why), int(retention_s)], client=pipe)
        return [text(row[0]) for row in pipe.execute()]


def all_running(redis: Redis, group: str) -> list[str]:
    """Every running job of a group, at one moment: renewals move entries, so paging would miss some."""
    return [text(job_id) for job_id in redis.zrange(keys.index(group, "running"), 0, -1)]


def next_pending(redis: Redis, group: str, index: str, skip: int) -> list[str]:
    """A page of ``pending`` or ``delayed`` after the first ``skip`` entries."""
    return [text(job_id) for job_id in redis.zrange(keys.index(group, index), skip, skip + PAGE - 1)]


def _pages(job_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for at in range(0, len(job_ids), PAGE):
        yield job_ids[at : at + PAGE]
