"""What a client may do with the output of jobs: read the last lines, follow them, fetch the log of a whole attempt.

Limits: synchronous. Redis has the last lines of one attempt, the last that wrote anything (``ledger.output``); whole
logs are on the storage, where the job or its container group has a place for them (``log_place``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kelpie_celery._calls import TROUBLE, Calls, may_pass
from kelpie_celery.checkpoints.client import CheckpointClient
from kelpie_celery.definition import from_json
from kelpie_celery.errors import NoLog, StorageUnavailable
from kelpie_celery.job import Job, JobId
from kelpie_celery.ledger.output import OutputNow
from kelpie_celery.ledger.records import AttemptRecord, JobRecord
from kelpie_celery.ledger.types import compact, encodable
from kelpie_celery.lifecycle import Phase, Status
from kelpie_celery.log_place import LogPlace, log_place

log = logging.getLogger(__name__)

FOLLOW_EVERY_S = 1.0
_PIECE_BYTES = 8 << 20
_RESUMES = 3


@dataclass(frozen=True)
class JobLog:
    """The last lines that a job's command wrote.

    Attributes:
        job_id: The job.
        status: Of the job.
        attempt: Which attempt wrote the lines; 0 when none ever wrote any.
        first: The number of the first line among all that the attempt wrote, from 1; None where that is not known.
        lines: Oldest first. They come from the job: print them through `kelpie_celery.log_text.printable`.
    """

    job_id: str
    status: Status
    attempt: int
    first: int | None
    lines: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True)
class LogNews:
    """What is new of a job that is followed.

    Attributes:
        status: Of the job.
        attempt: Its last attempt; 0 before the first.
        machine: Where that runs or ran.
        phase: What it does, while the job runs.
        of_attempt: Which attempt wrote the lines.
        first: The number of the first line, from 1.
        missed: How many lines came and went between two looks.
        lines: Oldest first.
    """

    status: Status
    attempt: int
    machine: str
    phase: Phase | None
    of_attempt: int
    first: int
    missed: int
    lines: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True)
class StoredLog:
    """The whole log of one attempt, on the storage."""

    job_id: str
    attempt: int
    bucket: str
    key: str
    size_bytes: int

    @property
    def url(self) -> str:
        """``s3://bucket/key``."""
        return f"s3://{self.bucket}/{self.key}"


class LogClient(CheckpointClient):
    """The part of a client that is about output; see `kelpie_celery.client.Kelpie`."""

    def logs(self, job_id: JobId, attempt: int | None = None) -> JobLog:
        """The last lines that a job's command wrote, also while it runs.

        Args:
            job_id: The job.
            attempt: Which try of the job; by default the last that wrote anything. Of an earlier one only a few lines
                are kept, and only where it failed.

        Raises:
            JobNotFound: No record has this id.
            NoLog: Nothing is kept of that attempt.
        """
        known = _id(job_id)
        now = self._calls.make(f"read the output of job {known}", lambda: self._ledger.output(known))
        if attempt is None or attempt == now.of_attempt:
            return JobLog(known, now.status, now.of_attempt, now.first if now.lines else None, now.lines)
        record = self._job_record(known)
        tail = _facts(_attempt(record, attempt)).get("output_tail")
        if isinstance(tail, list) and tail:
            return JobLog(known, now.status, attempt, None, tuple(map(str, tail)))
        raise NoLog(f"no lines are kept of attempt {attempt} of job {known}; {_whole_instead(record, attempt)}")

    def follow_logs(self, job_id: JobId, *, poll_s: float = FOLLOW_EVERY_S) -> Iterator[LogNews]:
        """What a job writes, over all of its attempts, until it has ended; first the last lines that there are.

        An outage of Redis is sat out, once the first look has succeeded. Workers tell of new lines every few seconds.

        Args:
            job_id: The job.
            poll_s: The pause between two looks, seconds.

        Raises:
            JobNotFound: No record has this id, or none has any more.
        """
        known = _id(job_id)
        look = _Look(self._calls, known, lambda: self._ledger.output(known))
        before = look.first()
        yield _news(before, None)
        while not before.status.ended:
            self._clock.sleep(poll_s)
            now = look.again()
            if now is None or now == before:
                continue
            yield _news(now, before)
            before = now

    def stored_log(self, job_id: JobId, attempt: int | None = None) -> StoredLog:
        """Where the whole log of an attempt is, by default of the last one whose log was stored.

        Raises:
            JobNotFound: No record has this id.
            NoLog: There is none.
            StorageError: The storage cannot be asked.
        """
        record = self._job_record(_id(job_id))
        place = log_place(from_json(compact(record.definition)), self.settings)
        for one in reversed(record.attempts):
            if attempt in (None, one.n) and (at := _recorded(one)):
                return self._found(record.id, one.n, *at)
        if why := _told(record, attempt):
            raise NoLog(f"no whole log is stored of {_of(record, attempt)}: storing it failed: {why}")
        # One whose report was lost, or that is not in the history any more, may have stored its log all the same.
        if place and (found := self._listed(record.id, place, attempt)):
            return found
        raise NoLog(f"no whole log is stored of {_of(record, attempt)}: {_why_none(record, attempt, place)}")

    def read_log(self, stored: StoredLog, take: Callable[[memoryview], None]) -> None:
        """Fetch a whole log, piece by piece, in order.

        Args:
            stored: As `stored_log` gave it.
            take: Keeps nothing of what it is given.

        Raises:
            StorageError: It cannot be fetched.
        """
        done = 0

        def count(piece: memoryview) -> None:
            nonlocal done
            done += len(piece)
            take(piece)

        failures = 0
        while done < stored.size_bytes:
            try:
                wanted = min(_PIECE_BYTES, stored.size_bytes - done)
                self._storage.fetch(stored.bucket, stored.key, done, wanted, count)
            except StorageUnavailable:
                failures += 1
                if failures > _RESUMES:
                    raise
                self._clock.sleep(failures)

    def _found(self, job_id: str, attempt: int, bucket: str, key: str) -> StoredLog:
        for one in self._storage.list(bucket, key):
            if one.key == key:
                return StoredLog(job_id, attempt, bucket, key, one.size_bytes)
        raise NoLog(
            f"the log of attempt {attempt} of job {job_id} was stored as s3://{bucket}/{key}, and is gone from there"
        )

    def _listed(self, job_id: str, place: LogPlace, attempt: int | None) -> StoredLog | None:
        start = place.of_job(job_id) if attempt is None else place.of_attempt(job_id, attempt)
        found = []
        for one in self._storage.list(place.bucket, start):
            name, _, nonce = one.key[len(place.of_job(job_id)) :].partition("-")
            # Below it may be those of another job, whose id goes on with a slash.
            if one.key.endswith(".log") and name.isdecimal() and "/" not in nonce:
                found.append((int(name), one.modified, one))
        if not found:
            return None
        number, _, last = max(found, key=lambda entry: entry[:2])
        return StoredLog(job_id, number, place.bucket, last.key, last.size_bytes)


class _Look:
    """Looks again and again, through outages of Redis."""

    def __init__(self, calls: Calls, job_id: str, ask: Callable[[], OutputNow]) -> None:
        self._calls, self._ask, self._doing = calls, ask, f"read the output of job {job_id}"
        self._away = False

    def first(self) -> OutputNow:
        """The first look, which must succeed."""
        return self._calls.make(self._doing, self._ask)

    def again(self) -> OutputNow | None:
        """A later one; None while Redis is away."""
        try:
            now = self._ask()
        except TROUBLE as error:
            if not may_pass(error):
                raise self._calls.unavailable(self._doing, error) from error
            if not self._away:
                log.warning(
                    "Redis is away; still following, the job runs on",
                    extra={"action": "ledger_away", "redis": self._calls.where},
                )
            self._away = True
            return None
        if self._away:
            log.warning("Redis is back; still following", extra={"action": "ledger_back"})
            self._away = False
        return now


def _news(now: OutputNow, before: OutputNow | None) -> LogNews:
    """What has come since the look before."""
    same = before is not None and before.of_attempt == now.of_attempt
    seen = before.last if before is not None and same else 0
    new = min(len(now.lines), max(0, now.last - seen)) if before is not None else len(now.lines)
    missed = max(0, now.last - seen - new) if before is not None and new else 0
    lines = now.lines[len(now.lines) - new :]
    return LogNews(
        now.status, now.attempt, now.machine, now.phase, now.of_attempt, now.last - new + 1, missed, lines
    )  # fmt: skip


def _id(job_id: JobId) -> str:
    return encodable(job_id.id if isinstance(job_id, Job) else job_id)


def _attempt(record: JobRecord, number: int) -> AttemptRecord:
    for one in record.attempts:
        if one.n == number:
            return one
    known = [one.n for one in record.attempts]
    told = f"it had {known[0]} to {known[-1]}" if len(known) > 1 else "it had one" if known else "it had none yet"
    raise NoLog(f"job {record.id} has no attempt {number} in its history: {told}")


def _facts(attempt: AttemptRecord) -> dict[str, Any]:
    return attempt.model_extra or {}


def _recorded(attempt: AttemptRecord) -> tuple[str, str] | None:
    """Bucket and key of an attempt's log, as its worker told."""
    scheme, _, rest = str(_facts(attempt).get("log", "")).partition("://")
    bucket, _, key = rest.partition("/")
    return (bucket, key) if scheme == "s3" and bucket and key else None


def _of(record: JobRecord, attempt: int | None) -> str:
    return f"job {record.id}" if attempt is None else f"attempt {attempt} of job {record.id}"


def _whole_instead(record: JobRecord, attempt: int) -> str:
    if _recorded(_attempt(record, attempt)):
        return f"'kelpie logs --whole --attempt {attempt} {record.id}' brings its whole log"
    return "only a failed attempt keeps some; with log_bucket and log_prefix whole logs are stored"


def _told(record: JobRecord, attempt: int | None) -> str:
    """Why a worker could not store a log of the job; empty where none says so."""
    whys = (_facts(one).get("log_failed") for one in reversed(record.attempts) if attempt in (None, one.n))
    return str(next(filter(None, whys), ""))


def _why_none(record: JobRecord, attempt: int | None, place: LogPlace | None) -> str:
    tried = [one for one in record.attempts if attempt in (None, one.n)]
    if tried and tried[-1].ended is None and record.status is Status.RUNNING:
        return "it is stored when the attempt ends; 'kelpie logs -f' follows it meanwhile"
    if place is None:
        return "the job names no log_bucket and log_prefix, and its container group had no KELPIE_LOG_BUCKET"
    if not tried:
        return "it has not run yet" if attempt is None else "no such attempt is in its history"
    return "its command was not started, or its node died and took the log along"
