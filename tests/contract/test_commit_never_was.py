"""States that never were, and commits that nobody could bring back: each was possible once."""

from __future__ import annotations

import copy
import os
import time
from pathlib import Path

import pytest

from kelpie_worker.sync import LocalFileError, capturing
from kelpie_worker.sync.commit import Outcome, freeze, with_stamps
from tests.contract.desk import Desk, job, parts, said, tree, until
from tests.contract.fakes_s3 import HandFence, MemoryStore
from tests.contract.shelf import Shelf

SECOND, THIRD = "4c6a2a10-7f2b-4f8e-9f43-2f1b7a1f0a22", "5c6a2a10-7f2b-4f8e-9f43-2f1b7a1f0a33"
RECORD = 64 * 1024


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "d", Shelf(MemoryStore("bucket"), "bucket", HandFence()))


class Trajectory:
    """A file that only grows, and keeps the number of its frames in its header, as some formats do."""

    def __init__(self, path: Path) -> None:
        self.path, self.frames = path, 0
        self._file = path.open("wb", buffering=0)
        self.states: set[bytes] = set()

    def write_frame(self) -> None:
        self.frames += 1
        self._file.seek(0, os.SEEK_END)
        self._file.write((b"%08d" % 0 if self.frames == 1 else b"") + bytes([self.frames % 256]) * RECORD)
        self._file.seek(0)
        self._file.write(b"%08d" % self.frames)
        self.states.add(self.path.read_bytes())


async def test_a_growing_file_that_counts_in_its_header_is_never_taken_with_a_count_of_later(desk: Desk) -> None:
    async with desk.attempt() as sync:
        checkpoints, trajectory = parts(sync), Trajectory(desk.ck / "t.dcd")
        for _ in range(20):
            trajectory.write_frame()
        streams = {trajectory.path}
        seen = {d: with_stamps(s, d, freeze(streams)) for d, s in checkpoints._look().items()}
        trajectory.write_frame()  # between the look and the reading

        tried = await checkpoints._committer.try_once("quiet", 5, seen=seen, streams=streams)

        assert tried.outcome is Outcome.DISTURBED
        calm = {d: with_stamps(s, d, freeze(streams)) for d, s in checkpoints._look().items()}
        tried = await checkpoints._committer.try_once("quiet", 5, seen=calm, streams=streams)
        assert tried.outcome is Outcome.MADE
    assert (await desk.committed())["t.dcd"] in trajectory.states


async def test_a_file_that_can_only_be_appended_to_is_taken_with_the_length_that_was_seen(desk: Desk) -> None:
    async with desk.attempt() as sync:
        checkpoints, log = parts(sync), desk.write("log", b"one\n")
        seen = {d: with_stamps(s, d, freeze({log})) for d, s in checkpoints._look().items()}
        with log.open("ab", buffering=0) as file:
            file.write(b"two\n")
            tried = await checkpoints._committer.try_once("quiet", 5, seen=seen, streams={log}, appended={log})
        assert tried.outcome is Outcome.MADE
    assert await desk.committed() == {"log": b"one\n"}


async def test_a_report_that_came_too_late_is_dropped_and_told(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    async with desk.attempt(desk.checkpoint(commit="report")) as sync, desk.watching(sync):
        desk.write("a", b"1")
        desk.write("b", b"1")
        said_ns = time.time_ns() - 1
        desk.write("a", b"2", mtime=None)
        os.utime(desk.ck / "a")  # its ctime is later than the job's word
        sync.request_commit(min(said_ns, (desk.ck / "a").stat().st_ctime_ns - 1))
        await until(lambda: bool(said(caplog, "commit_missed")))
        assert desk.reports == []
        desk.write("b", b"2")
        sync.request_commit(max(path.stat().st_ctime_ns for path in desk.ck.iterdir()))
        await desk.next_report()
    assert await desk.committed() == {"a": b"2", "b": b"2"}


async def test_links_and_folders_that_an_attempt_never_saw_are_carried_on(desk: Desk) -> None:
    async with desk.attempt() as sync:
        desk.write("step-1/weights", b"1")
        (desk.ck / "latest").symlink_to("step-1")
        (desk.ck / "empty").mkdir()
        await sync.commit("exit")
    desk.ledger.live.clear()
    async with desk.attempt(job(sync={"during": [desk.block()]}), 1, job_id=SECOND) as sync:
        for content in (b"1", b"22"):
            desk.write("x", content)
            await sync.commit("exit")
    manifest = await desk.manifest()
    assert manifest.links == {"latest": "step-1"}
    assert {"empty", "step-1"} <= set(manifest.folders)
    assert set(manifest.files) == {"step-1/weights", "x"}


@pytest.mark.parametrize(("before", "now"), [("a/b", "a"), ("a", "a/b")])
async def test_the_disk_wins_over_what_is_carried_where_both_cannot_be(desk: Desk, before: str, now: str) -> None:
    async with desk.attempt() as sync:
        desk.write(before, b"old")
        await sync.commit("exit")
    desk.ledger.live.clear()
    async with desk.attempt(job(sync={"during": [desk.block()]}), 1, job_id=SECOND) as sync:
        desk.write(now, b"new")
        await sync.commit("exit")
    desk.ledger.live.clear()
    async with desk.attempt(None, 1, job_id=THIRD):
        assert tree(desk.ck) == {now: b"new"}


async def test_a_commit_that_the_ledger_lost_is_made_again_at_the_end(desk: Desk) -> None:
    async with desk.attempt() as sync:
        desk.write("w", b"1")
        await sync.commit("quiet", plain=False)
        before = copy.deepcopy(desk.ledger.lines)
        desk.write("w", b"22")
        await sync.commit("quiet", plain=False)
        desk.ledger.lines = before
        report = await sync.commit("exit")
    assert report.id
    assert await desk.committed() == {"w": b"22"}


async def test_files_that_cannot_be_read_are_named(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    async with desk.attempt() as sync:
        file = desk.write("w", b"x" * (2 << 20))
        monkeypatch.setattr(capturing, "_read_into", broken)
        with pytest.raises(LocalFileError, match=str(file)):
            await sync.commit("exit")
