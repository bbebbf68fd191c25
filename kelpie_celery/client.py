"""The client: submit jobs, look at them, wait for them, cancel them; checkpoints, webhooks, rules of scaling.

    with Kelpie() as kelpie:
        job = kelpie.submit({"command": "./simulate", "container_group_id": "my-group", "sync": {}})
        record = job.wait(raise_on_failure=True)

A job's id is its Celery task id, so ``AsyncResult(job.id)`` sees it too. Limits: synchronous; may be shared by
threads. Nothing is kept here: every answer is a picture of one moment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar, cast, overload

from redis import Redis
from redis.exceptions import RedisError

from kelpie_celery import bulk
from kelpie_celery._calls import Calls
from kelpie_celery._suggest import did_you_mean
from kelpie_celery.app import KelpieApp
from kelpie_celery.batches import Definition, Interrupted, NotAllSubmitted, send, validate_all
from kelpie_celery.celery import create_app
from kelpie_celery.clock import Clock, SystemClock
from kelpie_celery.definition import parse_definition
from kelpie_celery.errors import (
    IdempotencyConflict,
    JobCanceled,
    JobFailed,
    LedgerUnavailable,
    SettingsError,
)
from kelpie_celery.job import Job, JobId
from kelpie_celery.job_logs import LogClient
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.records import JobRecord
from kelpie_celery.ledger.types import GroupCounts, Submitted, encodable
from kelpie_celery.lifecycle import Status
from kelpie_celery.machines_client import MachinesClient
from kelpie_celery.purging import Purged, purge
from kelpie_celery.scaling.client import ScalingClient
from kelpie_celery.settings import Settings, load_settings, tell_unknown_settings
from kelpie_celery.stats import StatsClient
from kelpie_celery.submission import plain_job
from kelpie_celery.waiting import LONGEST_PAUSE_S, OnLook, Waiter
from kelpie_celery.webhooks import WebhookClient
from kelpie_celery.why.client import WhyClient

T = TypeVar("T")
Jobs = list[Job]
Records = list[JobRecord]
Names = list[str]

LISTED = (Status.PENDING, Status.RUNNING, Status.COMPLETED, Status.FAILED, Status.CANCELED)
_READ_PAGE = 200


class Kelpie(LogClient, ScalingClient, MachinesClient, WebhookClient, StatsClient, WhyClient):
    """A client of one Redis; close it, or use it in a ``with`` statement."""

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        settings: Settings | None = None,
        retry_s: float = 5.0,
        clock: Clock | None = None,
    ) -> None:
        """A client that has not connected yet.

        Args:
            redis_url: The Redis that holds the jobs; default: ``KELPIE_REDIS_URL``.
            settings: Everything at once, instead of the environment and ``redis_url``.
            retry_s: How long a call is repeated while Redis is away, in seconds.
            clock: Where time comes from.

        Raises:
            SettingsError: No Redis is named, or a setting is wrong.
        """
        self.settings = _settings(redis_url, settings)
        self._clock = clock or SystemClock()
        self._calls = Calls(self.settings.redis_url.get_secret_value(), self._clock, retry_s)
        self._reached = False
        self.app: KelpieApp = create_app(self.settings)
        self._ledger = _usable_ledger(self.app)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()
        self.app.close()

    @property
    def _redis(self) -> Redis:
        return self._ledger.redis

    # -- submit ------------------------------------------------------------------------------------------------

    def submit(self, definition: Definition) -> Job:
        """Submit one job.

        Args:
            definition: A mapping of fields, a ``JobDefinition`` or JSON.

        Raises:
            DefinitionError: It is refused; names every fault.
            IdempotencyConflict: Its idempotency key belongs to a job with another definition.
            LedgerUnavailable: Redis cannot be reached; tells whether anything may have been submitted.
        """
        valid = parse_definition(definition)
        self._reach("submit the job")
        new = plain_job(self.app, valid)
        try:
            answer = self._calls.make("submit the job", lambda: self._ledger.submit(new))
        except LedgerUnavailable as error:
            raise LedgerUnavailable(
                f"{error}; whether job {new.job_id} was taken is not known: look for it before you submit again, "
                "or use an idempotency_key"
            ) from error.__cause__
        if answer.what == "conflict":
            raise IdempotencyConflict(
                f"the idempotency key {valid.idempotency_key!r} belongs to job {answer.job_id}, whose definition "
                "differs; use a new key, or submit the same definition"
            )
        return self._job(answer)

    def submit_many(
        self, definitions: Iterable[Definition], progress: Callable[[int, int], None] | None = None
    ) -> Jobs:
        """Submit many jobs, much faster than one by one.

        All are validated before the first one is submitted. Each job is atomic, the whole is not.

        Args:
            definitions: As `submit` takes them.
            progress: Told now and then how many of how many are submitted.

        Returns:
            The jobs, in the order of their definitions.

        Raises:
            DefinitionError: Names every fault by its definition's position; nothing was submitted.
            LedgerUnavailable: Redis cannot be reached; nothing was submitted.
            NotAllSubmitted: Redis went away meanwhile, or idempotency keys are taken; tells what was submitted.
        """
        valid = validate_all(definitions)
        if not valid:
            return []
        self._reach(f"submit {len(valid)} jobs")
        try:
            answers = send(self._ledger, self._calls, (plain_job(self.app, d) for d in valid), len(valid), progress)
        except Interrupted as stop:
            raise self._cut_short(stop, len(valid)) from stop.error
        conflicts = {at: a.job_id for at, a in enumerate(answers) if a.what == "conflict"}
        if conflicts:
            raise self._conflicting(answers, conflicts)
        return [self._job(answer) for answer in answers]

    def _reach(self, doing: str) -> None:
        """Before the first job goes out: after this, a lost answer is the only doubt that is left."""
        if self._reached:
            return
        try:
            self._calls.make(doing, self._ledger.server_time)
        except LedgerUnavailable as error:
            raise LedgerUnavailable(f"{error}; nothing was submitted") from error.__cause__
        self._reached = True

    def _job(self, answer: Submitted) -> Job:
        return Job(answer.job_id, answer.what == "created", self)

    def _jobs(self, answers: Sequence[Submitted]) -> list[Job | None]:
        return [None if answer.what == "conflict" else self._job(answer) for answer in answers]

    def _cut_short(self, stop: Interrupted, total: int) -> NotAllSubmitted:
        jobs = self._jobs(stop.answers)
        conflicts = {at: a.job_id for at, a in enumerate(stop.answers) if a.what == "conflict"}
        done = len(jobs) - len(conflicts)
        message = (
            f"{done} of {total} jobs were submitted; of the next {len(stop.uncertain)} it is not known, "
            f"the others were not: {stop.error}"
        )
        return NotAllSubmitted(message, jobs + [None] * (total - len(jobs)), conflicts, stop.uncertain)

    def _conflicting(self, answers: Sequence[Submitted], conflicts: Mapping[int, str]) -> NotAllSubmitted:
        at, holder = next(iter(conflicts.items()))
        more = f", and {len(conflicts) - 1} more like it" if len(conflicts) > 1 else ""
        message = (
            f"{len(answers) - len(conflicts)} of {len(answers)} jobs were submitted; the idempotency key of "
            f"definition [{at}] belongs to job {holder}, whose definition differs{more}; use a new key"
        )
        return NotAllSubmitted(message, self._jobs(answers), conflicts, [])

    # -- look --------------------------------------------------------------------------------------------------

    def get(self, job_id: JobId) -> JobRecord:
        """The whole record of a job, with the history of its attempts.

        Raises:
            JobNotFound: No record has this id.
        """
        known = _id(job_id)
        return self._calls.make(f"read job {known}", lambda: self._ledger.get(known))

    def get_many(self, job_ids: Iterable[JobId]) -> Records:
        """The records that exist of these jobs, in the order asked for, without the history of attempts."""
        wanted = [_id(job_id) for job_id in job_ids]
        pages = [wanted[at : at + _READ_PAGE] for at in range(0, len(wanted), _READ_PAGE)]
        found: Records = []
        for page in pages:
            found += self._calls.make("read the jobs", lambda ids=page: self._ledger.get_many(ids))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        return found

    def list(
        self,
        group: str | None = None,
        status: Status | str | None = None,
        limit: int = 100,
        *,
        newest_first: bool = True,
    ) -> Records:
        """The newest jobs, or the oldest, without the history of attempts.

        Args:
            group: A container group; all of them by default.
            status: ``pending``, ``running``, ``completed``, ``failed`` or ``canceled``; all of them by default.
            limit: At most this many.
            newest_first: Ended jobs are ordered by their end when an ended status is asked for, all others by
                creation; a retried job counts as new when it became pending again.
        """
        wanted = _status(status)
        if limit < 1:
            return []

        def ids() -> Names:
            groups = [encodable(group)] if group is not None else self._ledger.groups()
            return bulk.newest_ids(self._redis, groups, wanted, limit, newest_first=newest_first)

        records = self.get_many(self._calls.make("list the jobs", ids))
        # Between the index and the record a job may have moved on.
        return [record for record in records if wanted in (None, record.status)]

    def groups(self) -> Names:
        """Every container group that ever had a job, by name."""
        return self._calls.make("list the groups", self._ledger.groups)

    def counts(self, group: str) -> GroupCounts:
        """How many jobs of a container group stand where, in constant time."""
        return self._calls.make("count the jobs", lambda: self._ledger.counts(encodable(group)))

    def now(self) -> float:
        """Redis's clock, by which all times in records are: seconds since the epoch."""
        return self._calls.make("ask for the time", self._ledger.server_time)

    # -- wait --------------------------------------------------------------------------------------------------

    @overload
    def wait(  # type: ignore[overload-overlap]  # a str is an iterable of strings, and yet one id
        self,
        jobs: JobId,
        timeout: float | None = None,
        *,
        raise_on_failure: bool = False,
        poll_s: float = LONGEST_PAUSE_S,
        on_look: OnLook | None = None,
    ) -> JobRecord: ...
    @overload
    def wait(
        self,
        jobs: Iterable[JobId],
        timeout: float | None = None,
        *,
        raise_on_failure: bool = False,
        poll_s: float = LONGEST_PAUSE_S,
        on_look: OnLook | None = None,
    ) -> Records: ...
    def wait(
        self,
        jobs: JobId | Iterable[JobId],
        timeout: float | None = None,
        *,
        raise_on_failure: bool = False,
        poll_s: float = LONGEST_PAUSE_S,
        on_look: OnLook | None = None,
    ) -> JobRecord | Records:
        """Wait until one job, or every one of several, has ended.

        An outage of Redis is sat out, once the first look has succeeded.

        Args:
            jobs: A job or its id, or several.
            timeout: At most this many seconds; without end by default.
            raise_on_failure: Raise when one of them did not complete.
            poll_s: The longest pause between two looks, in seconds; it begins with a tenth of a second.
            on_look: Told after each look where every job stands.

        Returns:
            The record of one job; of several the records in the order asked for, without the history of attempts.

        Raises:
            WaitTimeout: Names the jobs that have not ended; they go on.
            JobNotFound: No record has one of the ids.
            JobFailed: With ``raise_on_failure``: the first job, in the order asked for, that failed.
            JobCanceled: The same for a job that was canceled.
        """
        one = isinstance(jobs, str | Job)
        ids = [_id(cast("JobId", jobs))] if one else [_id(job) for job in cast("Iterable[JobId]", jobs)]
        waiter = Waiter(self._redis, self._calls, self._clock, ids, longest_pause_s=max(0.01, poll_s), on_look=on_look)
        waiter.wait(timeout)
        records = [self.get(ids[0])] if one else self.get_many(ids)
        if raise_on_failure:
            _raise_failure(records)
        return records[0] if one else records

    # -- cancel ------------------------------------------------------------------------------------------------

    def cancel(self, job_id: JobId) -> str:
        """Cancel a job, durably, whether or not a worker is online.

        Returns:
            ``canceled`` (it was pending), ``canceling`` (it runs; its worker is told within 2 s), or the status
            that it had ended with.

        Raises:
            JobNotFound: No record has this id.
        """
        known = _id(job_id)
        return self._calls.make(f"cancel job {known}", lambda: self._ledger.cancel(known))

    def purge(
        self,
        group: str,
        status: Status | str | None = None,
        *,
        progress: Callable[[Purged], None] | None = None,
    ) -> Purged:
        """Cancel the pending and running jobs of a container group.

        Jobs that are submitted while it works may be canceled too, or not.

        Args:
            group: The container group.
            status: ``pending`` or ``running``, to cancel only these.
            progress: Told after each batch what is done so far.
        """
        wanted = _status(status)
        if wanted not in (None, Status.PENDING, Status.RUNNING):
            raise ValueError(f"only pending and running jobs can be purged, not {wanted} ones: these have ended")
        return purge(self._ledger, self._calls, encodable(group), wanted, progress)


# A program may open a client for every request that it serves: each name is told once a process.
_told: set[str] = set()


def _settings(redis_url: str | None, settings: Settings | None) -> Settings:
    if settings is not None and redis_url is not None:
        raise TypeError("give redis_url or settings, not both")
    if settings is not None:
        return settings
    found = load_settings({**os.environ, "KELPIE_REDIS_URL": redis_url} if redis_url is not None else None)
    tell_unknown_settings(told=_told)
    return found


def _usable_ledger(app: KelpieApp) -> Ledger:
    """The app's ledger, once redis-py has accepted every option of the URL."""
    try:
        ledger = app.ledger
        ledger.redis.connection_pool.make_connection()
    except (TypeError, ValueError, RedisError) as error:
        raise SettingsError(f"KELPIE_REDIS_URL: an option after the '?' is wrong: {error}") from error
    return ledger


def _id(job_id: JobId) -> str:
    return job_id.id if isinstance(job_id, Job) else encodable(job_id)


def _status(status: Status | str | None) -> Status | None:
    if status is None or status in LISTED:
        return None if status is None else Status(status)
    known = ", ".join(LISTED)
    raise ValueError(f"{status!r} is no status{did_you_mean(str(status), LISTED)} (one of {known})")


def _raise_failure(records: Sequence[JobRecord]) -> None:
    for record in records:
        if record.status is Status.FAILED:
            raise JobFailed(record.id, record.reason or "", record.message or "")
        if record.status is Status.CANCELED:
            raise JobCanceled(f"job {record.id} was canceled: {record.message or 'no reason was given'}")
