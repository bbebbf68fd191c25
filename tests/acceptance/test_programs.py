"""Programs that check their own checkpoints, while everything around them is killed (P2, P3)."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.acceptance.programs import five_files, log_and_pair, mapped
from tests.acceptance.programs.diary import Line
from tests.harness.programs import Programs, Run
from tests.harness.stack import StackFactory
from tests.harness.storm import PATIENT, Storm, has_committed

STEPS = 6
PAUSE_S = 0.35  # longer than KELPIE_QUIET_S of these tests


def five_files_of(say: str) -> Callable[[Path], int]:
    def check(directory: Path) -> int:
        state = five_files.load(directory, marker=say == "marker")
        return state.step if state else 0

    return check


CASES: dict[str, dict[str, Any]] = {
    "quiet": {"commit": "quiet", "kills": {"worker": 14, "command": 24, "sigterm": 7, "redis": 3, "s3": 2}},
    "report": {"commit": "report", "kills": {"worker": 3, "command": 6, "sigterm": 2}},
    "marker": {"commit": "marker:DONE", "kills": {"worker": 3, "command": 6, "sigterm": 2}},
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES)
def test_five_files_that_belong_together_never_come_back_torn(
    make_stack: StackFactory, tmp_path: Path, case: str, record_property: Callable[[str, object], None]
) -> None:
    commit, kills = CASES[case]["commit"], CASES[case]["kills"]
    stack = make_stack(workers=3, slots=3, control=False, beat=False, **PATIENT)  # type: ignore[arg-type]  # no flags
    programs = Programs(stack, tmp_path, commit)
    say = "" if commit == "quiet" else case
    began = time.monotonic()

    def start() -> None:
        # Of each three one finishes its burst at SIGTERM and says so, the others just die.
        sigterm = "finish" if len(programs.runs) % 3 == 0 else "die"
        rest = ("0.4", "1.2") if say else ("0.2", "1.2")
        programs.start("five_files", "--steps", str(STEPS), "--pause", str(PAUSE_S), "--rest", *rest, "--say", say,
                       "--sigterm", sigterm)  # fmt: skip

    for _ in range(9):
        start()
    storm = Storm(stack, kills, seed=20261126, gap_s=(0.2, 1.2))
    programs.weather(storm, start, limit_s=240)
    seconds = time.monotonic() - began
    commits = 0
    for run in programs.runs:
        commits += programs.expect_whole(run, tmp_path / "audit" / run.id, five_files_of(say))
        programs.expect_output(run, five_files.undisturbed(run.seed, STEPS))
    starts = [line for run in programs.runs for line in run.starts]
    resumed = sum(line.step > 0 for line in starts)
    assert resumed >= sum(kills.values()) // 3, starts
    print(f"{dict(storm.made)}: {len(starts)} starts, {resumed} resumed, {commits} whole commits, "
          f"{len(programs.runs)} jobs, {seconds:.0f} s")  # fmt: skip
    record_property("seconds", seconds)


@pytest.mark.timeout(120)
def test_a_program_that_ends_with_an_error_at_sigterm_within_a_burst_is_not_believed(
    make_stack: StackFactory, tmp_path: Path
) -> None:
    stack = make_stack(workers=2, control=False, beat=False, **PATIENT)  # type: ignore[arg-type]  # no flags
    programs = Programs(stack, tmp_path)
    leave = tmp_path / "leave"
    leave.mkdir()
    (leave / "1").touch()
    run = programs.start("five_files", "--steps", "4", "--pause", "0.6", "--rest", "0.5", "0.5", "--sigterm", "exit",
                         "--leave", str(leave))  # fmt: skip
    for step in (2, 3):
        stack.wait(f"step {step - 1} is committed", lambda: programs.look() and has_committed(stack.get(run.id)), 60)
        (leave / str(step)).touch()
        stack.wait(f"the burst of step {step}", lambda s=step: in_burst(run, s), timeout_s=60)  # type: ignore[misc]
        number, attempt = stack.worker_of(run.id), stack.get(run.id).attempt
        stack.kill_worker(number, signal.SIGTERM)
        stack.wait("the next attempt", lambda n=attempt: stack.get(run.id).attempt > n)  # type: ignore[misc]
        stack.local.processes[f"worker-{number}"].wait(20)
        stack.local.start_worker(number)
    (leave / "4").touch()
    stack.wait("the job ends", lambda: not programs.look(), timeout_s=60)
    programs.expect_whole(run, tmp_path / "audit", five_files_of(""))
    assert [line.step for line in run.starts] == [0, 1, 2]


def in_burst(run: Run, step: int) -> bool:
    """Whether a program has written two files of a step, and not yet all."""
    *_, last, newest = [Line("", 0, 0), Line("", 0, 0), *run.diary.read()]
    return (last.what, newest.what, newest.step) == ("burst", "burst", step)


@pytest.mark.timeout(180)
def test_a_log_that_grows_all_the_time_holds_up_no_checkpoint_and_comes_back_whole(
    make_stack: StackFactory, tmp_path: Path
) -> None:
    stack = make_stack(workers=2, control=False, beat=False, **PATIENT)  # type: ignore[arg-type]  # no flags
    programs = Programs(stack, tmp_path)
    steps = 14
    run = programs.start("log_and_pair", "--steps", str(steps), "--go", str(tmp_path / "go"))
    programs.strike_after_each_commit(run, ["worker", "command", "sigterm", "command", "worker"], 7, tmp_path / "go")
    commits = programs.expect_whole(run, tmp_path / "audit", lambda folder: log_and_pair.load(folder)[0])
    # The first commit may hold a beginning of the log and no pair yet.
    assert all(line.step > 0 for line in run.starts[2:]), run.starts
    lines = int(stack.s3.get_object(Bucket=stack.bucket, Key=f"{run.prefix}out/lines")["Body"].read())
    assert lines >= steps * log_and_pair.LINES
    programs.expect_output(run, {log_and_pair.LOG: log_and_pair.log_until(lines).encode()})
    print(f"resumed at {[line.step for line in run.starts]}, {commits} whole commits")


@pytest.mark.timeout(180)
def test_a_mapped_state_that_is_flushed_and_reported_never_comes_back_torn(
    make_stack: StackFactory, tmp_path: Path
) -> None:
    stack = make_stack(workers=2, control=False, beat=False, **PATIENT)  # type: ignore[arg-type]  # no flags
    programs = Programs(stack, tmp_path, "report")
    steps = 14
    run = programs.start("mapped", "--steps", str(steps), "--pause", "0.1", "--go", str(tmp_path / "go"))
    programs.strike_after_each_commit(run, ["worker", "command", "sigterm", "command", "worker"], 8, tmp_path / "go")
    commits = programs.expect_whole(run, tmp_path / "audit", mapped.load)
    assert all(line.step > 0 for line in run.starts[1:]), run.starts
    programs.expect_output(run, {})
    body = stack.s3.get_object(Bucket=stack.bucket, Key=f"{run.prefix}out/{mapped.NAME}")["Body"].read()
    (tmp_path / mapped.NAME).write_bytes(body)
    [done] = [line.step for line in run.diary.read() if line.what == "done"]
    assert mapped.load(tmp_path) == done >= steps
    assert np.array_equal(np.load(tmp_path / mapped.NAME)[1:-2], mapped.middle(done))
    print(f"resumed at {[line.step for line in run.starts]}, {commits} whole commits")
