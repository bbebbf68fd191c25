"""When commits are made beside the command: at quiet moments, at the job's word, at its marker; and when none is."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kelpie_celery.errors import LeaseLost
from kelpie_worker.sync import LocalFileError, SyncSession, capturing, watching
from tests.contract.desk import MIB, Desk, cancelled, is_proven, job, parts, said, until


def myself() -> Sequence[int]:
    """The pids of the job's processes, which here is the test's own."""
    return [os.getpid()]


async def heard_and_quiet(desk: Desk, sync: SyncSession) -> None:
    """Wait until a change was heard of, it has been quiet since, and that was looked at."""
    watch = parts(sync)._watch

    def is_quiet() -> bool:
        times = watch._times
        return watch._dirty and times.last_look_s - times.last_event_s >= 0.2 and not watch.busy.locked()

    await until(is_quiet)


# -- quiet moments ---------------------------------------------------------------------------------------------------


async def test_a_checkpoint_is_stored_when_it_has_settled(desk: Desk) -> None:
    async with desk.attempt() as sync, desk.watching(sync):
        desk.write("a", b"1")
        report = await desk.next_report()
        assert (report.why, report.files, report.bytes) == ("quiet", 1, 1)
        desk.write("a", b"22")
        assert (await desk.next_report()).bytes == 2
        (desk.ck / "a").unlink()
        assert (await desk.next_report()).files == 0
    assert await desk.committed() == {}


async def test_a_file_written_before_the_watch_began_is_stored(desk: Desk) -> None:
    async with desk.attempt() as sync:
        desk.write("a", b"1")
        async with desk.watching(sync):
            assert (await desk.next_report()).files == 1


async def test_a_restore_is_no_change(desk: Desk) -> None:
    async with desk.attempt() as sync:
        desk.write("a", b"1")
        await sync.commit("exit", plain=False)
    async with desk.attempt() as sync, desk.watching(sync):
        await until(lambda: not parts(sync)._watch._dirty)
        assert sync.commits == 0


async def test_nothing_is_stored_inside_a_burst_of_writes(desk: Desk) -> None:
    async with desk.attempt(quiet_s=1.0) as sync, desk.watching(sync):
        for step in range(20):
            desk.write(f"part-{step}")
            await asyncio.sleep(0.05)
            assert desk.reports == []
        assert (await desk.next_report()).files == 20
    assert len(desk.reports) == 1


async def test_a_file_that_is_kept_open_is_one_burst_however_long_its_writer_pauses(desk: Desk) -> None:
    async with desk.attempt() as sync, desk.watching(sync, myself):
        watch = parts(sync)._watch
        with (desk.ck / "a").open("wb") as file:
            for step in range(3):
                file.write(b"x" * 1000)
                file.flush()
                desk.write(f"closed-{step}")
                looked_s = watch._times.last_look_s
                await until(lambda since=looked_s: watch._times.last_look_s > since + 0.3)  # type: ignore[misc]
                assert desk.reports == []
        report = await desk.next_report()
        assert (report.why, report.files, report.bytes) == ("quiet", 4, 3003)
    assert len(desk.reports) == 1


async def test_two_checkpoints_are_apart_and_the_last_is_never_dropped(desk: Desk) -> None:
    async with desk.attempt(quiet_s=0.05, commit_interval_s=1.0) as sync, desk.watching(sync):
        desk.write("a", b"1")
        first = await desk.next_report()
        desk.write("a", b"2")
        second = await desk.next_report()
    assert (second.time - second.seconds) - (first.time - first.seconds) >= 0.95
    assert await desk.committed() == {"a": b"2"}


async def test_a_log_that_always_grows_does_not_hold_up_commits_and_is_restored_as_far_as_it_was(desk: Desk) -> None:
    async with desk.attempt() as sync:
        with (desk.ck / "log").open("ab", buffering=0) as log:
            written, number = b"", 0

            async def keep_logging() -> None:
                nonlocal written, number
                while True:
                    line = b"step %06d\n" % number
                    log.write(line)
                    written, number = written + line, number + 1
                    await asyncio.sleep(0.01)

            logging = asyncio.ensure_future(keep_logging())
            async with desk.watching(sync, myself):
                for step in range(3):
                    desk.write("model", b"%d" % step)
                    async with asyncio.timeout(20):
                        while (await desk.next_report()).why and (await desk.committed())["model"] != b"%d" % step:
                            pass
                before = len(written)
                restored = await desk.committed()
            await cancelled(logging)
    assert restored["model"] == b"2"
    assert written.startswith(restored["log"])
    assert 0 < len(restored["log"]) <= before
    assert restored["log"].endswith(b"\n")


async def test_a_directory_that_never_holds_still_is_warned_of(
    of_memory: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    desk = of_memory
    monkeypatch.setattr("kelpie_worker.sync.watching.LATE_S", 0.2)
    async with desk.attempt() as sync, desk.watching(sync, myself):
        with (desk.ck / "a").open("wb"):
            await until(lambda: bool(said(caplog, "commit_late")))
    assert said(caplog, "commit_late")[0].disturbed_by == [str(desk.ck / "a")]


async def test_large_files_are_on_their_way_before_it_is_quiet(of_memory: Desk) -> None:
    desk = of_memory
    async with desk.attempt(quiet_s=60.0) as sync, desk.watching(sync):
        desk.write("large", os.urandom(3_000_000))
        await until(lambda: sync.bytes_sent >= 3_000_000)
        assert desk.reports == []
        assert desk.kept() == []
    assert list(desk.scratch.iterdir()) == []


# -- the job's word --------------------------------------------------------------------------------------------------


async def test_a_report_does_not_wait_for_the_interval(desk: Desk) -> None:
    async with desk.attempt(commit_interval_s=3600.0) as sync, desk.watching(sync):
        for step in (b"1", b"2"):
            desk.write("a", step)
            sync.request_commit()
            assert (await desk.next_report()).why == "report"
            assert await desk.committed() == {"a": step}


async def test_a_report_does_not_wait_and_from_then_on_only_reports_count(desk: Desk) -> None:
    async with desk.attempt(quiet_s=0.2) as sync, desk.watching(sync):
        desk.write("a", b"1")
        sync.request_commit()
        assert (await desk.next_report()).why == "report"
        desk.write("a", b"2")
        await heard_and_quiet(desk, sync)
        assert await desk.committed() == {"a": b"1"}
        sync.request_commit()
        await desk.next_report()
        assert await desk.committed() == {"a": b"2"}
    assert [report.why for report in desk.reports] == ["report", "report"]


async def test_a_report_is_honoured_although_a_file_is_open(desk: Desk) -> None:
    async with desk.attempt() as sync, desk.watching(sync, myself):
        with (desk.ck / "a").open("wb") as file:
            file.write(b"whole")
            file.flush()
            sync.request_commit()
            assert (await desk.next_report()).why == "report"
    assert await desk.committed() == {"a": b"whole"}


async def test_a_report_that_was_overtaken_is_told_and_the_next_one_counts(
    of_memory: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """The files moved while they were read: what was whole is gone, and nobody knows what is there now."""
    desk, overtake = of_memory, True
    async with desk.attempt(quiet_s=0.2) as sync:
        committer = parts(sync)._committer
        real = committer._look

        def look() -> object:
            if overtake:
                desk.write("a", b"1")
            return real()

        committer._look = look  # type: ignore[assignment]  # as a writer would
        desk.write("a", b"0")
        async with desk.watching(sync):
            sync.request_commit()
            await until(lambda: bool(said(caplog, "commit_missed")))
            overtake = False
            await heard_and_quiet(desk, sync)
            assert desk.reports == []
            sync.request_commit()
            assert (await desk.next_report()).why == "report"
    assert await desk.committed() == {"a": b"1"}


async def test_a_job_that_commits_by_report_has_no_commits_at_quiet_moments(desk: Desk) -> None:
    async with desk.attempt(desk.checkpoint(commit="report"), quiet_s=0.2) as sync, desk.watching(sync):
        desk.write("a", b"1")
        await heard_and_quiet(desk, sync)
        assert desk.reports == []
        sync.request_commit()
        assert (await desk.next_report()).why == "report"
    assert await desk.committed() == {"a": b"1"}


async def test_a_marker_says_when_the_checkpoint_is_whole(desk: Desk) -> None:
    async with desk.attempt(desk.checkpoint(commit="marker:*.done"), quiet_s=0.2) as sync, desk.watching(sync):
        desk.write("a", b"1")
        await heard_and_quiet(desk, sync)
        assert desk.reports == []
        desk.write("step1.done")
        report = await desk.next_report()
        assert (report.why, report.files) == ("marker", 2)
        desk.write("a", b"2")
        desk.write("step1.done", b"again")
        await desk.next_report()
    assert await desk.committed() == {"a": b"2", "step1.done": b"again"}
    assert {report.why for report in desk.reports} == {"marker"}


async def test_a_marker_that_is_still_written_to_says_nothing_yet(desk: Desk) -> None:
    async with desk.attempt(desk.checkpoint(commit="marker:done")) as sync, desk.watching(sync, myself):
        watch = parts(sync)._watch
        with (desk.ck / "done").open("wb") as file:
            file.write(b"ha")
            file.flush()
            looked_s = watch._times.last_look_s
            await until(lambda: watch._times.last_look_s > looked_s)
            assert desk.reports == []
            file.write(b"lf")
        await desk.next_report()
    assert await desk.committed() == {"done": b"half"}


# -- the lease -------------------------------------------------------------------------------------------------------


async def test_a_muted_attempt_waits_and_goes_on_when_it_is_trusted_again(desk: Desk) -> None:
    async with desk.attempt() as sync:
        desk.fence.mute()
        async with desk.watching(sync):
            desk.write("a", b"1")
            await until(lambda: bool(desk.fence._waiting))
            assert await desk.shelf.keys() == []
            desk.fence.unmute()
            await desk.next_report()
    assert await desk.committed() == {"a": b"1"}


async def test_a_lost_lease_ends_the_watch(desk: Desk) -> None:
    async with desk.attempt() as sync, desk.watching(sync) as watch:
        desk.write("a", b"1")
        desk.fence.lose()
        with pytest.raises(LeaseLost):
            await asyncio.wait_for(asyncio.shield(watch), 20)
    assert desk.kept() == []


# -- the end ---------------------------------------------------------------------------------------------------------


async def test_a_crash_leaves_fresh_changes_out(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """The command may have been in the middle of writing them."""
    async with desk.attempt(quiet_s=5.0) as sync:
        desk.write("a", b"1")
        await sync.commit("exit", plain=False)
        async with desk.watching(sync):
            desk.write("a", b"2")
        assert (await sync.commit("exit", in_order=False)).id == ""
    assert len(said(caplog, "commit_skipped")) == 1
    assert await desk.committed() == {"a": b"1"}


@pytest.mark.parametrize("size", [1, 2 * MIB])
async def test_a_crash_keeps_what_had_been_quiet_for_long_enough(desk: Desk, size: int) -> None:
    async with desk.attempt(commit_interval_s=3600.0) as sync:
        async with desk.watching(sync):
            desk.write("a", b"1" * size)
            await desk.next_report()
            desk.write("a", b"2" * size)  # too soon for the next commit
            await until(lambda: is_proven(sync) and not parts(sync)._watch.busy.locked())
        assert (await sync.commit("exit", in_order=False)).id
    assert await desk.committed() == {"a": b"2" * size}


async def test_a_crash_of_a_job_that_reports_leaves_out_what_it_did_not_report(desk: Desk) -> None:
    async with desk.attempt(quiet_s=0.2) as sync:
        async with desk.watching(sync):
            desk.write("a", b"1")
            sync.request_commit()
            await desk.next_report()
            desk.write("a", b"2")
            await heard_and_quiet(desk, sync)
        assert (await sync.commit("exit", in_order=False)).id == ""
    assert await desk.committed() == {"a": b"1"}


async def test_an_end_in_order_commits_at_once(desk: Desk) -> None:
    async with desk.attempt(quiet_s=3600.0) as sync:
        async with desk.watching(sync):
            desk.write("a", b"1")
        assert (await sync.commit("exit")).why == "exit"
    assert await desk.committed() == {"a": b"1"}


async def test_an_end_in_order_commits_what_a_job_that_reports_left(desk: Desk) -> None:
    async with desk.attempt(desk.checkpoint(commit="report")) as sync:
        async with desk.watching(sync):
            desk.write("a", b"1")
        await sync.commit("exit")
    assert await desk.committed() == {"a": b"1"}


# -- outputs of the older fields -------------------------------------------------------------------------------------


async def test_new_output_files_go_up_as_they_settle_and_none_is_deleted(desk: Desk) -> None:
    await desk.shelf.seed("in/a", b"1")
    fields = {"input_prefix": "in", "checkpoint_prefix": "ck", "output_prefix": "out"}
    definition = job(**fields, **{name.replace("prefix", "bucket"): desk.bucket for name in fields})
    async with desk.attempt(definition) as sync, desk.watching(sync):
        output = desk.dirs.output
        desk.write("a", b"1", at=output)
        known = parts(sync).known
        await until(lambda: known.get((desk.bucket, "out/a")) is not None)
        (output / "a").unlink()
        desk.write("b", b"1", at=output)
        await until(lambda: known.get((desk.bucket, "out/b")) is not None)
        assert sync.commits == 0
    assert await desk.shelf.keys() == ["in/a", "out/a", "out/b"]
    assert desk.reports == []


async def test_a_change_of_one_line_is_committed_when_all_are_quiet(desk: Desk) -> None:
    definition = job(sync={"during": [desk.block("one", "one"), desk.block("two", "two")]})
    async with desk.attempt(definition) as sync, desk.watching(sync, myself):
        watch = parts(sync)._watch
        with (desk.work / "two" / "open").open("wb"):
            desk.write("a", b"1", at=desk.work / "one")
            looked_s = watch._times.last_look_s
            await until(lambda: watch._times.last_look_s > looked_s + 0.3)
            assert desk.reports == []
        await desk.next_report()
    assert await desk.committed("one/") == {"a": b"1"}
    assert await desk.committed("two/") == {"open": b""}
    assert Path(desk.kept("one/")[-1].manifest).name == Path(desk.kept("two/")[-1].manifest).name


async def test_an_output_whose_name_cannot_be_a_key_does_not_keep_checkpoints_from_being_stored(
    of_memory: Desk,
) -> None:
    desk = of_memory
    await desk.shelf.seed("in/a", b"1")
    fields = {"input_prefix": "in", "checkpoint_prefix": "ck", "output_prefix": "out"}
    definition = job(**fields, **{name.replace("prefix", "bucket"): desk.bucket for name in fields})
    async with desk.attempt(definition) as sync, desk.watching(sync):
        (desk.dirs.output / os.fsdecode(b"\xff")).write_bytes(b"1")
        desk.write("b", b"1", at=desk.dirs.output)
        desk.write("a", b"1")
        await desk.next_report()
        known = parts(sync).known
        await until(lambda: known.get((desk.bucket, "out/b")) is not None)
        with pytest.raises(LocalFileError, match="UTF-8"):
            await sync.upload_outputs()
    assert await desk.committed() == {"a": b"1"}


# -- a disk that fails for a moment ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "good_reads"), [(1, 0), (1, 1), (2 * MIB, 0), (2 * MIB, 1)])
async def test_a_read_that_fails_does_not_end_the_command(
    of_memory: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, size: int, good_reads: int
) -> None:
    desk, left, name = (
        of_memory,
        [None] * good_reads + [OSError(5, "Input/output error")],
        "_read_small" if size == 1 else "_read_into",
    )
    read = getattr(capturing, name)

    def flaky(*args: Any) -> Any:
        error = left.pop(0) if left else None
        if error is not None:
            raise error
        return read(*args)

    monkeypatch.setattr(capturing, name, flaky)
    async with desk.attempt() as sync, desk.watching(sync) as watching:
        # Open for writing, so that it is read twice.
        with desk.write("a", b"1" * size).open("r+b"):
            await desk.next_report()
        assert not watching.done()
    assert any("Input/output error" in record.error for record in said(caplog, "commit_delayed"))
    assert await desk.committed() == {"a": b"1" * size}


async def test_a_directory_that_cannot_be_looked_at_for_a_moment_does_not_end_the_command(
    of_memory: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failed, is_dir = set[bool](), Path.is_dir

    def flaky(path: Path) -> bool:
        listens = threading.current_thread().name == "kelpie-inotify"
        if path == of_memory.ck and listens not in failed:
            failed.add(listens)
            raise PermissionError(13, "Permission denied")
        return is_dir(path)

    async with of_memory.attempt() as sync, of_memory.watching(sync) as watching:
        monkeypatch.setattr(Path, "is_dir", flaky)
        (of_memory.ck / "a").write_bytes(b"1")
        await of_memory.next_report()
        await until(lambda: len(failed) == 2)
        assert not watching.done()
        assert not parts(sync)._watch._blind
    assert any("Permission denied" in record.error for record in said(caplog, "commit_delayed"))


# -- what a program may do for weeks ---------------------------------------------------------------------------------


async def test_each_word_that_came_too_late_is_told(of_memory: Desk, caplog: pytest.LogCaptureFixture) -> None:
    async with of_memory.attempt(of_memory.checkpoint(commit="report")) as sync, of_memory.watching(sync):
        for count in (1, 2, 3):
            of_memory.write("a", b"%d" % count)
            sync.request_commit(0)
            await until(lambda count=count: len(said(caplog, "commit_missed")) == count)  # type: ignore[misc]
    assert of_memory.reports == []


async def test_what_is_remembered_of_files_that_were_sent_early_is_bounded(
    of_memory: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_MOST_TRIED", 100)
    async with of_memory.attempt() as sync:
        watch = parts(sync)._watch
        for turn in range(10):
            watch._early = {of_memory.ck / f"{turn}-{number}": None for number in range(50)}
            await watch._stage_early()
            assert len(watch._early_tries) <= 150
