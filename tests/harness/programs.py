"""Programs that check their own checkpoints, run as jobs and judged."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.acceptance.programs.diary import Diary, Line, Refused
from tests.harness.audit import Audit
from tests.harness.stack import Stack
from tests.harness.storm import Storm, strike_after_each_commit

ROOT = Path(__file__).parents[2]


def argv(program: str, *options: str) -> list[str]:
    return ["-m", f"tests.acceptance.programs.{program}", *options]


@dataclass
class Run:
    """One job that runs a program."""

    id: str
    prefix: str
    seed: int
    diary: Diary

    @property
    def starts(self) -> list[Line]:
        return [line for line in self.diary.read() if line.what == "start"]


class Programs:
    """Runs programs of one test as jobs, and judges them.

    Args:
        stack: Where.
        directory: For the diaries.
        commit: The mode of their checkpoints.
    """

    def __init__(self, stack: Stack, directory: Path, commit: str = "quiet") -> None:
        self.stack, self.commit = stack, commit
        self._directory = directory
        self._accepted: dict[str, dict[int, int]] = {}
        self.runs: list[Run] = []

    def start(self, program: str, *options: str) -> Run:
        number = len(self.runs) + 1
        diary = self._directory / f"diary-{number}"
        prefix = f"run-{number}/"
        place = {"bucket": self.stack.bucket, "prefix": f"{prefix}state/", "local_path": f"state-{number}"}
        out = {"bucket": self.stack.bucket, "prefix": f"{prefix}out/", "local_path": f"out-{number}"}
        sync = {
            "before": [{**place, "direction": "download"}],
            "during": [{**place, "direction": "upload", "commit": self.commit}],
            "after": [{**out, "direction": "upload"}],
        }
        places = ["--seed", str(number), "--checkpoint", place["local_path"], "--output", out["local_path"]]
        definition = self.stack.definition(
            sys.executable, *argv(program, *places, "--diary", str(diary), *options), sync=sync, max_failures=1000,
            environment={"PYTHONPATH": str(ROOT)}, heartbeat_interval=1,
        )  # fmt: skip
        run = Run(self.stack.submit(definition), prefix, number, Diary(diary))
        self.runs.append(run)
        return run

    def look(self) -> list[str]:
        """Note which commits the ledger has; the jobs that have not ended.

        Raises:
            AssertionError: A program refused its checkpoint.
        """
        alive = []
        for run in self.runs:
            self.expect_no_refusal(run)
            record = self.stack.get(run.id)
            if record.commit:
                number, attempt = (int(part) for part in record.commit["id"].split("-")[:2])
                self._accepted.setdefault(run.id, {})[attempt] = number
            if not record.status.ended:
                alive.append(run.id)
        return alive

    def expect_no_refusal(self, run: Run) -> None:
        refusals = [line for line in run.diary.read() if line.what == "refused"]
        assert not refusals, f"{run}: {refusals}\n{self.stack.dump()}"

    def weather(self, storm: Storm, refill: Callable[[], object], limit_s: float) -> None:
        """Let the storm pass, with new jobs for those that end, and wait for all jobs."""
        deadline = time.monotonic() + limit_s
        wanted = len(self.runs)
        while (alive := self.look()) or not storm.over:
            assert time.monotonic() < deadline, f"made only {storm.made}\n{self.stack.dump()}"
            if not storm.over and len(alive) < wanted:
                refill()
            storm.act(alive)
            time.sleep(0.05)

    def strike_after_each_commit(self, run: Run, kinds: Sequence[str], seed: int, go: Path) -> None:
        """Kill a job as often, each time a moment after its attempt made a commit; then let it end, and wait for it."""
        strike_after_each_commit(self.stack, run.id, kinds, seed, self.look)
        go.touch()
        self.stack.wait("the job ends", lambda: not self.look(), timeout_s=90)

    def expect_whole(self, run: Run, directory: Path, check: Callable[[Path], int]) -> int:
        """Every commit of a job is whole, and each start was with what the ledger had; how many commits."""
        steps: dict[int, int] = {}
        audit = Audit(self.stack.s3, self.stack.bucket, f"{run.prefix}state/")
        for manifest in audit.manifests():
            audit.put(manifest, directory / manifest.header.id)
            try:
                steps[manifest.header.generation] = check(directory / manifest.header.id)
            except Refused as error:
                pytest.fail(f"commit {manifest.header.id} ({manifest.header.why}) of {run.id}: {error}")
        started = run.starts
        assert [line.step for line in started] == sorted(line.step for line in started), started
        for line in started:
            known = [n for attempt, n in self._accepted.get(run.id, {}).items() if attempt < line.attempt]
            assert line.step >= steps[max(known)] if known else True, f"{line} although the ledger had {known}: {steps}"
            assert line.step == 0 or line.step in steps.values()
        return len(steps)

    def expect_output(self, run: Run, expected: Mapping[str, bytes]) -> None:
        """Completed once, with these outputs, bit for bit."""
        record = self.stack.get(run.id)
        assert (record.status, record.completions) == ("completed", 1), self.stack.dump()
        for name, body in expected.items():
            key = f"{run.prefix}out/{name}"
            assert self.stack.s3.get_object(Bucket=self.stack.bucket, Key=key)["Body"].read() == body, key
