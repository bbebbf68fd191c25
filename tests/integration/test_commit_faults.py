"""P1 and P3 on a real S3 server and a real ledger: something happens to every single request of a job that commits.

A restore afterwards brings exactly what the ledger's head says: the first commit, the second, or nothing yet.
"""

# ruff: noqa: ASYNC240 -- small files, made and looked at by the test itself
from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from kelpie_celery.checkpoints.address import endpoint_of
from kelpie_celery.clock import Instant, SystemClock
from kelpie_celery.errors import KelpieError, LeaseLost
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.types import Ending, FencingToken, Line, LineAddress
from kelpie_celery.lifecycle import Outcome, Reason
from kelpie_worker.lease import Lease
from kelpie_worker.sync import SyncSession
from kelpie_worker.sync.config import StorageConfig
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.store import open_store
from tests.contract.desk import tree
from tests.contract.fakes_s3 import HandFence
from tests.contract.shelf import config_of
from tests.integration.commit_cases import (
    LEASE_S,
    MIB,
    WHYS,
    Place,
    claim,
    environment,
    ledger_at,
    prepare,
    session,
    states,
    submit,
    two_commits,
    write,
)
from tests.integration.sync_proxy import Fault, Proxy, proxy_before

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from kelpie_celery.local.servers import SeaweedServer

AT_ONCE = 4
FAULTS: tuple[Fault, ...] = ("500", "drop", "stall", "cut", "swallow", "short")
FIRST, SECOND = states()
_numbers = itertools.count(1)


@dataclass
class Case:
    """One job with a prefix of its own, behind a proxy of its own."""

    field: Field
    name: str
    proxy: Proxy
    place: Place
    token: FencingToken

    @property
    def store(self) -> Callable[[], object]:
        config = replace(self.field.config, endpoint_url=self.proxy.url, read_timeout_s=self.field.read_timeout_s)
        return partial(open_store, config)

    @property
    def home(self) -> Path:
        return self.field.home / self.name / f"{next(_numbers)}"

    def session(self, token: FencingToken, fence: Fence, *, through_proxy: bool) -> tuple[SyncSession, Path, Path]:
        store = self.store if through_proxy else partial(open_store, self.field.config)
        return session(self.place, self.field.ledger, token, fence, self.home, store)  # type: ignore[arg-type]

    async def next_attempt(self) -> FencingToken:
        """Claim the job as soon as its lease is over."""
        async with asyncio.timeout(30):
            while (
                token := await asyncio.to_thread(claim, self.field.ledger, self.name, f"{next(_numbers):08x}")
            ) is None:
                await asyncio.sleep(0.2)
        return token

    def line(self) -> Line:
        address = LineAddress(endpoint_of(self.place.endpoint_url), self.place.bucket, f"{self.place.prefix}ck/")
        [line] = self.field.ledger.lines([address])
        return line

    async def restored(self) -> dict[str, bytes]:
        """What the next attempt, on another machine, gets."""
        self.field.end(self.token)
        sync, directory, _ = self.session(await self.next_attempt(), HandFence(), through_proxy=False)
        async with sync:
            await sync.restore()
            return tree(directory)

    async def is_whole(self, of: tuple[dict[str, bytes], dict[str, bytes]] = (FIRST, SECOND)) -> str:
        """Which commit the ledger says is the newest; a restore must bring exactly that one."""
        head = self.line().head
        found = await self.restored()
        if head is None:
            # Perhaps the first one is whole on the storage: then it may be taken.
            assert found in ({}, of[0]), f"{self.name}: {found.keys()}"
            return ""
        assert found == of[WHYS.index(head.why)], f"{self.name}: not what {head.why} committed: {found.keys()}"
        return head.why


@dataclass
class Field:
    """What the cases of one test share."""

    config: StorageConfig
    ledger: Ledger
    bucket: str
    home: Path
    redis_url: str
    read_timeout_s: float = 5.0

    @asynccontextmanager
    async def case(self, plain: str = "never") -> AsyncIterator[Case]:
        name = f"job-{next(_numbers)}"
        assert self.config.endpoint_url
        async with proxy_before(self.config.endpoint_url) as proxy:
            submit(self.ledger, name)
            token = claim(self.ledger, name, f"{next(_numbers):08x}")
            assert token
            yield Case(self, name, proxy, Place(self.config.endpoint_url, self.bucket, f"{name}/", plain), token)

    def end(self, token: FencingToken) -> None:
        """The attempt is over, if it is not already."""
        try:
            self.ledger.end_attempt(token, Ending(Outcome.INTERRUPTION, Reason.WORKER_SHUTDOWN))
        except LeaseLost:
            return


@pytest.fixture
def field(
    s3_server: SeaweedServer, s3: S3Client, s3_bucket: str, redis_url: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Field:  # fmt: skip
    prepare(monkeypatch)
    return Field(config_of(s3_server.env()), ledger_at(redis_url), s3_bucket, tmp_path, redis_url)


T = TypeVar("T")


async def a_few_at_once(items: Iterable[T], work: Callable[[T], Awaitable[None]], at_once: int = AT_ONCE) -> None:
    free = asyncio.Semaphore(at_once)

    async def one(item: T) -> None:
        async with free:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for item in items:
            group.create_task(one(item))


async def count_requests(field: Field) -> int:
    """How many requests the job of two commits makes when nothing happens."""
    async with field.case() as case:
        sync, directory, _ = case.session(case.token, HandFence(), through_proxy=True)
        async with sync:
            await two_commits(sync, directory, (FIRST, SECOND))
        assert await case.is_whole() == WHYS[1]
        assert case.proxy.count("PUT") >= 7, "two packs, three segments and two manifests"
        return len(case.proxy.seen)


# -- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_of_any_request_is_recovered_from(field: Field, fault: Fault) -> None:
    if fault == "stall":
        field.read_timeout_s = 0.7
    requests = await count_requests(field)
    ends: list[str] = []

    async def fail(number: int) -> None:
        async with field.case() as case:
            case.proxy.before = _at(number, fault)
            sync, directory, _ = case.session(case.token, HandFence(), through_proxy=True)
            try:
                async with sync:
                    await two_commits(sync, directory, (FIRST, SECOND))
            except KelpieError as error:
                ends.append(f"request {number} {case.proxy.seen[number - 1]}: {error}")
            assert await case.is_whole() == WHYS[1] or ends

    await a_few_at_once(range(1, requests + 1), fail)
    assert ends == [], "once is no reason to give up"


def _at(number: int, fault: Fault) -> Callable[[int], Awaitable[Fault | None]]:
    async def before(count: int) -> Fault | None:
        return fault if count == number else None

    return before


async def test_faults_of_large_segments_are_recovered_from(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in production's sizes, for one of the two segments of the large file."""
    monkeypatch.undo()
    monkeypatch.setattr("kelpie_worker.sync.segments._PAUSE_S", 0.05)
    of = states(40 * MIB)
    async with field.case() as case:
        field.read_timeout_s = 3.0
        faults = [fault for fault in FAULTS if fault != "cut"]  # its answer has no body that could be cut
        rules = [case.proxy.fail("PUT", "/data/.*0002", fault) for fault in faults]
        sync, directory, _ = case.session(case.token, HandFence(), through_proxy=True)
        async with sync:
            await two_commits(sync, directory, of)
        assert [rule.met for rule in rules] == [1] * len(faults)
        assert await case.is_whole(of) == WHYS[1]


# -- SIGKILL ---------------------------------------------------------------------------------------------------------


class Children:
    """Processes that run the job of two commits; see ``commit_child``."""

    def __init__(self, forker: asyncio.subprocess.Process) -> None:
        self._forker, self._one_at_a_time = forker, asyncio.Lock()

    async def start(self, case: Case) -> int:
        """Start one; its pid."""
        job = {
            "proxy": case.proxy.url, "endpoint": case.place.endpoint_url, "bucket": case.place.bucket,
            "prefix": case.place.prefix, "redis": case.field.redis_url, "job_id": case.token.job_id,
            "attempt": case.token.attempt, "nonce": case.token.nonce, "home": str(case.home),
        }  # fmt: skip
        async with self._one_at_a_time:
            assert self._forker.stdin
            assert self._forker.stdout
            self._forker.stdin.write(json.dumps(job).encode() + b"\n")
            return int(await self._forker.stdout.readline())

    @staticmethod
    async def ended(pid: int) -> None:
        async with asyncio.timeout(60):
            while Path(f"/proc/{pid}").exists():
                await asyncio.sleep(0.02)


@pytest.fixture
async def children(s3_server: SeaweedServer) -> AsyncIterator[Children]:
    forker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.commit_child", stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, env={**environment(), **s3_server.env()},
    )  # fmt: skip
    yield Children(forker)
    assert forker.stdin
    forker.stdin.close()
    await forker.wait()


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_worker_that_is_killed_at_any_request_leaves_one_whole_commit(
    field: Field, children: Children, when: str
) -> None:
    requests = await count_requests(field)
    newest: dict[int, str] = {}

    async def kill(number: int) -> None:
        async with field.case() as case:
            pid: asyncio.Future[int] = asyncio.get_running_loop().create_future()

            async def now(count: int) -> None:
                if count == number:
                    os.kill(await pid, signal.SIGKILL)
                    await children.ended(await pid)

            async def before(count: int) -> Fault | None:
                await now(count)
                return "drop" if count >= number else None

            case.proxy.before, case.proxy.after = (before, None) if when == "before" else (None, now)
            pid.set_result(await children.start(case))
            await children.ended(await pid)
            assert len(case.proxy.seen) >= number, "it ended before"
            newest[number] = await case.is_whole()

    await a_few_at_once(range(1, requests + 1), kill)
    reached = [newest[number] for number in sorted(newest)]
    assert set(reached) >= {"", WHYS[0]}, f"it never died between commits: {reached}"
    order = ("", *WHYS)
    assert [order.index(why) for why in reached] == sorted(order.index(why) for why in reached)


# -- two at once -----------------------------------------------------------------------------------------------------

MARGIN_S = 0.6
LATE_S = LEASE_S + 1.2
"""How long after a freeze the held requests go on: past every signature, each of which lasts whole seconds."""
PART_BYTES = 5 * MIB
"""The smallest part of an upload that S3 takes: plain keys are put together of them."""
OLD = states(3 * PART_BYTES // 2)
NEWER = OLD[0] | {"a": b"the newer attempt's", "only": b"here"}


class Frozen:
    """The lease of an attempt, and its requests, all of which wait from the one on before which it is frozen.

    Args:
        case: Whose proxy holds them.
        number: Before which request.
    """

    def __init__(self, case: Case, number: int) -> None:
        self.is_frozen, self._goes_on, self._number = asyncio.Event(), asyncio.Event(), number
        clock = SystemClock()
        self.lease = Lease(
            case.token, case.field.ledger, lease_s=LEASE_S, margin_s=MARGIN_S, blind_s=60.0, heartbeat_s=LEASE_S / 3,
            granted=Instant.now(clock), clock=clock, on_cancel=lambda: None,
        )  # fmt: skip
        self._heart = asyncio.create_task(self.lease.keep())
        case.proxy.before = self._hold

    async def _hold(self, count: int) -> Fault | None:
        if count >= self._number and not self._goes_on.is_set():
            self._heart.cancel()
            self.is_frozen.set()
            await self._goes_on.wait()
        return None

    def thaw(self) -> None:
        """What was held goes to the storage, and the process learns that it has lost its job."""
        self._goes_on.set()
        self._heart = asyncio.create_task(self.lease.keep())

    async def close(self) -> None:
        self._heart.cancel()
        await asyncio.gather(self._heart, return_exceptions=True)


async def whole_life(opened: tuple[SyncSession, Path, Path], of: Iterable[dict[str, bytes]], name: str) -> None:
    """An attempt from its restore to its marker, with plain keys and outputs."""
    sync, directory, out = opened
    async with sync:
        await sync.restore()
        for state in of:
            write(directory, state)
            (out / "result").write_text(name)
            await sync.commit("exit")
        sync.move_outputs_aside()
        await sync.upload_outputs()
        await sync.write_marker({"by": name})
        await sync.end_watch()


async def test_whatever_a_frozen_attempt_was_about_to_send_is_refused_after_a_newer_ones_end(
    field: Field, s3: S3Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(monkeypatch, PART_BYTES, PART_BYTES)
    async with field.case("end") as case:
        await whole_life(case.session(case.token, HandFence(), through_proxy=True), OLD, "old")
        requests, seen = len(case.proxy.seen), case.proxy
        assert seen.count("DELETE"), "a plain key went with its file"
        assert seen.count("PUT", "partNumber=2"), "the large one was put together"
        assert seen.count("PUT", "completed.json") == 1

    async def freeze(number: int) -> None:
        async with field.case("end") as case:
            frozen = Frozen(case, number)
            life = whole_life(case.session(case.token, frozen.lease, through_proxy=True), OLD, "old")
            old = asyncio.create_task(life)
            await asyncio.wait({old, asyncio.create_task(frozen.is_frozen.wait())}, return_when="FIRST_COMPLETED")
            assert not old.done(), f"request {number} was never made: {old}"
            late = asyncio.create_task(asyncio.sleep(LATE_S))
            case.token = await case.next_attempt()
            await whole_life(case.session(case.token, HandFence(), through_proxy=False), (NEWER,), "new")
            await late
            before = _listing(s3, field.bucket, case.name)
            frozen.thaw()
            await asyncio.wait({old}, timeout=20)
            assert old.done(), f"request {number}: the old attempt goes on"
            assert isinstance(old.exception(), KelpieError), f"request {number}: {old}"
            assert _listing(s3, field.bucket, case.name) == before, f"request {number}: {case.proxy.seen[number - 1]}"
            await frozen.close()
            assert await case.restored() == NEWER

    await a_few_at_once(range(1, requests + 1), freeze, 2 * AT_ONCE)


def _listing(s3: S3Client, bucket: str, prefix: str) -> dict[str, str]:
    found = s3.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/").get("Contents", [])
    return {entry["Key"]: entry["ETag"] for entry in found}
