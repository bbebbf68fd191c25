"""What a job writes into ``KELPIE_REPORT`` is read once, whole lines only, however it writes."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from kelpie_worker.command.report import MAX_LINE_BYTES, MAX_LOOK_BYTES, Report, ReportFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "report.jsonl"


@pytest.fixture
def report(path: Path) -> ReportFile:
    return ReportFile(path, {"job_id": "j1"})


def append(path: Path, text: str) -> None:
    with path.open("a") as f:
        f.write(text)


def test_a_file_that_is_not_there_reports_nothing(report: ReportFile) -> None:
    assert report.poll() == []


def test_each_line_is_reported_once(path: Path, report: ReportFile) -> None:
    append(path, '{"progress": 0.25, "message": "epoch 1"}\n{"commit": true}\n')
    assert report.poll() == [Report(0.25, "epoch 1"), Report(commit=True)]
    assert report.poll() == []
    append(path, '\n{"progress": 1}\n')
    assert report.poll() == [Report(1.0)]


def test_half_a_line_waits_for_its_other_half(path: Path, report: ReportFile) -> None:
    append(path, '{"progress": 0.')
    assert report.poll() == []
    append(path, '5}\n{"comm')
    assert report.poll() == [Report(0.5)]
    append(path, 'it": true}\n')
    assert report.poll() == [Report(commit=True)]


def test_a_message_is_cut(path: Path, report: ReportFile) -> None:
    append(path, json.dumps({"message": "é" * 1000}) + "\n")
    assert report.poll() == [Report(message="é" * 500)]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("epoch 3", "not JSON"),
        ("[0.5]", "JSON object"),
        ('{"epoch": 3}', "progress, message or commit"),
        ('{"progress": 45}', "divide a percentage by 100"),
        ('{"progress": -0.1}', "from 0 to 1"),
        ('{"progress": NaN}', "from 0 to 1"),
        ('{"progress": true}', "from 0 to 1"),
        ('{"progress": "0.5"}', "from 0 to 1"),
        ('{"message": 5}', "message is a string"),
        ('{"commit": "yes"}', "true or false"),
        ("[" * 5000, "recursion"),
        ('{"message": "' + "x" * MAX_LINE_BYTES, "longer than"),
    ],
)
def test_a_bad_line_is_dropped_and_the_first_one_explained(
    path: Path, report: ReportFile, line: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    append(path, line)
    first = report.poll()
    append(path, "\n" + line + '\n{"progress": 0.5}\n')
    with caplog.at_level(logging.WARNING):
        assert first + report.poll() == [Report(0.5)]
    assert report.num_bad == 2
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert says in warnings[0].__dict__["why"]
    assert warnings[0].__dict__["job_id"] == "j1"


def test_a_look_reads_no_more_than_its_share(path: Path, report: ReportFile) -> None:
    line = json.dumps({"message": "x" * 1000}) + "\n"
    append(path, line * (2 * MAX_LOOK_BYTES // len(line) + 10))
    counts = [len(report.poll()) for _ in range(4)]
    assert counts[0] <= MAX_LOOK_BYTES // len(line)
    assert sum(counts) == 2 * MAX_LOOK_BYTES // len(line) + 10
    assert counts[-1] == 0


def test_a_truncated_file_is_read_from_its_beginning(path: Path, report: ReportFile) -> None:
    append(path, '{"progress": 0.1}\n{"progress": 0.2}\n{"progr')
    assert len(report.poll()) == 2
    path.write_text('{"progress": 0.3}\n')
    assert report.poll() == [Report(0.3)]


def test_a_replaced_file_is_read_from_its_beginning(path: Path, report: ReportFile) -> None:
    append(path, '{"progress": 0.1}\n')
    assert report.poll() == [Report(0.1)]
    new = path.with_suffix(".new")
    new.write_text('{"progress": 0.1}\n{"progress": 0.2}\n')
    new.replace(path)
    assert report.poll() == [Report(0.1), Report(0.2)]


def test_a_file_that_is_written_anew_with_a_longer_line_is_followed(path: Path, report: ReportFile) -> None:
    path.write_text('{"progress": 0.9}\n')
    assert report.poll() == [Report(0.9)]
    path.write_text('{"progress": 0.95}\n')
    assert report.poll() == [Report(0.95)]


def test_the_same_line_written_anew_is_a_new_report_at_the_second_look(path: Path, report: ReportFile) -> None:
    path.write_text('{"commit": true}\n')
    assert report.poll() == [Report(commit=True)]
    assert report.poll() == []
    path.write_text('{"commit": true}\n')
    os.utime(path, ns=(1, 1))  # file times tick only every few milliseconds
    assert report.poll() == []
    assert report.poll() == [Report(commit=True)]
    assert report.poll() == report.poll() == []


def test_what_is_no_file_does_not_block_the_worker(path: Path, report: ReportFile) -> None:
    os.mkfifo(path)
    assert report.poll() == []
    path.unlink()
    path.mkdir()
    assert report.poll() == []


def test_a_cleared_file_starts_again(path: Path, report: ReportFile) -> None:
    append(path, '{"progress": 0.1}\n{"half')
    report.poll()
    report.clear()
    assert not path.exists()
    report.clear()
    append(path, '{"progress": 0.1}\n')
    assert report.poll() == [Report(0.1)]
