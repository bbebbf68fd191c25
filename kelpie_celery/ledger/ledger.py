"""The ledger's operations: one method a transition, each one Lua call, fenced by attempt and nonce.

Limits: synchronous; redis-py's errors leave this module as ``LedgerUnavailable`` and nothing else. A call whose answer
was lost may be made again: claim, renew, commit, rollback, end_attempt and done answer a repeat as they did the first
time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from kelpie_celery.errors import JobNotFound, LeaseLost
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.calls import mapped_errors, no_such_job
from kelpie_celery.ledger.fleet import Fleet
from kelpie_celery.ledger.lines import Lines
from kelpie_celery.ledger.looks import Looks
from kelpie_celery.ledger.machines import Machines
from kelpie_celery.ledger.output import Output, output_args
from kelpie_celery.ledger.records import JobRecord, parse_record
from kelpie_celery.ledger.scripts import text
from kelpie_celery.ledger.sums import SumsOfGroups
from kelpie_celery.ledger.types import (
    Banned,
    Claim,
    Ended,
    Ending,
    FencingToken,
    Granted,
    GroupCounts,
    NewJob,
    NewOutput,
    Pulsed,
    Refused,
    Renewal,
    Submitted,
    Tick,
    WorkerSign,
    compact,
    encodable,
)
from kelpie_celery.ledger.webhooks import Webhooks
from kelpie_celery.lifecycle import Outcome, Phase, Status


class Ledger(Lines, Fleet, Machines, Webhooks, Output, SumsOfGroups, Looks):
    """Every transition of a job, and the questions that may be asked of the records."""

    # -- submit ---------------------------------------------------------------------------------------------------

    def submit(self, job: NewJob) -> Submitted:
        """Write the record, make it pending and publish its hint, atomically.

        Raises:
            JobNotFound: The definition was left to a draft that does not exist.
        """
        return self._submitted(self._call("submit", f"take job {job.job_id}", *self._submit_args(job)))

    def submit_many(self, jobs: Sequence[NewJob], batch: int = 500) -> list[Submitted]:
        """The same for many, in pipelines of ``batch``; each job is atomic, the whole is not."""
        answers: list[Submitted] = []
        for at in range(0, len(jobs), batch):
            with mapped_errors(f"take {len(jobs)} jobs"), self.redis.pipeline(transaction=False) as pipe:
                for job in jobs[at : at + batch]:
                    self._scripts["submit"](keys=[], args=self._submit_args(job), client=pipe)
                answers += [self._submitted(row) for row in pipe.execute()]
        return answers

    @staticmethod
    def _submit_args(job: NewJob) -> list[Any]:
        key = hashlib.sha256(job.idempotency_key.encode()).hexdigest() if job.idempotency_key else ""
        queue = keys.queue_list(job.group, job.priority)
        drafts = compact(list(job.drafts)) if job.drafts else ""
        return [
            job.job_id, job.group, job.definition, job.message, queue, job.priority, job.heartbeat_s, job.max_failures,
            job.parents, job.delay_s, key, job.digest, drafts, job.name, job.submission,
            job.webhook,
        ]  # fmt: skip

    @staticmethod
    def _submitted(row: Sequence[Any]) -> Submitted:
        if text(row[0]) == "no_definition":
            raise JobNotFound(
                "the ledger holds no definition for this step: its workflow ended longer ago than job_retention"
            )
        return Submitted(text(row[0]), text(row[1]), Status(text(row[2])))

    def draft(self, job_id: str, group: str, definition: str, workflow: str = "") -> bool:
        """Keep the definition of a later step of a workflow; False when the id is a job's or another workflow's."""
        args = (job_id, group, definition, int(self.timings.job_retention_s), workflow)
        return bool(self._call("draft", f"take draft {job_id}", *args))

    # -- an attempt's life ----------------------------------------------------------------------------------------

    def claim(
        self, job_id: str, nonce: str, machine: str, worker: str, received_at: float | None, *, may_run: bool,
        holder: str = "",
    ) -> Claim:  # fmt: skip
        """Ask for a job.

        Args:
            job_id: The job.
            nonce: Fresh for each message received; the same one again when the answer was lost.
            machine: This machine, for bans and the history.
            worker: This worker's Celery host name.
            received_at: When the message that led here was published, in seconds since the epoch.
            may_run: False where only Celery's bookkeeping is replayed.
            holder: This worker as its pulse calls it (``WorkerSign.id``); one that drains is refused.
        """
        t = self.timings
        received = f"{received_at:.6f}" if received_at else ""
        row = self._call(
            "claim", f"answer the claim of job {job_id}", job_id, nonce, machine, worker, t.min_lease_s, received,
            t.outbox_lease_s, t.ban_yield_s, t.machine_alive_s, "1" if may_run else "0", holder,
        )  # fmt: skip
        what = text(row[0])
        if what == "granted":
            values = map(text, row[1:])
            (attempt, lease, now, definition, parents, failures, created, started, commit, continues, ran,
             finished) = values  # fmt: skip
            return Granted(
                FencingToken(job_id, int(attempt), nonce), float(lease), float(now), definition, parents,
                int(failures), float(created), float(started), commit, int(continues), float(ran),
                finished,
            )  # fmt: skip
        if what == "ended":
            return Ended(Status(text(row[1])), json.loads(text(row[2])), text(row[3]), text(row[4]))
        if what == "banned":
            return Banned(float(text(row[1])))
        return Refused(text(row[1]))

    def renew(
        self, token: FencingToken, phase: Phase, progress: str = "", *, count: bool = True, transfer: str = "",
        output: NewOutput | None = None,
    ) -> Renewal:  # fmt: skip
        """Renew the lease.

        Args:
            token: The attempt.
            phase: What it does now.
            progress: What the job last said (JSON); empty when it said nothing new.
            count: Whether this is a heartbeat, or an extra one because of news.
            transfer: How the transfer under way goes (JSON of ``records.Transfer``); ``"{}"`` when it is over, empty
                when nothing is new.
            output: What its command wrote.

        Raises:
            LeaseLost: Another attempt owns the job, or it has ended.
        """
        row = self._call(
            "renew", f"renew the lease of job {token.job_id}", token.job_id, token.attempt, token.nonce, phase,
            encodable(progress), "1" if count else "0", transfer, *output_args(output),
        )  # fmt: skip
        if text(row[0]) != "ok":
            raise LeaseLost(f"attempt {token.attempt} of job {token.job_id} lost its lease: the job is {text(row[1])}")
        return Renewal(text(row[1]) == "1", float(text(row[2])), float(text(row[3])))

    def finished(self, token: FencingToken, result: Any) -> None:
        """Keep the result of a command that succeeded, of which the report has yet to wait.

        Raises:
            LeaseLost: Another attempt owns the job, or it has ended.
        """
        row = self._call(
            "finished", f"keep the result of job {token.job_id}", token.job_id, token.attempt, token.nonce,
            compact(result),
        )  # fmt: skip
        if text(row[0]) != "ok":
            raise LeaseLost(f"attempt {token.attempt} of job {token.job_id} lost its lease: the job is {text(row[1])}")

    def end_attempt(self, token: FencingToken, ending: Ending) -> str:
        """End an attempt; the ledger decides what becomes of the job.

        Returns:
            The job's status now, or ``"cancel"``: completion is refused since a cancel was accepted before.

        Raises:
            LeaseLost: The attempt does not own the job; its ending has no effect.
        """
        t = self.timings
        ban_s = t.ban_ttl_s if ending.outcome in {Outcome.FAILURE, Outcome.FREE} else 0
        row = self._call(
            "end_attempt", f"end attempt {token.attempt} of job {token.job_id}", token.job_id, token.attempt,
            token.nonce, ending.outcome, ending.reason, encodable(ending.message), compact(ending.result),
            compact(ending.facts) if ending.facts else "", ending.delay_s, "1" if ending.final else "0",
            t.outbox_lease_s, int(t.job_retention_s), ban_s, t.max_free, t.retry_max_s,
            *output_args(ending.output),
        )  # fmt: skip
        if text(row[0]) == "stale":
            raise LeaseLost(f"attempt {token.attempt} of job {token.job_id} had lost its lease when it ended")
        return text(row[0])

    def publish(self, token: FencingToken) -> bool:
        """Publish the hint of a job that this attempt gave back; False when it has moved on already."""
        return bool(self._call("publish", f"publish job {token.job_id}", token.job_id, token.attempt))

    # -- control --------------------------------------------------------------------------------------------------

    def cancel(self, job_id: str, why: str = "canceled by the user") -> str:
        """Cancel, durably: ``canceled``, ``canceling`` (it runs; its worker hears of it), or the status it ended with.

        Raises:
            JobNotFound: No record has this id.
        """
        args = (job_id, encodable(why), int(self.timings.job_retention_s))
        answer = text(self._call("cancel", f"cancel job {job_id}", *args)[0])
        if answer == "unknown":
            raise no_such_job(job_id)
        return answer

    def celery_done(self, job_id: str) -> bool:
        """Close the outbox of an ended job."""
        return bool(self._call("done", f"close the outbox of job {job_id}", job_id))

    def pulse(
        self, group: str, machine: str, job_ids: Sequence[str], *, alive: bool, sign: WorkerSign | None = None
    ) -> Pulsed:
        """What a worker should know within a second; with ``alive`` its sign of life is recorded."""
        return self._pulse(group, machine, "1" if alive else "0", sign, job_ids)

    def goodbye(self, group: str, machine: str, sign: WorkerSign) -> None:
        """A worker ends in good order: it counts no more. What it still holds is counted by the records."""
        self._pulse(group, machine, "bye", sign, ())

    def _pulse(self, group: str, machine: str, what: str, sign: WorkerSign | None, job_ids: Sequence[str]) -> Pulsed:
        s = sign or WorkerSign("", "", "", 0)
        flags = ("1" if said else "0" for said in (s.settled, s.untold, s.by_hand))
        args = (group, machine, what, s.id, s.name, s.instance, s.slots, *flags, *job_ids)
        draining, streak, *cancel = map(text, self._call("pulse", "answer a worker's pulse", *args))
        return Pulsed(tuple(cancel), draining == "1", int(float(streak)))

    def hand_over(self, job_id: str) -> bool:
        """Leave the outbox of an ended job to a process whose Redis user may do what this one's may not."""
        return bool(self._call("hand_over", f"hand the outbox of job {job_id} over", job_id))

    def tick(self, group: str, *, uptime_s: float, saw_outage: bool, fresh: bool, limit: int = 10) -> Tick | None:
        """One bounded round of maintenance of a group; None when somebody did it a moment ago.

        Args:
            group: The container group.
            uptime_s: How long the Redis server has been up.
            saw_outage: The caller could not reach Redis since its last tick, or saw its clock jump. It counts only
                when nobody did maintenance meanwhile, so that one caller's bad network does not keep the dead alive.
            fresh: The caller's first tick.
            limit: Entries a step; callers with different limits do not make each other wait.
        """
        t = self.timings
        row = self._call(
            "tick", f"maintain group {group}", group, limit, t.tick_interval_s, uptime_s, "1" if saw_outage else "0",
            "1" if fresh else "0", int(t.job_retention_s), t.watermark_slack_s, t.empty_list_s, t.poison_deaths,
            t.poison_window_s, t.outbox_lease_s,
        )  # fmt: skip
        if text(row[0]) == "busy":
            return None
        promoted, republished, expired, reaped = (int(n) for n in row[2:6])
        ids = tuple(map(text, row[6:]))
        return Tick(float(text(row[1])), reaped, promoted, republished, expired, ids[reaped:], lost=ids[:reaped])

    def publish_once(self, task_id: str, queue_list: str, message: str, remember_s: float = 86400.0) -> bool:
        """Put a message on a broker list unless one was put there for this task id before."""
        args = (task_id, queue_list, message, int(remember_s))
        return bool(self._call("once", f"publish task {task_id}", *args))

    # -- questions ------------------------------------------------------------------------------------------------

    def group_of(self, job_id: str) -> str | None:
        """The container group of a job."""
        with mapped_errors(f"find job {job_id}"):
            group = self.redis.get(keys.where(job_id))
        return text(group) if group else None

    def get(self, job_id: str) -> JobRecord:
        """The whole record.

        Raises:
            JobNotFound: No record has this id.
        """
        found = self._read([job_id], attempts=True)
        if not found:
            raise no_such_job(job_id)
        return found[0]

    def get_many(self, job_ids: Sequence[str]) -> list[JobRecord]:
        """The records that exist of these, without their attempts' history, in the order asked for."""
        return self._read(job_ids, attempts=False)

    def _read(self, job_ids: Sequence[str], *, attempts: bool) -> list[JobRecord]:
        if not job_ids:
            return []
        with mapped_errors(f"read {len(job_ids)} records"):
            groups = self.redis.mget([keys.where(job_id) for job_id in job_ids])
            known = [(job_id, text(group)) for job_id, group in zip(job_ids, groups, strict=True) if group]
            with self.redis.pipeline(transaction=True) as pipe:
                for job_id, group in known:
                    pipe.hgetall(keys.job(group, job_id))
                    pipe.zscore(keys.index(group, "delayed"), job_id)
                    if attempts:
                        pipe.lrange(keys.attempts(group, job_id), 0, -1)
                rows = iter(pipe.execute())
        found = []
        for job_id, group in known:
            fields = {text(k): text(v) for k, v in next(rows).items()}
            due = next(rows)
            history = [text(entry) for entry in next(rows)] if attempts else []
            if "status" in fields:
                found.append(parse_record(job_id, group, fields, history, due))
        return found

    def status_of(self, job_id: str) -> Status | None:
        """The status alone; None when no record has this id."""
        group = self.group_of(job_id)
        if group is None:
            return None
        with mapped_errors(f"read job {job_id}"):
            status = self.redis.hget(keys.job(group, job_id), "status")
        return Status(text(status)) if status else None

    def definition_of(self, job_id: str) -> str | None:
        """The definition (JSON) of a job or draft; None when it is unknown."""
        group = self.group_of(job_id)
        if group is None:
            return None
        with mapped_errors(f"read job {job_id}"):
            definition = self.redis.hget(keys.job(group, job_id), "definition")
        return text(definition) if definition else None

    def message_of(self, job_id: str) -> str | None:
        """The broker message of a job, as it was first published."""
        group = self.group_of(job_id)
        if group is None:
            return None
        with mapped_errors(f"read job {job_id}"):
            message = self.redis.hget(keys.job(group, job_id), "message")
        return text(message) if message else None

    def groups(self) -> list[str]:
        """Every container group that ever had a job, by name."""
        with mapped_errors("list the groups"):
            return sorted(text(group) for group in self.redis.smembers(keys.GROUPS))

    def counts(self, group: str) -> GroupCounts:
        """How many jobs of a group stand where, in constant time."""
        with mapped_errors(f"count group {group}"), self.redis.pipeline(transaction=True) as pipe:
            for name in ("pending", "delayed", "running"):
                pipe.zcard(keys.index(group, name))
            pipe.hgetall(keys.counts(group))
            pending, delayed, running, ended = pipe.execute()
        by_status = {text(k): int(v) for k, v in ended.items()}
        return GroupCounts(
            pending + delayed,
            delayed,
            running,
            *(by_status.get(s, 0) for s in ("completed", "failed", "canceled")),
        )

    def ids(self, group: str, index: str, start: int, stop: int, *, newest_first: bool = False) -> list[str]:
        """Ids from one of the group's indexes (``keys.index``), from ``start`` to ``stop`` inclusive."""
        with mapped_errors(f"list group {group}"):
            rows = self.redis.zrange(keys.index(group, index), start, stop, desc=newest_first)
        return [text(row) for row in rows]

    def uptime_s(self) -> float:
        """How long the Redis server has been up, in seconds."""
        with mapped_errors("tell its uptime"):
            return float(self.redis.info("server")["uptime_in_seconds"])
