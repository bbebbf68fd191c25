"""Words of a job about its checkpoint, with a real kernel that tells in which order they came."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import shutil
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from kelpie_worker.command import words as words_of_a_job
from kelpie_worker.command.report import ReportFile
from kelpie_worker.command.words import TOO_LATE, Words
from kelpie_worker.sync import inotify_calls as calls
from kelpie_worker.sync import watching
from kelpie_worker.sync.inotify import Inotify
from kelpie_worker.sync.order import UNKNOWN
from tests.contract.desk import Desk, until
from tests.contract.fakes_s3 import HandFence, MemoryStore
from tests.contract.shelf import Shelf


class Job:
    """What a job writes: its checkpoint, and its report."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint, self.report = folder / "ck", folder / "scratch" / "report.jsonl"
        for place in (self.checkpoint / "sub", self.report.parent):
            place.mkdir(parents=True)

    def say(self, **fields: object) -> None:
        with self.report.open("a") as file:
            file.write(json.dumps(fields) + "\n")

    def write(self, name: str) -> None:
        with (self.checkpoint / name).open("a") as file:
            file.write("x")


class Hearing:
    def __init__(self, job: Job) -> None:
        self.inotify = Inotify([job.checkpoint], lambda: None, now=time.monotonic)
        self.inotify.start()
        self.inotify.listen_to(job.report)
        self.words = Words(ReportFile(job.report), self.order)

    async def order(self) -> str:
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def caught_up() -> None:
            loop.call_soon_threadsafe(done.set)

        assert self.inotify.when_caught_up(caught_up)
        async with asyncio.timeout(20):
            await done.wait()
        return self.inotify.order()

    async def times(self) -> list[int | None]:
        """When the commits that are new were asked for."""
        return [word.said_ns for word in await self.words.hear() if word.report.commit]

    @property
    def hears_all(self) -> bool:
        inotify = self.inotify
        return bool(inotify._watched) and inotify._finds == inotify._finds_read


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


@pytest.fixture
async def hearing(job: Job) -> AsyncIterator[Hearing]:
    hearing = Hearing(job)
    await until(lambda: hearing.hears_all)
    yield hearing
    hearing.inotify.close()


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """From now on the thread reads nothing, until this is set."""
    go, read = threading.Event(), calls.Watches.read

    def later(watches: calls.Watches, spoken: int = -1) -> tuple[list[calls.RawEvent], bool]:
        assert go.wait(20)
        return read(watches, spoken)

    monkeypatch.setattr(calls.Watches, "read", later)
    return go


async def test_a_word_that_others_follow_at_once_has_their_time(job: Job, hearing: Hearing) -> None:
    for step in range(20):
        job.write("a")
        job.write("sub/b")
        job.say(commit=True)
        job.say(progress=step / 20)
        assert await hearing.times() == [job.report.stat().st_mtime_ns]


@pytest.mark.parametrize("name", ["a", "sub/b"])
async def test_a_word_after_which_something_changed_before_the_next_one_is_late(
    job: Job, hearing: Hearing, name: str
) -> None:
    for _ in range(20):
        job.write(name)
        job.say(commit=True)
        job.write(name)
        job.say(message="on with it")
        assert await hearing.times() == [TOO_LATE]
        job.say(commit=True)
        assert await hearing.times() == [job.report.stat().st_mtime_ns]


@pytest.mark.parametrize(
    "change",
    [
        lambda job: (job.checkpoint / "a").rename(job.checkpoint / "b"),
        lambda job: (job.checkpoint / "a").unlink(),
        lambda job: (job.checkpoint / "new").mkdir(),
        lambda job: (job.checkpoint / "sub").rmdir(),
        lambda job: os.truncate(job.checkpoint / "a", 0),
    ],
)
async def test_any_change_between_two_words_counts(job: Job, hearing: Hearing, change: Callable[[Job], object]) -> None:
    job.write("a")
    job.say(commit=True)
    change(job)
    job.say(progress=0.5)
    assert await hearing.times() == [TOO_LATE]


@pytest.mark.parametrize(
    ("change", "file"),
    [
        (lambda job: (job.checkpoint / "new").mkdir(), "new/a"),
        (lambda job: (job.checkpoint / "sub").rename(job.checkpoint / "moved"), "moved/b"),
    ],
)
async def test_what_changed_in_a_folder_before_it_was_watched_counts(
    job: Job, hearing: Hearing, deaf: threading.Event, change: Callable[[Job], object], file: str
) -> None:
    change(job)
    job.write(file)
    job.say(commit=True)
    job.write(file)
    job.say(progress=0.5)
    deaf.set()
    assert await hearing.times() == [TOO_LATE]


async def test_words_after_a_new_folder_was_found_have_their_time(job: Job, hearing: Hearing) -> None:
    for step in range(5):
        (job.checkpoint / f"step-{step}").mkdir()
        await until(lambda step=step: len(hearing.inotify._tree._folders) == step + 3 and hearing.hears_all)  # type: ignore[misc]
        job.write(f"step-{step}/a")
        job.say(commit=True)
        job.say(progress=step / 5)
        assert await hearing.times() == [job.report.stat().st_mtime_ns]


async def test_what_changed_in_a_checkpoint_that_was_made_anew_counts(job: Job, hearing: Hearing) -> None:
    shutil.rmtree(job.checkpoint)
    await until(lambda: not hearing.inotify._watched)
    job.checkpoint.mkdir()
    job.write("a")
    job.say(commit=True)
    job.write("a")
    job.say(progress=0.5)
    assert await hearing.times() == [TOO_LATE]


async def test_what_changed_while_the_kernel_told_nothing_counts(
    job: Job, hearing: Hearing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(calls.Watches, "add", full)
        (job.checkpoint / "new").mkdir()
        await until(lambda: hearing.inotify._hints.blind)
        job.write("new/a")
        job.say(commit=True)
        job.write("new/a")
    hearing.inotify.rearm()
    await until(lambda: not hearing.inotify._hints.blind)
    job.say(progress=0.5)
    assert await hearing.times() == [TOO_LATE]


async def test_what_changed_in_folders_that_were_missed_counts_until_all_is_watched_again(
    job: Job, hearing: Hearing, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = calls.Watches.read

    def overflow(watches: calls.Watches, spoken: int = -1) -> tuple[list[calls.RawEvent], bool]:
        heard, is_all = read(watches, spoken)
        return [calls.RawEvent(-1, calls.Q_OVERFLOW, b"")] if heard else heard, is_all

    # Under a flood it takes a while until it begins again.
    hearing.inotify._started_again_s, hearing.inotify._pause_s = time.monotonic(), 3600
    with monkeypatch.context() as patch:
        patch.setattr(calls.Watches, "read", overflow)
        (job.checkpoint / "new").mkdir()
        await until(lambda: hearing.inotify._missed)
    job.say(progress=0.1)
    await hearing.words.hear()
    job.write("new/a")
    job.say(commit=True)
    job.write("new/a")
    job.say(progress=0.5)
    assert await hearing.times() == [TOO_LATE]


async def test_words_that_were_written_under_another_name_come_in_no_known_order(job: Job, hearing: Hearing) -> None:
    elsewhere = job.report.with_name("report.new")
    elsewhere.write_text('{"commit": true}\n')
    job.write("a")
    with elsewhere.open("a") as file:
        file.write('{"progress": 0.5}\n')
    elsewhere.rename(job.report)
    assert await hearing.times() == [TOO_LATE]


async def test_without_what_the_kernel_tells_only_the_last_word_has_a_time(job: Job) -> None:
    async def nothing() -> str:
        return "?"

    words = Words(ReportFile(job.report), nothing)
    job.say(commit=True)
    job.say(progress=0.5)
    assert [word.said_ns for word in await words.hear()] == [TOO_LATE, job.report.stat().st_mtime_ns]


async def test_an_order_that_is_unknown_is_not_asked_for_again(job: Job) -> None:
    asked = 0

    async def unknown() -> str:
        nonlocal asked
        asked += 1
        job.say(progress=0.5)
        return UNKNOWN

    words = Words(ReportFile(job.report), unknown)
    job.say(commit=True)
    assert [word.said_ns for word in await words.hear()] == [TOO_LATE, job.report.stat().st_mtime_ns]
    assert asked == 1


async def test_words_do_not_wait_for_long(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_of_a_job, "_LONGEST_S", 0.5)

    async def slow() -> str:
        await asyncio.sleep(0.2)
        job.say(progress=0.5)
        return "S"

    words = Words(ReportFile(job.report), slow)
    job.say(commit=True)
    heard = await words.hear()
    assert len(heard) <= 5
    assert heard[-1].said_ns == job.report.stat().st_mtime_ns


async def test_where_the_kernel_tells_nothing_nobody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(calls.Watches, "__init__", refuse)
    monkeypatch.setattr(watching, "_CATCH_UP_S", 3600)
    desk = Desk(tmp_path, Shelf(MemoryStore("bucket"), "bucket", HandFence()))
    async with desk.attempt() as sync:
        sync.listen_to(desk.scratch / "report.jsonl")
        async with asyncio.timeout(20):
            assert await sync.order() == UNKNOWN


async def test_who_waits_for_the_order_is_told_when_the_thread_ends(hearing: Hearing, deaf: threading.Event) -> None:
    told = threading.Event()
    assert hearing.inotify.when_caught_up(told.set)
    hearing.inotify._closing = True
    deaf.set()
    assert await asyncio.to_thread(told.wait, 20)
    hearing.inotify.close()
    assert not hearing.inotify.when_caught_up(told.set)


async def test_a_hearing_that_is_broken_off_loses_no_word(job: Job, hearing: Hearing) -> None:
    stuck: Callable[[], Awaitable[str]] = asyncio.Event().wait  # type: ignore[assignment]  # never returns
    words = Words(ReportFile(job.report), stuck)
    job.say(commit=True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await words.hear()
    words._order = hearing.order
    assert [word.report.commit for word in await words.hear()] == [True]


async def test_whatever_a_job_does_no_word_is_given_a_time_after_a_later_change(job: Job, hearing: Hearing) -> None:
    """Random histories: the kernel's clock ticks in milliseconds, so each change is told apart by a pause."""
    dice, timely = random.Random(1), 0
    for _ in range(60):
        said: list[bool] = []  # of each commit that is not heard yet: whether nothing changed since
        changed = [False]
        for _ in range(dice.randint(1, 6)):
            step = dice.choice(["write", "commit", "progress"])
            if step == "write":
                job.write(dice.choice(["a", "sub/b"]))
                changed = [True] * len(changed)
            elif step == "commit":
                job.say(commit=True)
                said.append(True)
                changed.append(False)
            else:
                job.say(progress=0.5)
        del changed[0]
        last_change_ns = max((p.stat().st_ctime_ns for p in job.checkpoint.rglob("*") if p.is_file()), default=0)
        times = await hearing.times()
        assert len(times) == len(said)
        for since, time_ns in zip(changed, times, strict=True):
            if not since:
                timely += time_ns != TOO_LATE
            elif time_ns != TOO_LATE:
                # Said before the change: a look will find the change newer than the word, or of the same tick.
                assert time_ns is not None
                assert time_ns <= last_change_ns
    assert timely > 20
