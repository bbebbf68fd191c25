"""The ledger's answers to "why": a job and its group as they are at one moment, in a bounded number of reads.

A job's record, its place in the queue and its lease are of one moment. Limits: it changes nothing; a place costs
O(log n) of a queue of n jobs; of a group's workers the 500 that were heard of last are looked at, of its decisions the
last 20; what is spoilt in one group keeps no other from being told. What this Redis user may not read (a group's own
user sees no rules, no other group) is told as not known.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoPermissionError, RedisError

from kelpie_celery._suggest import closest
from kelpie_celery.errors import JobError
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.calls import Calls, mapped_errors, no_such_job
from kelpie_celery.ledger.records import JobRecord, parse_record
from kelpie_celery.ledger.scripts import text
from kelpie_celery.ledger.types import GroupCounts
from kelpie_celery.lifecycle import Status
from kelpie_celery.why.facts import DecisionSeen, GroupSeen, JobSeen, RuleSeen, StepSeen, WorkersSeen

if TYPE_CHECKING:
    from redis.client import Pipeline

WORKERS_LOOKED_AT = 500
_DECISIONS = 20
_PRIORITY_STEP = 100_000_000_000
_WORKERS_LIMIT = "last:10"
"""The turns that workers have at maintenance: `maintenance.Maintainer.tick` asks for ten entries a step."""

_BRIEF = (
    "status", "phase", "name", "priority", "created", "started", "ended_at", "heartbeat_at", "attempt", "machine",
    "worker", "num_failures", "num_free", "num_interruptions", "num_commits", "max_failures", "cancel", "reason",
    "message_text", "progress", "transfer", "committed_at", "committed_in", "attempt_started",
)  # fmt: skip
_GROUP_READS = 10


class Looks(Calls):
    """Jobs and groups, for people who ask how they stand."""

    def look_at(self, job_id: str, *, scale_interval_s: float = 60.0) -> JobSeen:
        """Everything that tells why a job is where it is.

        Args:
            job_id: The job; a later step of a workflow, which is no job yet, is answered too.
            scale_interval_s: How often the scaler is to look.

        Raises:
            JobNotFound: No record has this id.
        """
        with mapped_errors(f"find job {job_id}"):
            found = self.redis.get(keys.where(job_id))
        if not found:
            raise no_such_job(job_id)
        group, now = text(found), self.server_time()
        with mapped_errors(f"look at job {job_id}"), self.redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(keys.job(group, job_id))
            pipe.zscore(keys.index(group, "delayed"), job_id)
            pipe.lrange(keys.attempts(group, job_id), 0, -1)
            pipe.zscore(keys.index(group, "pending"), job_id)
            pipe.zscore(keys.index(group, "running"), job_id)
            pipe.ttl(keys.job(group, job_id))
            fields, due, history, score, lease, ttl_s = pipe.execute()
        h = {text(name): text(value) for name, value in fields.items()}
        if "status" not in h:
            raise no_such_job(job_id)
        with _refusing_spoilt(job_id):
            record = parse_record(job_id, group, h, [text(entry) for entry in history], due)
            facts = _facts(h, now)
        waits = score is not None and record.status is Status.PENDING
        ahead, higher = self._ahead(group, record.priority, score) if waits else (None, 0)
        return JobSeen(
            now=now, record=record, group=self.look_at_groups([group], now, suggest=True)[0],
            ahead=ahead, ahead_higher=higher,
            published=self._published(group, record.priority, job_id) if waits else None, lease_until=lease,
            step=self._step(h, int(ttl_s)) if record.status is Status.DRAFT else None,
            ban_yields_s=self.timings.ban_yield_s, scale_interval_s=scale_interval_s, **facts,
        )  # fmt: skip

    # -- many jobs ------------------------------------------------------------------------------------------------

    def brief(self, group_of: Mapping[str, str]) -> list[JobRecord]:
        """The records that exist of these jobs, told by group, without definitions and histories."""
        with mapped_errors(f"read {len(group_of)} records"), self.redis.pipeline(transaction=False) as pipe:
            for job_id, group in group_of.items():
                pipe.hmget(keys.job(group, job_id), _BRIEF)
                pipe.zscore(keys.index(group, "delayed"), job_id)
            rows = iter(_answers(pipe))
        found = []
        for job_id, group in group_of.items():
            values, due = next(rows), next(rows)
            with suppress(*_SPOILT):
                h = {name: text(value) for name, value in zip(_BRIEF, values, strict=True) if value is not None}
                if "status" in h:
                    found.append(parse_record(job_id, group, h, (), due))
        return found

    def groups_of(self, job_ids: Sequence[str]) -> dict[str, str]:
        """The container group of each of these jobs that exists."""
        if not job_ids:
            return {}
        with mapped_errors(f"find {len(job_ids)} jobs"):
            groups = self.redis.mget([keys.where(job_id) for job_id in job_ids])
        return {job_id: text(group) for job_id, group in zip(job_ids, groups, strict=True) if group}

    def ends_of_queues(self, groups: Sequence[str], most: int) -> dict[str, str]:
        """By job its group: of each queue the next ``most``, the next retries, and those that ended last."""
        with mapped_errors("look at the queues"), self.redis.pipeline(transaction=False) as pipe:
            for group in groups:
                for name in ("pending", "delayed", "ended"):
                    pipe.zrange(keys.index(group, name), 0, most - 1, desc=name == "ended")
            rows = iter(_answers(pipe))
        return {text(job_id): group for group in groups for _ in range(3) for job_id in _listed(next(rows))}

    def work_of(self, groups: Sequence[str]) -> dict[str, int]:
        """How many pending and running jobs each group has."""
        with mapped_errors("count the work of the groups"), self.redis.pipeline(transaction=False) as pipe:
            for group in groups:
                for name in ("pending", "delayed", "running"):
                    pipe.zcard(keys.index(group, name))
            rows = iter(_answers(pipe))
        return {group: sum(n for n in (next(rows) for _ in range(3)) if isinstance(n, int)) for group in groups}

    # -- groups ---------------------------------------------------------------------------------------------------

    def look_at_groups(self, groups: Sequence[str], now: float, *, suggest: bool = False) -> list[GroupSeen]:
        """How groups stand, in a few reads a group and one a worker that is looked at.

        Args:
            groups: Their ids.
            now: The ledger's time.
            suggest: Look for a group with a similar name where one has neither workers nor a rule.
        """
        since = now - self.timings.machine_alive_s
        with mapped_errors("look at the groups"), self.redis.pipeline(transaction=False) as pipe:
            for group in groups:
                for name in ("pending", "delayed", "running"):
                    pipe.zcard(keys.index(group, name))
                pipe.hgetall(keys.counts(group))
                pipe.hgetall(keys.tick(group))
                pipe.lrange(keys.decisions(group), 0, _DECISIONS - 1)
                pipe.hget(keys.scaler(group), "closed")
                pipe.zcount(keys.workers(group), since, "+inf")
                pipe.zrevrangebyscore(keys.workers(group), "+inf", since, start=0, num=WORKERS_LOOKED_AT)
                pipe.zrange(keys.machines(group), 0, 0, desc=True, withscores=True)
            rows = _answers(pipe)
        pages = [rows[at : at + _GROUP_READS] for at in range(0, len(rows), _GROUP_READS)]
        found = self._workers([(group, _listed(page[8])) for group, page in zip(groups, pages, strict=True)])
        rules, beat = self._rules(groups), self._beat()
        seen = []
        for group, page, hashes, stored in zip(groups, pages, found, rules or [None] * len(groups), strict=True):
            rule = None
            try:
                rule = _rule(text(stored)) if stored else None
                workers = _workers_seen(hashes, int(page[7]), page[9], now, self.timings.machine_alive_s)
                one = _group_seen(group, page, now, workers, rule)
            except _SPOILT:
                one = GroupSeen(group, spoilt=True, rule=rule)
            lonely = suggest and not one.workers.heard and not stored
            nearest = self._nearest(group, now) if lonely else ""
            seen.append(replace(one, rule_known=rules is not None, beat=beat, nearest=nearest))
        return seen

    # -- parts ----------------------------------------------------------------------------------------------------

    def _ahead(self, group: str, priority: int, score: float) -> tuple[int, int]:
        """How many jobs are before one in the queue, and how many of them have a higher priority.

        Of jobs that came within 0.1 ms, the grain of the score, none is before another.
        """
        index = keys.index(group, "pending")
        with mapped_errors(f"count the queue of group {group}"), self.redis.pipeline(transaction=True) as pipe:
            pipe.zcount(index, "-inf", f"({score!r}")
            pipe.zcount(index, "-inf", f"({priority * _PRIORITY_STEP}")
            ahead, higher = pipe.execute()
        return int(ahead), min(int(ahead), int(higher))

    def _published(self, group: str, priority: int, job_id: str) -> float | None:
        with mapped_errors(f"look at job {job_id}"):
            return self.redis.zscore(keys.index(group, f"published:{priority}"), job_id)

    def _step(self, h: Mapping[str, str], ttl_s: int) -> StepSeen:
        first = h.get("workflow", "")
        status: Any = None
        group = self._allowed(lambda: self.redis.get(keys.where(first))) if first else None
        if group:
            status = self._allowed(lambda: self.redis.hget(keys.job(text(group), first), "status"))
        return StepSeen(
            waits_for=max(0, int(h.get("refs") or 0)), first=first if status else "",
            first_status=Status(text(status)) if status else None, forgotten_in_s=float(ttl_s) if ttl_s >= 0 else None,
        )  # fmt: skip

    def _workers(self, found: Sequence[tuple[str, Sequence[Any]]]) -> list[list[Any]]:
        fields = ("machine", "slots", "jobs", "draining", "condemned")
        with mapped_errors("look at the workers"), self.redis.pipeline(transaction=False) as pipe:
            for group, ids in found:
                for worker in ids:
                    pipe.hmget(keys.worker(group, text(worker)), fields)
            rows = iter(_answers(pipe))
        return [[next(rows) for _ in ids] for _, ids in found]

    def _rules(self, groups: Sequence[str]) -> list[Any] | None:
        """The rules as they are stored; None where they may not be read."""
        if not groups:
            return []
        found: list[Any] | None = self._allowed(lambda: self.redis.hmget(keys.RULES, list(groups)))
        return found

    def _beat(self) -> bool | None:
        found = self._allowed(lambda: self.redis.exists(keys.BEAT_LOCK))
        return None if found is None else bool(found)

    def _nearest(self, group: str, now: float) -> str:
        """A group whose name is near, and that somebody works for."""
        known: Any = self._allowed(lambda: self.redis.smembers(keys.GROUPS))
        ruled: Any = self._allowed(lambda: self.redis.hkeys(keys.RULES))
        others = {text(one) for one in (known or ())} - {group}
        with_rule = {text(one) for one in (ruled or ())}
        alive = set(self._with_workers(sorted(others - with_rule)[:1000], now))
        return closest(group, sorted((alive | with_rule) - {group})) or ""

    def _with_workers(self, groups: Sequence[str], now: float) -> Iterable[str]:
        with mapped_errors("look at the groups"), self.redis.pipeline(transaction=False) as pipe:
            for group in groups:
                pipe.zcount(keys.workers(group), now - self.timings.machine_alive_s, "+inf")
            return [group for group, count in zip(groups, pipe.execute(), strict=True) if count]

    def _allowed(self, read: Callable[[], Any]) -> Any:
        """What a read answers; None where this Redis user may not make it."""
        with mapped_errors("look at the groups"):
            try:
                return read()
            except NoPermissionError:
                return None
            except RedisError as e:
                if "NOPERM" in str(e):
                    return None
                raise


_SPOILT = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
"""What follows from values that are not what they should be: a group's workers may write anything into its keys."""


def _answers(pipe: Pipeline) -> list[Any]:
    """The answers to a pipeline; where a key is of another type than it should be, the error stands for the answer."""
    rows = pipe.execute(raise_on_error=False)
    for row in rows:
        if isinstance(row, Exception) and "WRONGTYPE" not in str(row):
            raise row
    return rows


def _listed(row: Any) -> Sequence[Any]:
    return row if isinstance(row, list) else []


def _number(value: str | None) -> float | None:
    return float(value) if value else None


def _bans(h: Mapping[str, str], now: float) -> dict[str, float]:
    until = {name.removeprefix("ban:"): float(at) for name, at in h.items() if name.startswith("ban:") and at}
    return {machine: at for machine, at in sorted(until.items()) if at > now}


def _facts(h: Mapping[str, str], now: float) -> dict[str, Any]:
    """What a look tells besides the record, of the same hash."""
    pends = h.get("status") == Status.PENDING
    moments = {
        "lease_s": "lease_s", "launched": "launched_at", "exited": "exited_at", "attempt_started": "attempt_started",
    }  # fmt: skip
    return {
        "pending_since": _number(h.get("pending_since")) if pends else None, "bounces": int(h.get("bounces") or 0),
        "bans": _bans(h, now), **{fact: _number(h.get(name)) for fact, name in moments.items()},
    }  # fmt: skip


@contextmanager
def _refusing_spoilt(job_id: str) -> Iterator[None]:
    """Say so where a group's workers spoilt the record of one of its jobs."""
    try:
        yield
    except _SPOILT as error:
        text = f"the record of job {job_id} holds what it should not, so nothing can be told of it"
        raise JobError(text) from error


def _worker(row: Sequence[Any], now: float) -> dict[str, Any]:
    machine, slots, jobs, draining, condemned = (text(value) if value is not None else "" for value in row)
    leaves = bool(condemned) or float(draining or 0) > now
    return {"machine": machine, "slots": int(slots or 0), "jobs": int(jobs or 0), "draining": leaves}


def _workers_seen(hashes: Sequence[Any], heard: int, last: Any, now: float, alive_s: float) -> WorkersSeen:
    found = [_worker(row, now) for row in hashes]
    staying = [one for one in found if not one["draining"]]
    return WorkersSeen(
        heard=heard, looked_at=len(found), idle=sum(not one["jobs"] for one in staying),
        busy=sum(bool(one["jobs"]) for one in found), draining=len(found) - len(staying),
        free_slots=sum(max(0, one["slots"] - one["jobs"]) for one in staying),
        machines=frozenset(one["machine"] for one in found if one["machine"]),
        last_heard=float(last[0][1]) if last else None, alive_s=alive_s,
    )  # fmt: skip


def _group_seen(group: str, page: Sequence[Any], now: float, workers: WorkersSeen, rule: RuleSeen | None) -> GroupSeen:
    pending, delayed, running, ended, tick, decisions, closed = page[:7]
    by = {text(name): int(value) for name, value in ended.items()}
    counts = GroupCounts(
        pending + delayed, delayed, running, *(by.get(s, 0) for s in ("completed", "failed", "canceled"))
    )
    turns = {text(name): float(at) for name, at in tick.items()}
    control = [at for name, at in turns.items() if name.startswith("last:") and name != _WORKERS_LIMIT]
    until = _number(text(closed)) if closed else None
    return GroupSeen(
        group=group, counts=counts, workers=workers, rule=rule, decision=_decision(decisions),
        closed_until=until if until and until > now else None, maintained=turns.get("last"),
        control=max(control, default=None),
    )  # fmt: skip


def _rule(stored: str) -> RuleSeen | None:
    """The little that matters of a rule; one that another version wrote may lack fields."""
    rule: Any = json.loads(stored)
    return RuleSeen(bool(rule.get("paused")), int(rule.get("min_replicas", 0)), int(rule.get("max_replicas", 10)))


def _decision(rows: Iterable[Any]) -> DecisionSeen | None:
    """The newest entry that says how the group stands: moves of single nodes do not."""
    for row in rows:
        entry: Any = json.loads(text(row))
        if entry.get("kind") != "move":
            return _decision_seen(entry)
    return None


def _decision_seen(entry: Mapping[str, Any]) -> DecisionSeen:
    fleet = entry.get("fleet") or {}
    return DecisionSeen(
        at=float(entry["until_at"]), kind=str(entry.get("kind", "")), action=str(entry.get("action", "")),
        reasons=tuple(map(str, entry.get("reasons") or ())), status=str(fleet.get("status", "")),
        replicas=_count(fleet.get("replicas")), wanted=_count(entry.get("replicas")), drain=_count(entry.get("drain")),
        allocating=_count(fleet.get("allocating")), creating=_count(fleet.get("creating")),
        running=_count(fleet.get("running")),
    )  # fmt: skip


def _count(value: Any) -> int | None:
    return None if value is None else int(value)
