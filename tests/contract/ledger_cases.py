"""What the ledger's tests share: a ledger on a clock that they hold, and the rules that hold after every transition.

The real Lua runs on a real Valkey or on fakeredis; only its first line, which asks the server for the time, is
replaced by a key that the test sets. Limits: TTLs still follow the server's own clock.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from redis import Redis

from kelpie_celery.ledger import keys
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.scripts import OPERATIONS, source, text
from kelpie_celery.ledger.types import (
    Claim,
    Ending,
    FencingToken,
    Granted,
    Line,
    LineAddress,
    NewCommit,
    NewJob,
    Submitted,
    Tick,
    Timings,
)
from kelpie_celery.lifecycle import Outcome, Phase, Reason, Status, may_follow
from kelpie_celery.messages import TAG, published_at

START = 1_700_000_000.0
GROUP = "gpus"
LONG_UP = 1e9
CLOCK_KEY = "test:clock"
SERVER_TIME = "local t = redis.call('TIME')"
TEST_TIME = f"local t = redis.call('HMGET', '{CLOCK_KEY}', 's', 'us')"

Edge = tuple[str, str]


class TestClock:
    """Redis's clock as the Lua operations see it."""

    __test__ = False

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.set(START)

    def set(self, now: float) -> None:
        micros = round(now * 1e6)
        self.now = micros / 1e6
        self._redis.hset(CLOCK_KEY, mapping={"s": micros // 1_000_000, "us": micros % 1_000_000})

    def advance(self, seconds: float) -> None:
        self.set(self.now + seconds)


FIELDS = (
    "status",
    "priority",
    "attempt",
    "nonce",
    "celery_done",
    "endings",
    "completions",
    "num_interruptions",
    "queue",
)
SETS = ("pending", "delayed", "running", "ended", "outbox", "created", *(f"published:{p}" for p in keys.PRIORITIES))


@dataclass
class Record:
    """What the rules need to know of one record."""

    group: str
    fields: dict[str, str]
    last_attempt: dict[str, Any] | None
    where: str | None

    @property
    def status(self) -> Status:
        return Status(self.fields["status"])

    @property
    def is_job(self) -> bool:
        """It was submitted: not a draft, nor one that was canceled before its workflow reached it."""
        return "queue" in self.fields

    def places(self, delayed: bool) -> list[str]:
        """The indexes that it belongs to."""
        if not self.is_job:
            return []
        if self.status is Status.PENDING:
            return ["created", "delayed"] if delayed else ["created", "pending", f"published:{self.fields['priority']}"]
        if self.status is Status.RUNNING:
            return ["created", "running"]
        return ["created", "ended", *([] if self.fields.get("celery_done") == "1" else ["outbox"])]


@dataclass
class LinePicture:
    """One line of commits: its head, and (generation, id) of the kept and the dropped ones."""

    head: str
    generation: int
    kept: list[tuple[int, str]]
    dropped: list[tuple[int, str]]


@dataclass
class Picture:
    """The whole ledger at one moment."""

    records: dict[str, Record]
    indexes: dict[str, dict[str, set[str]]]
    counts: dict[str, dict[str, int]]
    lines: dict[str, LinePicture]


def take_picture(redis: Redis) -> Picture:
    """Three round trips, however many records there are."""
    line_keys = [text(key) for key in redis.scan_iter("kelpie:line:*", count=1000)]
    found = [text(key).split(":", 4) for key in redis.scan_iter("kelpie:g:*:job:*", count=1000)]
    groups = sorted({parts[2] for parts in found})
    pipe = redis.pipeline(transaction=True)
    for _, _, group, _, job_id in found:
        pipe.hmget(keys.job(group, job_id), *FIELDS)
        pipe.lindex(keys.attempts(group, job_id), -1)
        pipe.get(keys.where(job_id))
    for group in groups:
        for name in SETS:
            pipe.zrange(keys.index(group, name), 0, -1)
        pipe.hgetall(keys.counts(group))
    for key in line_keys:
        pipe.hmget(key, "head", "generation", "kept", "dropped", "num_dropped")
    rows = iter(pipe.execute())
    picture = Picture({}, {}, {}, {})
    for _, _, group, _, job_id in found:
        fields = {name: text(v) for name, v in zip(FIELDS, next(rows), strict=True) if v is not None}
        last, where = next(rows), next(rows)
        picture.records[job_id] = Record(group, fields, json.loads(text(last)) if last else None, where and text(where))
    for group in groups:
        picture.indexes[group] = {name: {text(m) for m in next(rows)} for name in SETS}
        picture.counts[group] = {text(k): int(v) for k, v in next(rows).items()}
    for key in line_keys:
        head, generation, kept, dropped, num_dropped = map(text, next(rows))
        commits = [[(c["generation"], c["id"]) for c in json.loads(entries)] for entries in (kept, dropped)]
        assert len(commits[1]) == int(num_dropped)
        picture.lines[key] = LinePicture(head, int(generation), *commits)
    return picture


class WatchedLedger(Ledger):
    """A ledger on the test's clock that checks every transition, and all indexes after it."""

    def __init__(self, redis: Redis, timings: Timings, edges: set[Edge] | None = None) -> None:
        super().__init__(redis, timings)
        self.edges: set[Edge] = set() if edges is None else edges
        self.watching = True
        self._seen = take_picture(redis)
        for operation in OPERATIONS:
            lua = source(operation)
            assert lua.count(SERVER_TIME) == 1
            self._scripts[operation] = redis.register_script(lua.replace(SERVER_TIME, TEST_TIME))

    def forget_what_was_seen(self) -> None:
        """The database was changed behind the ledger's back."""
        self._seen = take_picture(self.redis)

    @property
    def seen_lines(self) -> dict[str, LinePicture]:
        """The lines as they were after the last call."""
        return self._seen.lines

    def server_time(self) -> float:
        seconds, micros = self.redis.hmget(CLOCK_KEY, "s", "us")
        return float(text(seconds)) + float(text(micros)) / 1e6

    def _call(self, operation: str, doing: str, *args: Any, client: Any = None) -> Any:
        with self.watch(operation):
            return super()._call(operation, doing, *args, client=client)

    def submit_many(self, jobs: Sequence[NewJob], batch: int = 500) -> list[Submitted]:
        with self.watch("submit"):
            return super().submit_many(jobs, batch)

    @contextmanager
    def watch(self, operation: str) -> Iterator[None]:
        if not self.watching:
            yield
            return
        yield
        before, self._seen = self._seen, take_picture(self.redis)
        check(self._seen)
        for job_id in before.records.keys() | self._seen.records.keys():
            was, now = before.records.get(job_id), self._seen.records.get(job_id)
            steps = [was.status if was else None, now.status if now else None]
            if operation == "end_attempt" and steps[0] is Status.PENDING and steps[1] is not Status.PENDING:
                steps.insert(1, Status.RUNNING)  # a late ending takes the job back from the reaper first
            for step in pairwise(steps):
                self._judge(job_id, *step)
        for key, was_line in before.lines.items():
            judge_line(operation, was_line, self._seen.lines[key])

    def _judge(self, job_id: str, before: Status | None, after: Status | None) -> None:
        if before == after:
            return
        self.edges.add((str(before or ""), str(after or "")))
        if before is None:
            assert after in (Status.DRAFT, Status.PENDING), f"{job_id} came into being as {after}"
        elif after is None:
            assert before.ended, f"{job_id} was deleted while {before}"
        else:
            assert may_follow(before, after), f"{job_id} went from {before} to {after}"


def judge_line(operation: str, before: LinePicture, after: LinePicture) -> None:
    """A line only goes on: no call takes its head back, brings back what was dropped, or forgets it silently."""
    if operation in ("commit", "rollback"):
        assert after.generation >= before.generation, "the head went back to an older generation"
        assert set(before.kept) <= {*after.kept, *after.dropped}, "a kept commit vanished"
        assert not set(before.dropped) & set(after.kept), "a dropped commit came back"
        assert (before.head != after.head) == (after.generation > before.generation)
    else:
        assert (before.head, before.kept) == (after.head, after.kept), f"{operation} moved a line"
        assert operation == "collected" or before.dropped == after.dropped


def _check_line(line: LinePicture) -> None:
    generations = [generation for generation, _ in line.kept]
    assert generations == sorted(set(generations)), "kept out of order"
    assert line.kept[-1] == (line.generation, line.head), "the head is the newest of the kept commits"
    assert len(line.kept) <= 27
    assert len(line.dropped) <= 1000
    assert not set(line.kept) & set(line.dropped)


def check(picture: Picture) -> None:
    """Every record is in exactly the indexes that its status says; every count and every history is right."""
    for group, members in picture.indexes.items():
        mine = {job_id: r for job_id, r in picture.records.items() if r.group == group}
        expected: dict[str, set[str]] = {name: set() for name in SETS}
        for job_id, record in mine.items():
            for name in record.places(job_id in members["delayed"]):
                expected[name].add(job_id)
        assert members == expected
        counts = picture.counts[group]
        for status in (Status.COMPLETED, Status.FAILED, Status.CANCELED):
            assert counts.get(status, 0) == sum(r.is_job and r.status is status for r in mine.values()), status
    for job_id, record in picture.records.items():
        _check_record(job_id, record)
    for line in picture.lines.values():
        _check_line(line)


def _check_record(job_id: str, record: Record) -> None:
    fields, last = record.fields, record.last_attempt
    assert record.where == record.group, f"{job_id} is told to be in {record.where}"
    if record.status is Status.RUNNING:
        assert last is not None
        assert (last["n"], last["nonce"]) == (int(fields["attempt"]), fields["nonce"])
        assert "ended" not in last, f"the history of {job_id} closed a running attempt"
    elif last is not None:
        assert "ended" in last, f"the history of {job_id} holds an open attempt while it is {record.status}"
    ended = record.status.ended and record.is_job
    assert fields.get("endings", "0") == ("1" if ended else "0"), f"{job_id} ended {fields.get('endings')} times"
    assert fields.get("completions", "0") == ("1" if record.status is Status.COMPLETED else "0")
    assert int(fields.get("num_interruptions", 0)) >= 0


TIMINGS = Timings(tick_interval_s=0.0)
"""Production's, except that a tick is never refused for coming too soon."""


class World:
    """A ledger, its clock, and short words for what clients, brokers and workers do to it."""

    def __init__(self, redis: Redis, timings: Timings = TIMINGS, edges: set[Edge] | None = None) -> None:
        self.redis = redis
        self.clock = TestClock(redis)
        self.ledger = WatchedLedger(redis, timings, edges)
        self._nonces = (f"nonce{n}" for n in itertools.count(1))

    # -- client ------------------------------------------------------------------------------------------------------

    def new(self, job_id: str = "j1", **given: Any) -> NewJob:
        fields: dict[str, Any] = {
            "group": GROUP, "definition": json.dumps({"command": "sim", "job": job_id}),
            "message": json.dumps({"properties": {"delivery_tag": TAG}, "body": f"[{job_id}] {TAG}"}),
            "priority": 4, "heartbeat_s": 15.0, "max_failures": 3, "digest": "d1",
        }  # fmt: skip
        return NewJob(job_id, **(fields | given))

    def submit(self, job_id: str = "j1", **given: Any) -> Submitted:
        return self.ledger.submit(self.new(job_id, **given))

    # -- broker ------------------------------------------------------------------------------------------------------

    def messages(self, priority: int = 4, group: str = GROUP) -> list[str]:
        """Messages on a list, the next one first."""
        return [text(row) for row in self.redis.lrange(keys.queue_list(group, priority), 0, -1)][::-1]

    def pop(self, priority: int = 4, group: str = GROUP) -> tuple[str, float] | None:
        """Take a message as kombu does: the job's id, and when it was published."""
        raw = self.redis.rpop(keys.queue_list(group, priority))
        if raw is None:
            return None
        tag = json.loads(text(raw))["properties"]["delivery_tag"]
        at = published_at(tag)
        assert at is not None
        return tag.split(".", 2)[2], at

    # -- worker ------------------------------------------------------------------------------------------------------

    def ask(
        self, job_id: str = "j1", machine: str = "m1", nonce: str = "", received_at: float | None = None, **may: bool
    ) -> Claim:
        nonce = nonce or next(self._nonces)
        may_run = may.get("may_run", True)
        return self.ledger.claim(job_id, nonce, machine, f"w@{machine}", received_at, may_run=may_run)

    def claim(self, job_id: str = "j1", machine: str = "m1", nonce: str = "") -> FencingToken:
        answer = self.ask(job_id, machine, nonce)
        assert isinstance(answer, Granted), answer
        return answer.token

    def start(self, job_id: str = "j1", machine: str = "m1") -> FencingToken:
        """Claim, and launch the command."""
        token = self.claim(job_id, machine)
        self.ledger.renew(token, Phase.EXECUTING)
        return token

    def alive(self, *machines: str) -> None:
        for machine in machines:
            self.ledger.pulse(GROUP, machine, [], alive=True)

    def commit(
        self, token: FencingToken, generation: int, *prefixes: str, why: str = "quiet", base: str = ""
    ) -> list[Line]:
        """Commit to lines, as an attempt does that restored from ``base``."""
        commits = [new_commit(token, generation, prefix, why=why, base=base) for prefix in prefixes or ("ck/",)]
        return self.ledger.commit(token, commits, {"why": why})

    def line(self, prefix: str = "ck/") -> Line:
        [line] = self.ledger.lines([address(prefix)])
        return line

    # -- maintenance -------------------------------------------------------------------------------------------------

    def tick(self, **given: Any) -> Tick:
        options: dict[str, Any] = {"uptime_s": LONG_UP, "saw_outage": False, "fresh": False}
        done = self.ledger.tick(GROUP, **(options | given))
        assert done is not None, "busy"
        return done

    def wait(self, seconds: float, step_s: float = 5.0, **given: Any) -> Tick:
        """Let time pass as it does in a group that is looked after; sums up what the ticks did."""
        ticks = []
        left = seconds
        while left > 1e-9:
            self.clock.advance(min(step_s, left))
            left -= step_s
            ticks.append(self.tick(**given))
        return Tick(
            self.clock.now,
            reaped=sum(t.reaped for t in ticks),
            promoted=sum(t.promoted for t in ticks),
            republished=sum(t.republished for t in ticks),
            expired=sum(t.expired for t in ticks),
            outbox=tuple(job_id for t in ticks for job_id in t.outbox),
            lost=tuple(job_id for t in ticks for job_id in t.lost),
        )

    def field(self, job_id: str, name: str, group: str = GROUP) -> str | None:
        value = self.redis.hget(keys.job(group, job_id), name)
        return None if value is None else text(value)

    def score(self, index: str, job_id: str = "j1") -> float | None:
        return self.redis.zscore(keys.index(GROUP, index), job_id)


def address(prefix: str = "ck/") -> LineAddress:
    return LineAddress("https://s3.example", "bucket", prefix)


def commit_id(token: FencingToken, generation: int) -> str:
    return f"{generation:010}-{token.attempt}-{token.nonce[:8]}"


def new_commit(
    token: FencingToken, generation: int, prefix: str = "ck/", *, why: str = "quiet", base: str = ""
) -> NewCommit:
    name = commit_id(token, generation)
    manifest = f"{prefix}.kelpie/commits/{name}.json.zst"
    return NewCommit(
        address(prefix), name, generation, manifest, why, files=3, bytes=10**15 + 7, sent_bytes=5, base=base
    )


def completed(result: Any = None, **given: Any) -> Ending:
    return Ending(Outcome.COMPLETED, Reason.EXIT_CODE, result=result, **given)


def failure(reason: Reason = Reason.EXIT_CODE, message: str = "exit code 1", **given: Any) -> Ending:
    return Ending(Outcome.FAILURE, reason, message, **given)


def interruption(**given: Any) -> Ending:
    return Ending(Outcome.INTERRUPTION, Reason.WORKER_SHUTDOWN, "SIGTERM", **given)


def canceled() -> Ending:
    return Ending(Outcome.CANCELED, Reason.CANCELED, "canceled")


def again() -> Ending:
    return Ending(Outcome.CONTINUE, Reason.CHECKPOINTED, "exit code 75")
