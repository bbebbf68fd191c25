"""Moments at which a checkpoint of several files is half written and looks finished; P3."""

from __future__ import annotations

import asyncio
import mmap
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from kelpie_celery.definition import JobDefinition, parse_definition
from kelpie_celery.settings import load_settings
from kelpie_worker.sync import Dirs, SyncSession
from kelpie_worker.sync.object_store import ObjectStore
from kelpie_worker.sync.watching import Watch
from tests.contract.desk import is_proven
from tests.contract.fake_journal import MemoryLedger
from tests.contract.fakes_s3 import HandFence, MemoryStore

QUIET_S = 0.2


class Desk:
    """Attempts of one job, on a storage in memory; the job's process is this one."""

    def __init__(self, tmp_path: Path, commit: str = "quiet", quiet_s: float = QUIET_S) -> None:
        self.store, self.fence, self.ledger = MemoryStore("bucket"), HandFence(), MemoryLedger()
        self.base, self.scratch = tmp_path / "work", tmp_path / "scratch"
        self.base.mkdir()
        self.scratch.mkdir()
        self.checkpoint = self.base / "ckpt"
        self.ended = False
        self._definition, self._quiet_s = job(commit), quiet_s
        self._attempts = 0
        self._watch: asyncio.Future[None]

    def processes(self) -> list[int] | None:
        return None if self.ended else [os.getpid()]

    def open(self) -> SyncSession:
        self._attempts += 1
        settings = load_settings(
            {
                "KELPIE_REDIS_URL": "redis://127.0.0.1:1/0",
                "KELPIE_QUIET_S": str(self._quiet_s),
                "KELPIE_COMMIT_INTERVAL_S": "0",
            }
        )

        @asynccontextmanager
        async def store() -> AsyncIterator[ObjectStore]:
            yield self.store

        token = self.ledger.claim("job", self._attempts)
        dirs = Dirs(self.base, self.base / "input", self.base / "output", self.checkpoint)
        return SyncSession.open(
            settings, self._definition, token=token, journal=self.ledger.journal(token), fence=self.fence, dirs=dirs,
            scratch=self.scratch, store=store,
        )  # fmt: skip

    @asynccontextmanager
    async def running(self) -> AsyncIterator[SyncSession]:
        """An attempt whose command runs."""
        async with self.open() as sync:
            await sync.restore()
            self._watch = asyncio.ensure_future(sync.watch(self.processes))
            try:
                yield sync
            finally:
                await self.deafen()
                await sync.end_watch()

    async def deafen(self) -> None:
        """What happens from now on is not heard of before the last commit."""
        self._watch.cancel()
        await asyncio.gather(self._watch, return_exceptions=True)

    def write(self, **files: str) -> None:
        for name, text in files.items():
            (self.checkpoint / name).write_text(text)

    async def restored(self) -> dict[str, str]:
        """What the next attempt finds."""
        async with self.open() as sync:
            await sync.restore()
            return {path.name: path.read_text() for path in self.checkpoint.iterdir()}


def job(commit: str) -> JobDefinition:
    place = {"bucket": "bucket", "prefix": "ck", "local_path": "ckpt"}
    sync = {
        "before": [{**place, "direction": "download"}],
        "during": [{**place, "direction": "upload", "commit": commit}],
    }
    return parse_definition({"command": "true", "container_group_id": "g", "sync": sync})


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def after_commits(sync: SyncSession, count: int) -> None:
    await until(lambda: sync.commits >= count)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


async def test_a_burst_that_death_ended_is_not_committed_however_late_the_worker_learns_of_it(desk: Desk) -> None:
    async with desk.running() as sync:
        desk.write(a="1", b="1")
        await after_commits(sync, 1)
        with (desk.checkpoint / "b").open("r+"):  # open over the whole burst, as the kernel knows
            desk.write(a="2")
            await asyncio.sleep(3 * QUIET_S)
        time.sleep(3 * QUIET_S)  # noqa: ASYNC251 -- the worker gets no CPU, and then hears of the death
        desk.ended = True
        await sync.stopping()
        report = await sync.commit("exit", in_order=False)
        assert report.id == ""
    assert await desk.restored() == {"a": "1", "b": "1"}


@pytest.mark.parametrize("how", ["told to stop", "ended"])
async def test_quiet_moments_prove_nothing_once_the_command_was_told_to_stop_or_has_ended(desk: Desk, how: str) -> None:
    """What it leaves open is closed by its death, while a helper of its lives on for the whole grace period."""
    async with desk.running() as sync:
        desk.write(a="1", b="1")
        await after_commits(sync, 1)
        with (desk.checkpoint / "b").open("r+"):
            desk.write(a="2")
            await asyncio.sleep(2 * QUIET_S)
            if how == "ended":
                desk.ended = True
            else:
                await sync.stopping()
        await asyncio.sleep(5 * QUIET_S)
        assert sync.commits == 1
        report = await sync.commit("sigterm", in_order=False)
        assert report.id == ""
    assert await desk.restored() == {"a": "1", "b": "1"}


@pytest.mark.parametrize("in_burst", [True, False])
async def test_a_program_that_ends_with_an_error_at_sigterm_is_believed_if_it_was_not_writing_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_burst: bool
) -> None:
    """GROMACS ends with 1 at SIGTERM, having written its checkpoint; another one just breaks off."""
    # On a busy machine neither the burst becomes a quiet moment, nor is the watch too slow to tell.
    monkeypatch.setattr("kelpie_worker.sync.watching._STOP_S", 10.0)
    desk = Desk(tmp_path, quiet_s=2.0 if in_burst else QUIET_S)
    async with desk.running() as sync:
        desk.write(a="1", b="1")
        await after_commits(sync, 1)
        if in_burst:
            desk.write(a="2")
            await asyncio.sleep(0.05)
        await sync.stopping()
        desk.write(a="3", b="3")
        desk.ended = True
        await sync.commit("sigterm", in_order=False, obeyed=True)
    assert await desk.restored() == ({"a": "1", "b": "1"} if in_burst else {"a": "3", "b": "3"})


@pytest.mark.parametrize("overtaken", [True, False])
@pytest.mark.parametrize("commit", ["report", "marker:DONE"])
async def test_the_last_word_of_a_program_counts_though_it_is_killed_right_after(
    tmp_path: Path, commit: str, overtaken: bool
) -> None:
    desk = Desk(tmp_path, commit)
    async with desk.running() as sync:
        desk.write(a="1", DONE="1")
        if commit == "report":
            sync.request_commit(time.time_ns())
        await after_commits(sync, 1)
        await desk.deafen()
        desk.write(a="2")
        desk.write(DONE="2")
        if commit == "report":
            sync.request_commit(time.time_ns())
        await asyncio.sleep(0.05)
        if overtaken:
            desk.write(a="3")
        desk.ended = True
        await sync.commit("exit", in_order=False)
    assert await desk.restored() == ({"a": "1", "DONE": "1"} if overtaken else {"a": "2", "DONE": "2"})


async def test_what_was_quiet_before_the_command_was_killed_is_committed(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    async with desk.running() as sync:
        desk.write(a="1", b="1")
        await after_commits(sync, 1)
        desk.store.down = True
        desk.write(a="2", b="2")
        await until(lambda: is_proven(sync))
        desk.store.down = False
        desk.ended = True
        await sync.stopping()
        await sync.commit("exit", in_order=False)
    assert await desk.restored() == {"a": "2", "b": "2"}


async def test_what_a_new_burst_appends_to_a_stream_is_not_part_of_the_state_before_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide = Watch._decide
    burst: list[Any] = []

    async def first_a_burst_begins(self: Watch, *args: Any, **more: Any) -> None:
        if not burst and (desk.checkpoint / "state").exists() and self._is_quiet(self._loop.time()):
            burst.append((desk.checkpoint / "state").open("r+"))  # and stays open
            append(desk.checkpoint / "log", "2")
        await decide(self, *args, **more)

    monkeypatch.setattr(Watch, "_decide", first_a_burst_begins)
    async with desk.running() as sync:
        with (desk.checkpoint / "log").open("a") as log:
            log.write("0")
            log.flush()
            await asyncio.sleep(3 * QUIET_S)  # long enough to be known as a stream
            await after_commits(sync, 1)
        append(desk.checkpoint / "log", "1")
        desk.write(state="01")
        await until(lambda: bool(burst))
        await asyncio.sleep(3 * QUIET_S)
        await until(lambda: sync.commits >= 1)
    burst[0].close()
    found = await desk.restored()
    assert found in ({"log": "01", "state": "01"}, {"log": "0"}), found


async def test_a_log_that_is_written_without_a_pause_holds_up_no_checkpoint(desk: Desk) -> None:
    async with desk.running() as sync:
        with (desk.checkpoint / "log").open("a") as log:
            desk.write(state="1")
            async with asyncio.timeout(20):
                while not sync.commits:
                    log.write("-")
                    log.flush()
                    await asyncio.sleep(QUIET_S / 10)
    found = await desk.restored()
    assert found["state"] == "1"
    assert set(found["log"]) == {"-"}


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


async def test_a_report_after_which_the_next_burst_has_begun_makes_no_commit(tmp_path: Path) -> None:
    desk = Desk(tmp_path, "report")
    async with desk.running() as sync:
        desk.write(a="1", b="1")
        sync.request_commit(time.time_ns())
        await after_commits(sync, 1)
        desk.write(a="2", b="2")
        reported_ns = time.time_ns()
        await asyncio.sleep(0.05)
        with (desk.checkpoint / "b").open("r+") as file:
            desk.write(a="3")
            sync.request_commit(reported_ns)  # the report is heard of only now
            await asyncio.sleep(3 * QUIET_S)
            assert sync.commits == 1
            file.write("3")
        await asyncio.sleep(3 * QUIET_S)  # a quiet moment says nothing where the job's word counts
        assert sync.commits == 1
        sync.request_commit(time.time_ns())
        await after_commits(sync, 2)
    assert await desk.restored() == {"a": "3", "b": "3"}


async def test_a_marker_after_which_the_next_burst_has_begun_makes_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path, "marker:DONE")
    survey = Watch._survey
    burst: list[Any] = []

    async def first_a_burst_begins(self: Watch) -> Any:
        if not burst and (desk.checkpoint / "DONE").exists() and (desk.checkpoint / "DONE").read_text() == "2":
            burst.append((desk.checkpoint / "b").open("r+"))
            desk.write(a="3")
        return await survey(self)

    monkeypatch.setattr(Watch, "_survey", first_a_burst_begins)
    async with desk.running() as sync:
        desk.write(a="1", b="1", DONE="1")
        await after_commits(sync, 1)
        desk.write(a="2", b="2")
        desk.write(DONE="2")
        await until(lambda: bool(burst))
        await asyncio.sleep(3 * QUIET_S)
        assert sync.commits == 1
        with burst[0] as file:
            file.write("3")
        await asyncio.sleep(3 * QUIET_S)
        assert sync.commits == 1
        desk.write(DONE="3")
        await after_commits(sync, 2)
    assert await desk.restored() == {"a": "3", "b": "3", "DONE": "3"}


# -- mapped files: of what is stored through a mapping nobody tells, and stamps may not either -----------------------


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[0] = ord("1")  # the page is dirty: from now on stores leave no trace
        yield mapping


async def test_while_a_file_is_mapped_a_word_counts_only_with_its_own_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    desk = Desk(tmp_path, "report")
    async with desk.running() as sync:
        desk.write(a="0", b="1")
        with mapped(desk.checkpoint / "a"):
            sync.request_commit(time.time_ns(), followed=True)
            await until(lambda: any(getattr(r, "action", "") == "commit_missed" for r in caplog.records))
            assert sync.commits == 0
            sync.request_commit(time.time_ns())
            await after_commits(sync, 1)
        sync.request_commit(time.time_ns(), followed=True)
        desk.write(b="2")
        sync.request_commit(time.time_ns(), followed=True)
        await after_commits(sync, 2)
    assert await desk.restored() == {"a": "1", "b": "2"}


@pytest.mark.parametrize("size", [1, 2 << 20])
async def test_what_a_killed_program_left_in_a_mapped_file_is_not_committed(
    tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    desk = Desk(tmp_path, "report")
    async with desk.running() as sync:
        desk.write(a="0" * size)
        with mapped(desk.checkpoint / "a") as mapping:
            sync.request_commit(time.time_ns())
            await after_commits(sync, 1)
            stamp = (desk.checkpoint / "a").stat()
            mapping[0] = ord("2")
        assert (desk.checkpoint / "a").stat() == stamp
        desk.ended = True
        report = await sync.commit("exit", in_order=False)
        assert report.id == ""
        assert any(getattr(r, "action", "") == "commit_skipped" for r in caplog.records)
    assert await desk.restored() == {"a": "1" + "0" * (size - 1)}


@pytest.mark.parametrize("deaf", [False, True])
async def test_a_burst_that_begins_as_the_program_is_told_to_stop_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaf: bool
) -> None:
    """The kernel has not told of it yet, or tells of nothing at all."""
    if deaf:

        def refuse(_: object) -> None:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr("kelpie_worker.sync.inotify_calls.Watches.__init__", refuse)
    desk = Desk(tmp_path)
    async with desk.running() as sync:
        desk.write(a="1", b="1")
        await after_commits(sync, 1)
        desk.write(a="2")
        await sync.stopping()
        desk.ended = True
        await sync.commit("sigterm", in_order=False, obeyed=True)
    assert await desk.restored() == {"a": "1", "b": "1"}
