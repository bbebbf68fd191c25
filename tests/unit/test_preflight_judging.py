from __future__ import annotations

import signal
from dataclasses import replace
from typing import Any

import pytest

from kelpie_celery.checkpoints.kept import Checkpoint
from kelpie_celery.findings import Finding
from kelpie_worker.preflight.judging import hopeless, judge, resumes
from kelpie_worker.preflight.listening import IN_PLACE, NEW, RENAMED, Heard, Said, Write
from kelpie_worker.preflight.seen import Asked, AttemptSeen, Ended, Seen

ASKED = Asked(["state"], "quiet", 2.0, 30.0, 600.0, has_outputs=True)
STATE = "state/a.bin"


def commit(at: float, attempt: int, why: str = "quiet") -> Checkpoint:
    return Checkpoint(
        f"{at:010.0f}-{attempt}-x", "job", attempt, why, at, 1, 1000, 1000, ("s3://b/p/",), (), True, True
    )


def progress(*told: tuple[float, float]) -> tuple[Said, ...]:
    return tuple(Said(at, value, commit=False) for at, value in told)


def trial(**more: Any) -> Seen:
    """A job that saved 40 % at 40 s, was killed at 50 s, went on at 40 %, saved at SIGTERM and completed."""
    first = Heard(writes=(Write(STATE, RENAMED, 40, 40),), said=progress((1, 0.01), (40, 0.4), (50, 0.5)))
    second = Heard(
        restored=(STATE,), read=(STATE,), writes=(Write(STATE, RENAMED, 81, 81),), said=progress((61, 0.4), (80, 0.6))
    )
    ended = Ended(82.0, "interruption", "worker_shutdown", "", exit_code=75)
    seen = Seen(
        attempts=[AttemptSeen(1, 0.0, 0.5, first, over=50.0), AttemptSeen(2, 55.0, 60.0, second, 82.0, ended)],
        checkpoints=[commit(42, 1), commit(82, 2, "sigterm")], killed=50.0, termed=80.5, status="completed",
        outputs={"b/out": "1"},
    )  # fmt: skip
    for name, value in more.items():
        setattr(seen, name, value)
    return seen


def second(seen: Seen, **more: Any) -> Seen:
    """With another second attempt: what was heard of it, or how it ended."""
    one = seen.attempts[1]
    heard = {name: value for name, value in more.items() if name in Heard.__dataclass_fields__}
    one.heard = replace(one.heard, **heard)
    if one.ended is not None:
        one.ended = replace(one.ended, **{name: value for name, value in more.items() if name not in heard})
    return seen


def of(seen: Seen, check: str, asked: Asked = ASKED) -> Finding:
    return next(one for one in judge(seen, asked) if one.check == check)


def test_a_job_that_goes_on_resumes_and_what_it_did_again_is_told() -> None:
    found = judge(trial(), ASKED)
    assert resumes(found)
    assert not hopeless(trial(), ASKED)
    assert [one.check for one in found] == ["commit", "checkpoint", "resume", "lost", "writes", "sigterm", "outputs"]
    lost = of(trial(), "lost")
    assert lost.facts["unsaved_s"] == 10.0
    assert lost.facts["redone_s"] == pytest.approx(10.0, abs=0.1)


@pytest.mark.parametrize(
    ("more", "level", "told"),
    [
        ({"read": (), "said": ()}, "problem", "opened none"),
        ({"read": (), "said": progress((61, 0.01))}, "problem", "began again"),
        ({"read": (STATE,), "said": progress((61, 0.01))}, "problem", "ignores its checkpoint"),
        ({"read": (STATE,), "said": ()}, "ok", "reports no progress"),
        ({"read": (), "said": progress((61, 0.39))}, "ok", "went on"),
        ({"read": (), "said": (), "missed": True}, "warning", "too much happened"),
        ({"read": (STATE,), "said": (), "outcome": "failure", "tail": "no such key"}, "problem", "no such key"),
    ],
)
def test_the_resume_is_judged_by_progress_and_by_what_was_read(more: dict[str, Any], level: str, told: str) -> None:
    seen = second(trial(), **more)
    found = of(seen, "resume")
    assert (found.level.value, told in found.text) == (level, True), found
    assert resumes(judge(seen, ASKED)) == (level == "ok")


def test_reads_prove_nothing_where_the_worker_reads_as_well() -> None:
    seen = second(trial(), said=())
    assert of(seen, "resume", replace(ASKED, reads_tell=False)).level.value == "warning"


@pytest.mark.parametrize(
    ("more", "level", "told"),
    [
        ({"exit_code": 75}, "ok", "nothing was lost"),
        ({"exit_code": 0, "writes": ()}, "warning", "without saving"),
        ({"exit_code": None, "signal": signal.SIGTERM, "writes": ()}, "warning", "SIGTERM"),
        ({"exit_code": None, "signal": signal.SIGKILL, "writes": ()}, "warning", "grace period of 30 s"),
        ({"exit_code": 1}, "warning", "end with 0 or 75"),
        ({"outcome": "completed", "exit_code": 0, "writes": ()}, "info", "ended first"),
    ],
)
def test_what_the_command_did_at_sigterm_is_told(more: dict[str, Any], level: str, told: str) -> None:
    found = of(second(trial(), **more), "sigterm")
    assert (found.level.value, told in found.text + found.mend) == (level, True), found


@pytest.mark.parametrize(
    ("more", "level", "told"),
    [
        ({"reference": {"b/out": "1"}}, "ok", "bit for bit"),
        ({"reference": {"b/out": "2"}}, "info", "differ"),
        ({"reference": {"b/out": "1", "b/other": "1"}}, "problem", "b/other"),
        ({"reference_failed": "it did not end"}, "warning", "it did not end"),
        ({"outputs": {}}, "problem", "no output"),
        ({"status": "running", "outputs": None}, "info", "did not end within 10 min"),
        ({"status": "failed", "message": "exit code 3"}, "problem", "exit code 3"),
    ],
)
def test_the_end_is_told(more: dict[str, Any], level: str, told: str) -> None:
    found = of(trial(**more), "outputs")
    assert (found.level.value, told in found.text) == (level, True), found


def test_writing_in_place_is_a_warning_that_says_what_is_safe_and_what_is_not() -> None:
    seen = trial()
    writes = (Write(STATE, IN_PLACE, 39, 40), Write(STATE, IN_PLACE, 44, 44.5))
    seen.attempts[0].heard = replace(seen.attempts[0].heard, writes=writes, writing=(STATE,))
    found = of(seen, "writes")
    assert found.level.value == "warning"
    assert found.facts["files"][STATE] == {"times": 2, "longest_s": 1.0}
    assert "when the machine was killed" in found.text
    assert "os.replace" in found.mend
    assert resumes(judge(seen, ASKED))


def test_a_commit_that_was_asked_for_too_early_is_a_problem() -> None:
    seen = trial()
    said = (Said(40, None, commit=True, writing=(STATE,)),)
    seen.attempts[0].heard = replace(seen.attempts[0].heard, said=said, early=(STATE,))
    assert of(seen, "reports").level.value == "problem"


@pytest.mark.parametrize(
    ("heard", "asked", "told"),
    [
        (Heard(), {}, "nothing was written into state, but elsewhere: mine/a"),
        (Heard(writes=(Write(STATE, RENAMED, 1, 1),)), {}, "before the directory was quiet for 2.0 s"),
        (Heard(writing=(STATE,)), {}, "stays open for writing"),
        (Heard(writes=(Write(STATE, RENAMED, 1, 1),)), {"commit": "report"}, "no commit was reported"),
        (Heard(writes=(Write(STATE, RENAMED, 1, 1),)), {"commit": "marker:DONE"}, "marker:DONE"),
    ],
)
def test_why_no_checkpoint_was_made_is_told(heard: Heard, asked: dict[str, Any], told: str) -> None:
    seen = Seen(attempts=[AttemptSeen(1, 0.0, 0.5, heard)], status="running", elsewhere=["mine/a"])
    found = judge(seen, replace(ASKED, **asked))
    assert [one.check for one in found] == ["commit"]
    assert told in found[0].text
    assert "KELPIE_REPORT" in found[0].mend


def test_a_job_that_fails_or_ends_at_once_is_told_as_such() -> None:
    ended = Ended(3.0, "failure", "exit_code", "the command exited with code 3", exit_code=3, tail="Traceback\nno file")
    seen = Seen(attempts=[AttemptSeen(1, 0.0, 0.5, Heard(), 3.0, ended)], status="failed")
    found = judge(seen, ASKED)
    assert "code 3; its last output: Traceback | no file" in found[0].text
    done = Seen(
        attempts=[AttemptSeen(1, 0.0, 0.5, Heard(), 3.0, replace(ended, outcome="completed"))], status="completed"
    )
    assert "ended after 2.5 s, before its first checkpoint" in judge(done, ASKED)[0].text
    assert not resumes(judge(done, ASKED))


def test_a_job_that_opened_nothing_and_writes_other_names_than_before_may_go_on_by_names() -> None:
    def names(then: str, restored: str = "state/done-15") -> Seen:
        seen = second(trial(), read=(), restored=(restored,), said=(), writes=(Write(then, NEW, 80, 80),))
        seen.attempts[0].heard = Heard(
            writes=(Write("state/done-15", NEW, 40, 40), Write("state/done-30", NEW, 49, 49))
        )
        return seen

    goes_on = of(names("state/done-30"), "resume")
    assert goes_on.level.value == "warning"
    assert "by their names alone" in goes_on.text
    assert not hopeless(names("state/done-30"), ASKED)
    begins_again = names("state/done-15", restored="state/done-30")
    assert of(begins_again, "resume").level.value == "problem", "what it had restored before is pruned"
    assert of(names("state/done-15"), "resume").level.value == "problem"


def test_a_command_that_ended_by_itself_before_sigterm_is_not_said_to_have_heeded_it() -> None:
    told = of(second(trial(), at=80.0), "sigterm")
    assert told.level.value == "info"
    assert "by itself before" in told.text


def test_a_command_that_hands_back_before_it_could_be_interrupted_was_not_seen_to_resume() -> None:
    seen = trial(killed=None, status="running")
    del seen.attempts[1:]
    seen.attempts[0].ended = Ended(45.0, "interruption", "asked_again", "", exit_code=75)
    findings = judge(seen, ASKED)
    assert not resumes(findings)
    assert "exit code 75" in findings[0].text


@pytest.mark.parametrize(("status", "checkpoints"), [("completed", [commit(60, 1, "exit")]), ("running", [])])
def test_a_file_that_stays_open_for_writing_is_named_where_it_kept_the_checkpoint_from_being_made(
    status: str, checkpoints: list[Checkpoint]
) -> None:
    """As of a database, or a mapped array: of its writes nothing was heard."""
    seen = trial(killed=None, status=status, checkpoints=checkpoints, held={"state/db": (1.0, 50.0), "x": (9.0, 9.5)})
    del seen.attempts[1:]
    told = judge(seen, ASKED)[0]
    assert told.level.value == "problem"
    assert "state/db stays open for writing" in told.text
    assert "KELPIE_REPORT" in told.mend
    assert "more to do" not in told.mend
