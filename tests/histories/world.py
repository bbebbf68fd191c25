"""A history: one job after another on the same prefixes, on a storage, a ledger and machines that fail.

The ledger is the product's, with its own Lua on a Valkey server, on the history's clock. After each step everything
that must hold is looked at; what does not is told with all that happened until then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis

from kelpie_celery.checkpoints import layout
from kelpie_celery.checkpoints.collect import Collector
from kelpie_celery.checkpoints.rollback import Rollback
from kelpie_celery.definition import JobDefinition, parse_definition
from kelpie_celery.errors import KelpieError, LeaseLost
from kelpie_celery.ledger.types import (
    Ended,
    Ending,
    FencingToken,
    Granted,
    Line,
    LineAddress,
    NewCommit,
    NewJob,
)
from kelpie_celery.lifecycle import Outcome, Reason
from kelpie_celery.messages import TAG
from kelpie_celery.settings import load_settings
from tests.histories.attempts import HistoryAttempt, How
from tests.histories.disk import FileOp, State, scan, shown
from tests.histories.ledger_clock import HistoryLedger
from tests.histories.person import Killed, PersonsStorage
from tests.histories.port import HistoryStore
from tests.histories.truth import Torn, Truth
from tests.histories.virtual_time import HistoryClock

BUCKET, GROUP = "bucket", "gpus"
START = 1_800_000_000.0
LEASE_S = 120.0
GRACE_S = 300.0
LOSS_S = 100.0
"""A ledger loses what was written within this time before; far less than the grace."""
COLLECT_EVERY_S = 15.0
MOST_LOST = 5


@dataclass
class Remembered:
    """The ledger before one of its last writes."""

    at: float
    database: list[str]
    job: int
    lines: list[Line]
    floor: int
    granted: int


@dataclass
class Options:
    """What a whole history is like.

    Attributes:
        lines: How many checkpoint prefixes the job has.
        blind: Nobody hears of changes to files; directories are looked at.
        versioned: The bucket keeps versions.
        plain: When plain keys follow.
    """

    lines: int = 1
    blind: bool = False
    versioned: bool = False
    plain: str = "interval"


@dataclass
class World:
    """See the module."""

    root: Path
    redis: Redis
    options: Options
    trace: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = HistoryClock(START)
        self.redis.flushdb()
        self.ledger = HistoryLedger(self.redis, self.clock)
        self.store = HistoryStore(self.clock, BUCKET)
        if self.options.versioned:
            self.store.versioned.add(BUCKET)
        self.line_names = ["ck", "more"][: self.options.lines]
        self.prefixes = [f"{name}/" for name in self.line_names]
        self.settings = load_settings({
            "KELPIE_REDIS_URL": "redis://127.0.0.1:1/0", "KELPIE_COMMIT_INTERVAL_S": "5",
            "KELPIE_PLAIN_INTERVAL_S": "10", "KELPIE_GC_GRACE_S": str(GRACE_S), "KELPIE_STORAGE_RETRY_S": "300",
        })  # fmt: skip
        self.definition = _definition(self.line_names, self.options.plain)
        self.truth = Truth(self.store, BUCKET, self.prefixes)
        self.live: HistoryAttempt | None = None
        self.frozen: list[HistoryAttempt] = []
        self.owner: FencingToken | None = None
        self.granted = 0
        self.not_before = 0.0
        self.floor = 0
        self.outputs: dict[int, State] = {}
        self.memory: deque[Remembered] = deque(maxlen=MOST_LOST)
        self._numbers = 0
        self._job = 0
        self._violations: list[str] = []
        self._submit()

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def note(self, what: str) -> None:
        self.trace.append(f"{self.clock.now() - START:10.1f} {what}")

    def violation(self, what: str) -> None:
        self.note(f"VIOLATION {what}")
        self._violations.append(what)

    # -- the job ------------------------------------------------------------------------------------------------------

    @property
    def job_id(self) -> str:
        return f"job-{self._job}"

    def _submit(self) -> None:
        self._job += 1
        self.ledger.submit(
            NewJob(
                self.job_id, GROUP, "{}", f'{{"properties": {{"delivery_tag": "{TAG}"}}}}', 4, LEASE_S / 2, 1_000_000,
                digest="d",
            )
        )  # fmt: skip
        self.note(f"{self.job_id} is submitted")

    def lines(self) -> list[Line]:
        """Where the lines stand; what `holder_lives` and `now` say may be old."""
        if self.ledger.known_lines is None:
            found = self.ledger.lines([LineAddress("", BUCKET, prefix) for prefix in self.prefixes])
            self.ledger.known_lines = found
        return self.ledger.known_lines

    def tick(self) -> None:
        self.ledger.tick(GROUP, uptime_s=1e9, saw_outage=False, fresh=False)

    def attempt(self, faults: dict[int, str] | None = None) -> HistoryAttempt | None:
        """The attempt that runs the job, a new one if need be; None when it did not get as far as its command."""
        if self.live is not None:
            return self.live
        self.clock.time = max(self.clock.now(), self.not_before)
        granted = self._claim()
        self.owner, self.granted = granted.token, self.granted + 1
        attempt = HistoryAttempt(self, granted)
        self.note(f"attempt {granted.token.attempt} of {granted.token.job_id} starts on {attempt.home.name}")
        attempt.port.plan = dict(faults or {})
        if self._ok(attempt, attempt.begin) and not self._adopt(attempt):
            self.live = attempt
            if self._ok(attempt, lambda: attempt.run(attempt.session.restore())):
                self._restored(attempt)
                attempt.watch()
        return self.live

    def _claim(self) -> Granted:
        for _ in range(5):
            self.tick()
            number = self.next_number()
            self.remember()
            answer = self.ledger.claim(
                self.job_id, f"{number:08x}-nonce", f"m{number}", f"w{number}", None, may_run=True
            )  # fmt: skip
            if isinstance(answer, Granted):
                return answer
            self.memory.pop()
            if isinstance(answer, Ended) or (status := self.ledger.status_of(self.job_id)) is None or status.ended:
                self._submit()
            else:
                self.clock.sleep(LEASE_S + 1.0)  # until the lease of whoever has it is over
        raise AssertionError(f"{self.job_id} is never to be had: {answer}")

    def _adopt(self, attempt: HistoryAttempt) -> bool:
        """Whether an earlier attempt had finished; then the job ends here."""
        if attempt.token.attempt == 1:
            return False
        found: list[Any] = []

        async def look() -> None:
            found.append(await attempt.session.find_marker())

        if not self._ok(attempt, lambda: attempt.run(look())):
            return True
        if found[0] is None:
            return False
        self.note("an earlier attempt had finished")
        self._complete(attempt, found[0]["result"]["number"], Reason.ADOPTED)
        return True

    def _restored(self, attempt: HistoryAttempt) -> None:
        wanted, found = self.truth.expected(self.lines()), attempt.now_holds()
        self.note(f"restored {' | '.join(map(shown, found))}")
        if found != wanted:
            raise Torn(
                f"restored\n    {' | '.join(map(shown, found))}\n  and not\n    {' | '.join(map(shown, wanted))}"
            )
        attempt.held.append(wanted)

    def _ok(self, attempt: HistoryAttempt, do: Callable[[], How]) -> bool:
        """Whether an attempt did something to its end; if not, it is seen to."""
        try:
            how = do()
        except KelpieError as error:
            self.note(f"attempt {attempt.token.attempt} ends: {type(error).__name__}: {error}")
            self._end(attempt, None if isinstance(error, LeaseLost) else Outcome.INTERRUPTION)
            return False
        except TimeoutError:
            how = "over"
        if how == "done":
            return True
        self.note(f"attempt {attempt.token.attempt}: {how}")
        if how == "over":
            self._end(attempt, Outcome.INTERRUPTION)
        if how == "frozen":
            self.frozen.append(attempt)
        if attempt is self.live:
            self.live = None
        return False

    def _end(self, attempt: HistoryAttempt, outcome: Outcome | None, reason: Reason = Reason.WORKER_ERROR) -> None:
        """Let an attempt end in order; None: it has no job to end any more."""
        if attempt is self.live:
            self.live = None
        if outcome is not None:
            self.remember()
            with contextlib.suppress(LeaseLost):
                self.ledger.end_attempt(attempt.token, Ending(outcome, reason, result={"ok": 1}))
        attempt.leave()

    # -- what happens -------------------------------------------------------------------------------------------------

    def start(self, faults: dict[int, str]) -> None:
        self.attempt(faults)

    def commit(
        self, why: str, ops: Sequence[FileOp], where: int, faults: dict[int, str], disturbances: Sequence[FileOp]
    ) -> None:
        """The job writes, and the watch commits: at the job's word, or because it is quiet."""
        attempt = self._prepared(ops, where, faults, disturbances)
        if attempt:
            if why == "report":
                attempt.session.request_commit()
            wait_s = {"report": 2.0, "quiet": 8.0, "idle": 1.5 * COLLECT_EVERY_S}[why]
            self._ok(attempt, lambda: attempt.run(_sleep(wait_s)))

    def _prepared(
        self, ops: Sequence[FileOp], where: int, faults: dict[int, str], disturbances: Sequence[FileOp] = ()
    ) -> HistoryAttempt | None:
        """An attempt whose job has written; ``where`` the lines are over it was to its outputs."""
        attempt = self.attempt()
        if attempt:
            attempt.port.plan |= {attempt.port.requests + number: fault for number, fault in faults.items()}
            attempt.disturbances = list(disturbances)
            for op in ops:
                attempt.work(op, where)
            attempt.look()
            self.note(f"{', '.join(map(str, ops))}: {' | '.join(map(shown, attempt.moments[-1]))}")
        return attempt

    def end(self, how: str, ops: Sequence[FileOp], where: int, faults: dict[int, str]) -> None:
        """The command ends: by itself and well, to be run again, told to, or in the middle of something."""
        attempt = self._prepared(ops, where, faults)
        if not attempt:
            return
        session = attempt.session

        async def last() -> None:
            await attempt.end_watch()
            if how == "exit":
                await session.commit("exit")
            else:
                await session.commit("sigterm" if how == "sigterm" else "exit", in_order=how != "crash", plain=False)

        if not self._ok(attempt, lambda: attempt.run(last())):
            return
        if how != "crash" and attempt.held[-1] != attempt.now_holds():
            raise Torn(f"the last commit does not hold {' | '.join(map(shown, attempt.now_holds()))}")
        if how == "exit":
            self._finish(attempt)
        else:
            outcome = {"again": Outcome.CONTINUE, "sigterm": Outcome.INTERRUPTION, "crash": Outcome.FAILURE}[how]
            reason = Reason.CHECKPOINTED if how == "again" else Reason.EXIT_CODE
            self._end(attempt, outcome, Reason.WORKER_SHUTDOWN if how == "sigterm" else reason)

    def _finish(self, attempt: HistoryAttempt) -> None:
        session, number = attempt.session, self.next_number()
        if self.options.plain != "never":
            self._plain_keys_are(attempt)
        self.outputs[number] = scan(attempt.out.directory)

        async def upload() -> None:
            session.move_outputs_aside()
            await session.upload_outputs()
            await session.write_marker({"number": number})

        if self._ok(attempt, lambda: attempt.run(upload())):
            self._complete(attempt, number, Reason.DONE)

    def _plain_keys_are(self, attempt: HistoryAttempt) -> None:
        for prefix, state in zip(self.prefixes, attempt.now_holds(), strict=True):
            for path, entry in state.items():
                if entry[0] == "file" and path.isprintable():  # others have no plain key
                    found = self.store.objects[BUCKET].get(f"{prefix}{path}")
                    if found is None or found.data != entry[2]:  # type: ignore[misc]
                        raise Torn(f"plain key {prefix}{path} is not the file that the last commit holds")

    def _complete(self, attempt: HistoryAttempt, number: int, reason: Reason) -> None:
        """The job is over: its outputs must be there. The next job goes on from its checkpoint."""
        for path, entry in self.outputs[number].items():
            if entry[0] == "file":
                found = self.store.objects[BUCKET].get(f"out/{path}")
                if found is None or found.data != entry[2]:  # type: ignore[misc]
                    raise Torn(f"output {path} is not there, although the job is complete")
        self._end(attempt, Outcome.COMPLETED, reason)

    def die(self) -> None:
        if self.live:
            self.note(f"attempt {self.live.token.attempt} is killed")
            self.live.bury()
            self.live = None

    def freeze(self) -> None:
        if self.live:
            self.note(f"attempt {self.live.token.attempt} is frozen")
            self.frozen.append(self.live)
            self.live = None

    def thaw(self, which: int) -> None:
        if not self.frozen:
            return
        attempt = self.frozen.pop(which % len(self.frozen))
        self.note(f"attempt {attempt.token.attempt} is thawed")
        do = attempt.thaw if attempt.frozen else lambda: attempt.run(_sleep(30.0))
        if self._ok(attempt, do):
            # What it was doing is done; whether it still has its job it learns when it goes on.
            if self.live is None and self.owner == attempt.token and attempt.moments:
                self.live = attempt
            else:
                self._end(attempt, None)

    def wait(self, seconds: float) -> None:
        self.clock.sleep(seconds)
        self.tick()

    def lose(self, count: int) -> None:
        """The ledger loses its last writes."""
        young = [one for one in self.memory if self.clock.now() - one.at <= LOSS_S]
        if not young:
            return
        count = min(count, len(young))
        back = young[-count]
        for _ in range(count):
            self.memory.pop()
        self.note(f"the ledger loses its last {count} writes")
        self.ledger.bring_back(back.database)
        self._job, self.floor = back.job, back.floor
        if back.granted != self.granted:
            # Who was granted the job since trusts its lease for a while, which the ledger knows nothing of.
            self.owner = None
            self.not_before = self.clock.now() + LEASE_S

    def forget(self) -> None:
        """The ledger forgets the lines: they expired, or its disk is gone. What is restored is not older for that."""
        self.ledger.forget_lines()
        self.memory.clear()

    def roll_back(self, which: int, killed_at: int) -> None:
        """A person makes an older commit the newest again; that may be killed half-way."""
        kept = self.lines()[0].kept
        if not kept:
            return
        of = kept[which % len(kept)].id

        def before_write(key: str) -> None:
            self.truth.possible[layout.id_of_manifest(key) or ""] = [self.truth.judge(of)]

        def accept(commits: Sequence[NewCommit]) -> Sequence[Line]:
            self.remember()
            return self.ledger.rollback(self.job_id, of, commits)

        storage = PersonsStorage(self.store, killed_at, before_write)
        try:
            id_ = Rollback(storage, self.job_id, self.lines, accept, self.clock.now).to(of)
        except (KelpieError, Killed) as error:
            self.note(f"not rolled back: {type(error).__name__}: {error}")
            return
        self.note(f"rolled back to {of} by {id_}")
        self.floor = self.lines()[0].generation
        if self.truth.judge(id_) != self.truth.judge(of):
            raise Torn(f"{id_} is not what {of} is")

    def collect(self, killed_at: int, forgotten: bool) -> None:
        """A person collects what is left over, which is possible while no job lives."""
        for address in [line.address for line in self.lines()]:
            storage = PersonsStorage(self.store, killed_at, lambda _: None)

            def read(of: LineAddress = address) -> Line:
                [line] = self.ledger.lines([of])
                return line

            try:
                collector = Collector(storage, read, self._living)
                self.note(f"collected {collector.delete(collector.look(GRACE_S, forgotten=forgotten))}")
            except (KelpieError, Killed) as error:
                self.note(f"not collected: {type(error).__name__}: {error}")

    def _living(self, jobs: Set[str]) -> list[str]:
        statuses = {job: self.ledger.status_of(job) for job in jobs}
        return [job for job, status in statuses.items() if status and not status.ended]

    # -- what the ports tell ------------------------------------------------------------------------------------------

    def before_write(self, attempt: HistoryAttempt, key: str, data: bytes) -> None:
        self._may_write(attempt, f"put {key}")
        there = self.store.objects[BUCKET].get(key)
        written_once = any(key.startswith(layout.data_prefix(p)) or key.startswith(layout.commits_prefix(p))
                           for p in self.prefixes)  # fmt: skip
        if written_once and there is not None and there.data != data:
            self.violation(f"{key} is written twice")
        id_ = layout.id_of_manifest(key)
        if id_ is not None:
            self.truth.possible.setdefault(id_, []).extend(
                moment for moment in attempt.moments if moment not in self.truth.possible.get(id_, [])
            )
        for number, prefix in enumerate(self.prefixes):
            if key.startswith(prefix):
                self._may_be_plain(attempt, number, key.removeprefix(prefix), data)

    def _may_be_plain(self, attempt: HistoryAttempt, line: int, path: str, data: bytes) -> None:
        """A plain key may get what a commit holds that the ledger accepted, and nothing else."""
        for moment in attempt.held:
            entry = moment[line].get(path)
            if entry and entry[0] == "file" and entry[2] == data:  # type: ignore[misc]
                return
        self.violation(f"plain key {path} gets what no accepted commit of attempt {attempt.token.attempt} holds")

    def before_delete(self, attempt: HistoryAttempt, key: str) -> None:
        self._may_write(attempt, f"delete {key}")

    def _may_write(self, attempt: HistoryAttempt, what: str) -> None:
        """P1: whatever is visible is done by the newest attempt."""
        if self.owner is not None and attempt.token != self.owner:
            self.violation(f"attempt {attempt.token.attempt} could {what}, although {self.owner} has the job")

    def accepted(self, attempt: HistoryAttempt, commits: Sequence[NewCommit]) -> None:
        try:
            attempt.held.append(self.truth.judge(commits[0].id))
        except Torn as torn:
            self.violation(str(torn))

    def answered(self, lines: Sequence[Line]) -> None:
        self.floor = max(self.floor, min(line.head.generation for line in lines if line.head))

    def remember(self) -> None:
        """The ledger as it is, which a loss may bring back."""
        lines = self.lines()
        head = min((line.head.generation for line in lines if line.head), default=0)
        self.memory.append(Remembered(self.clock.now(), self.ledger.picture(), self._job, lines, head, self.granted))

    # -- what must hold -----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Everything that must hold after each step.

        Raises:
            Torn: It does not.
        """
        if self._violations:
            raise Torn(self._violations[0])
        lines = self.lines()
        newest = self.truth.newest(lines)
        generation = layout.parse_id(newest).generation if newest else 0  # type: ignore[union-attr]  # it is one
        if generation < self.floor:
            raise Torn(f"the newest commit is {newest}, older than generation {self.floor}, which was answered")
        young = [one.lines for one in self.memory if self.clock.now() - one.at <= LOSS_S]
        for line in (line for found in (lines, *young) for line in found):
            for entry in line.kept:
                self.truth.whole(entry)

    def finale(self) -> None:
        """Everybody is thawed; then the job goes on once more, undisturbed."""
        while self.frozen:
            self.thaw(0)
            self.check()
        self.die()
        attempt = self.attempt()
        while attempt is None:
            self.check()
            attempt = self.attempt()
        self.check()

    def close(self) -> None:
        for attempt in [*self.frozen, *([self.live] if self.live else [])]:
            attempt.bury()


async def _sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


def _definition(names: Sequence[str], plain: str) -> JobDefinition:
    def block(name: str, direction: str, **more: str) -> dict[str, str]:
        return {"bucket": BUCKET, "prefix": name, "local_path": name, "direction": direction, **more}

    return parse_definition({
        "command": "true", "container_group_id": GROUP,
        "sync": {
            "before": [block(name, "download") for name in names],
            "during": [block(name, "upload", plain=plain) for name in names],
            "after": [block("out", "upload")],
        },
    })  # fmt: skip
