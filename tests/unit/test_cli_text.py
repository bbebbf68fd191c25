"""What the command line writes for people."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from rich.console import Console

from kelpie_celery.bulk import Glance
from kelpie_celery.cli import _options, _text, _view
from kelpie_celery.ledger.records import JobRecord, Progress
from kelpie_celery.lifecycle import Phase, Status


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-3, "0 s"),
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (185, "3 min 5 s"),
        (3600, "1 h"),
        (3605, "1 h"),
        (7800, "2 h 10 min"),
        (86_400 * 3 + 4 * 3600 + 59, "3 d 4 h"),
    ],
)
def test_durations_are_told_in_their_two_largest_units(seconds: float, expected: str) -> None:
    assert _text.duration(seconds) == expected


@pytest.fixture
def _in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("_in_berlin")
def test_people_read_local_time_and_programs_utc() -> None:
    moment = 1_700_000_000.1239
    assert _text.local_time(moment) == "2023-11-14 23:13:20 CET"
    assert _text.clock_time(moment) == "23:13:20"
    assert _text.iso_time(moment) == "2023-11-14T22:13:20.123Z"
    assert _text.iso_time(None) is None


def test_text_of_others_cannot_drive_the_terminal() -> None:
    assert _text.one_line("a\x1b[31m b\n\n c\x07\udcff\u202e") == "a [31m b c"


@pytest.mark.parametrize(
    ("given", "expected"), [("90", 90), ("1.5s", 1.5), ("10m", 600), ("2 h", 7200), ("1d", 86_400), ("3min", 180)]
)
def test_durations_are_read_with_units(given: str, expected: float) -> None:
    assert _options.duration(given) == expected


@pytest.mark.parametrize(
    ("progress", "message", "expected"),
    [
        (0.42, "epoch 3", "42 %: epoch 3"),
        (1.0, None, "100 %"),
        (1700.0, "steps", "1700: steps"),
        (None, "x", "x"),
        (None, None, ""),
    ],
)
def test_progress_is_told_in_words(progress: float | None, message: str | None, expected: str) -> None:
    assert _view.progress_words(progress, message).plain == expected


def shown(renderable: object) -> str:
    out = Console(width=200, record=True, markup=False, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123 -- short-lived
    out.print(renderable)
    return out.export_text()


def record(status: Status, **more: object) -> JobRecord:
    return JobRecord.model_validate({"id": "a" * 36, "container_group_id": "g", "status": status, **more})


def test_markup_in_a_name_is_shown_as_it_is() -> None:
    table = _view.job_table([record(Status.PENDING, name="[bold]x[/bold]")], 1.0, with_group=False)
    assert "[bold]x[/bold]" in shown(table)


def test_a_job_that_is_being_canceled_says_so() -> None:
    assert _view.state(Status.RUNNING, Phase.EXECUTING, canceling=True).plain == "running (canceling)"
    assert _view.state(Status.CANCELED, None, canceling=True).plain == "canceled"


def test_the_details_tell_when_the_next_try_is_due() -> None:
    job = record(Status.PENDING, created=100.0, not_before=142.0, num_failures=1, max_failures=3, reason="exit_code")
    text = shown(_view.job_details(job, 100.0))
    assert "in 42 s" in text
    assert "1 of at most 3" in text
    assert "last failure" in text


def test_the_details_tell_of_failures_that_do_not_count() -> None:
    job = record(Status.PENDING, num_failures=1, max_failures=3, num_free=4)
    assert "1 of at most 3, 4 more that a retry rule does not count" in shown(_view.job_details(job, 100.0))


def test_the_details_tell_why_a_job_that_goes_on_was_interrupted() -> None:
    tries = [
        {
            "n": 1,
            "machine": "m",
            "started": 1.0,
            "outcome": "interruption",
            "reason": "lease_expired",
            "message": "gone",
        },
        {"n": 2, "machine": "m", "started": 2.0},
    ]
    assert "lease_expired: gone" in shown(_view.job_details(record(Status.RUNNING, attempts=tries), 100.0))
    assert "lease_expired" not in shown(_view.job_details(record(Status.COMPLETED, attempts=tries), 100.0))


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (record(Status.COMPLETED, started=10.0, ended=100.0), "completed, 1 min 30 s"),
        (
            record(Status.COMPLETED, started=0.5, ended=1.5, num_interruptions=2, num_failures=1),
            "completed, 1.0 s (2 interruptions, 1 failed try)",
        ),
        (
            record(Status.FAILED, reason="oom", message="too\nmuch", num_failures=3),
            "failed: oom: too much (3 failed tries)",
        ),
        (record(Status.CANCELED), "canceled"),
    ],
)
def test_an_ending_is_told_in_one_line(job: JobRecord, expected: str) -> None:
    assert _view.ending_words(job).plain == f"{'a' * 36} {expected}"


def test_a_running_job_is_told_in_one_line() -> None:
    glance = Glance("a", Status.RUNNING, Phase.EXECUTING, 2, "m", progress=0.5, message="x" * 500)
    text = _view.glance_words(glance).plain
    assert text.startswith("a running (executing), attempt 2 on m, 50 %: xxx")
    assert len(text) < 120


def test_progress_of_a_pending_job_is_not_shown_as_if_it_ran() -> None:
    assert _view.glance_words(Glance("a", Status.PENDING, progress=0.5)).plain == "a pending"


def test_ids_are_never_cut_in_a_pipe() -> None:
    jobs = [record(Status.RUNNING, name="n" * 300, machine_id="m" * 100, progress=Progress(message="w" * 300))]
    with open("/dev/null", "w") as pipe:  # noqa: PTH123
        console = _view.console(pipe)
        assert console.width == 240
        with console.capture() as captured:
            console.print(_view.job_table(jobs, 1.0, with_group=True))
    assert "a" * 36 in captured.get()
