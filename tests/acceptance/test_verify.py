"""``kelpie verify``: programs that resume and programs that do not, on a real stack, with real kills."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kelpie_celery.definition import parse_definition
from kelpie_celery.findings import Finding
from kelpie_celery.local.binaries import script
from kelpie_celery.local.servers import SeaweedServer
from kelpie_worker.preflight.staging import parse_inputs
from kelpie_worker.preflight.verify import Request, Verdict, verify
from tests.acceptance.programs import saver
from tests.harness.isolation import FOREIGN_PREFIXES
from tests.harness.waiting import eventually

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BOUND_S = 60.0
CANARY = "canary-5d1e-secret"
# On a busy machine each trial takes a few times as long.
pytestmark = pytest.mark.timeout(600)


def definition(how: str, ticks: int = 160, **more: Any) -> dict[str, Any]:
    bucket = f"verify-{uuid.uuid4().hex[:12]}"
    state = {"bucket": bucket, "prefix": "run/state", "local_path": "state"}
    out = {"bucket": bucket, "prefix": "run/out", "local_path": "out"}
    sync = {
        "before": [{**state, "direction": "download"}],
        "during": [{**state, "direction": "upload"}],
        "after": [{**out, "direction": "upload"}],
    }
    return {
        "command": sys.executable, "arguments": ["saver.py", how, str(ticks)], "container_group_id": "theirs",
        "grace_period": 5, "sync": sync, "webhook": "https://example.com/hook", **more,
    }  # fmt: skip


def older(how: str) -> dict[str, Any]:
    """The same by the older bucket fields, with an input."""
    bucket = f"verify-{uuid.uuid4().hex[:12]}"
    return {
        "command": sys.executable, "arguments": ["saver.py", how, "160", "older"], "container_group_id": "theirs",
        "grace_period": 5, "input_bucket": "numbers", "input_prefix": "set", "checkpoint_bucket": bucket,
        "checkpoint_prefix": "run/state", "output_bucket": bucket, "output_prefix": "run/out",
    }  # fmt: skip


@dataclass
class Case:
    """One trial: of which definition, and how."""

    raw: dict[str, Any]
    timeout_s: float = BOUND_S
    reference: bool = False
    has_input: bool = False


CASES = {
    "atomic": Case(definition("atomic"), reference=True),
    "in_place": Case(older("in_place"), has_input=True),
    "ignores": Case(definition("ignores")),
    "fails": Case(definition("fails", environment={"SECRET": CANARY})),
    "early": Case(definition("early", 90), timeout_s=15.0),
    "short": Case(definition("atomic", 8)),
}


class Trials:
    """All of them, three at a time: they mostly wait, and tests that take turns would wait as long again."""

    def __init__(self, directory: Path, s3: SeaweedServer) -> None:
        self._directory, self._s3 = directory, s3
        self._pool = ThreadPoolExecutor(3)
        self._verdicts = {name: self._pool.submit(self._verify, name, case) for name, case in CASES.items()}

    def home(self, name: str) -> Path:
        """The user's working directory of one trial."""
        return self._directory / name

    def of(self, name: str) -> Verdict:
        """What came of one."""
        return self._verdicts[name].result()

    def _verify(self, name: str, case: Case) -> Verdict:
        home = with_program(self.home(name))
        inputs = parse_inputs([f"numbers/set={home}"]) if case.has_input else {}
        request = Request(parse_definition(case.raw), home, inputs, case.timeout_s, case.reference, dict(os.environ))
        return verify(request, lambda text: print(f"{name}: {text}"), s3=self._s3)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


@pytest.fixture
def trials(tmp_path: Path, s3: S3Client, s3_server: SeaweedServer) -> Iterator[Trials]:
    """Every trial; the quiet time is half a second."""
    assert s3 is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KELPIE_QUIET_S", "0.5")
        trials = Trials(tmp_path, s3_server)
        try:
            yield trials
        finally:
            trials.close()


def with_program(folder: Path) -> Path:
    folder.mkdir()
    shutil.copy2(saver.__file__, folder / "saver.py")
    return folder


def found(verdict: Verdict, check: str) -> Finding:
    return next(one for one in verdict.findings if one.check == check)


def levels(verdict: Verdict) -> dict[str, str]:
    return {one.check: one.level.value for one in verdict.findings}


def a_program_that_resumes_is_told_so_and_its_outputs_are_those_of_an_uninterrupted_run(
    trials: Trials,
) -> None:
    verdict = trials.of("atomic")
    assert verdict.resumes, verdict
    assert levels(verdict) == {
        "commit": "ok", "checkpoint": "ok", "resume": "ok", "lost": "info", "writes": "ok", "sigterm": "ok",
        "outputs": "ok",
    }  # fmt: skip
    assert "state/count.json" in found(verdict, "resume").text
    assert "rename" in found(verdict, "writes").text
    assert "bit for bit" in found(verdict, "outputs").text
    assert found(verdict, "sigterm").facts["exit_code"] == 75
    assert found(verdict, "lost").facts["redone_s"] < 30
    home = trials.home("atomic")
    assert list(home.rglob("*")) == [home / "saver.py"], "something was written to the user's directory"


def a_program_that_ignores_its_checkpoint_is_told_from_one_that_resumes(trials: Trials) -> None:
    verdict = trials.of("ignores")
    assert not verdict.resumes
    resume = found(verdict, "resume")
    assert resume.level.value == "problem", verdict
    assert "ignores its checkpoint" in resume.text
    assert "opened none" in resume.text
    assert resume.facts["read"] == []


def a_program_that_writes_in_place_is_told_with_the_file_and_how_long_it_was_half_written(
    trials: Trials,
) -> None:
    verdict = trials.of("in_place")
    assert verdict.resumes, verdict  # kelpie's commits are whole all the same
    writes = found(verdict, "writes")
    assert writes.level.value == "warning"
    assert "in place" in writes.text
    assert writes.facts["files"]["$CHECKPOINT_DIR/count.json"]["longest_s"] >= 0.08
    assert found(verdict, "resume").facts["read"] == ["$CHECKPOINT_DIR/count.json"]
    assert found(verdict, "outputs").text == "the job completed with 1 output file"


def a_commit_that_is_reported_before_the_file_is_closed_is_a_problem(trials: Trials) -> None:
    verdict = trials.of("early")
    assert not verdict.resumes
    reports = found(verdict, "reports")
    assert reports.level.value == "problem", verdict
    assert "state/count.json" in reports.text


def test_the_command_tells_of_a_program_that_saves_where_nobody_looks_what_it_wrote(
    tmp_path: Path,
) -> None:
    bare = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN_PREFIXES)}
    command = [
        str(script("kelpie", "kelpie-celery")),
        "verify",
        "-",
        "--directory",
        str(with_program(tmp_path / "home")),
        "--timeout",
        "5",
        "--json",
    ]
    done = subprocess.run(
        command, input=json.dumps(definition("elsewhere", 2000)), env=bare, capture_output=True, text=True,
        timeout=2 * BOUND_S, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done
    document = json.loads(done.stdout)
    assert document["resumes"] is False
    assert [one["check"] for one in document["findings"]] == ["commit"]
    assert "mine/count.json" in document["findings"][0]["text"]
    assert "KELPIE_REPORT" in document["findings"][0]["mend"]


def a_job_that_ends_before_its_first_checkpoint_was_not_seen_to_resume(trials: Trials) -> None:
    verdict = trials.of("short")
    assert not verdict.resumes
    assert "before its first checkpoint" in verdict.findings[0].text


def a_program_that_fails_with_its_checkpoint_is_told_with_its_output_and_without_a_secret(trials: Trials) -> None:
    verdict = trials.of("fails")
    assert not verdict.resumes
    resume = found(verdict, "resume")
    assert resume.level.value == "problem", verdict
    assert "cannot read" in resume.text
    assert CANARY not in str(verdict)


def test_nothing_stays_on_the_disk_when_it_is_told_to_end(tmp_path: Path) -> None:
    """Copies of the user's files would, and the environment of the job."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN_PREFIXES)}
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [
        str(script("kelpie", "kelpie-celery")),
        "verify",
        "-",
        "--directory",
        str(with_program(tmp_path / "home")),
    ]
    with subprocess.Popen(
        command, env={**bare, "TMPDIR": str(temporary)}, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(definition("never", 2000)))
        process.stdin.close()
        eventually("a machine comes up", lambda: list(temporary.glob("kelpie-verify-*/machines/1")), BOUND_S)
        process.send_signal(signal.SIGTERM)
        assert process.wait(BOUND_S) == 130
    assert list(temporary.glob("kelpie-verify-*")) == []


def test_what_is_said_of_programs_that_resume_and_of_programs_that_do_not(trials: Trials) -> None:
    """One test, so that the trials run beside each other and once, whatever test processes there are."""
    failures = []
    for check in (
        a_program_that_resumes_is_told_so_and_its_outputs_are_those_of_an_uninterrupted_run,
        a_program_that_ignores_its_checkpoint_is_told_from_one_that_resumes,
        a_program_that_writes_in_place_is_told_with_the_file_and_how_long_it_was_half_written,
        a_commit_that_is_reported_before_the_file_is_closed_is_a_problem,
        a_job_that_ends_before_its_first_checkpoint_was_not_seen_to_resume,
        a_program_that_fails_with_its_checkpoint_is_told_with_its_output_and_without_a_secret,
    ):
        try:
            check(trials)
        except Exception as error:
            error.add_note(f"-- {check.__name__}")
            failures.append(error)
    if failures:
        raise ExceptionGroup("what is said is not so", failures)
