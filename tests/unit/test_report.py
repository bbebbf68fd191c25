"""``KELPIE_REPORT``: what a job says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from kelpie_worker.command import OutputTail, Report, ReportFile


def test_only_complete_new_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "report"
    report = ReportFile(path)
    assert report.poll() == []
    path.write_text('{"progress": 0.25}\n{"mess')
    assert report.poll() == [Report(progress=0.25)]
    with path.open("a") as f:
        f.write('age": "hi", "commit": true}\n')
    assert report.poll() == [Report(message="hi", commit=True)]
    assert report.poll() == []


@pytest.mark.parametrize(
    "line", ["[]", "{", '{"progress": 50}', '{"progress": true}', '{"progress": NaN}', '{"message": 1}']
)
def test_a_bad_line_is_dropped_and_the_next_one_read(tmp_path: Path, line: str) -> None:
    path = tmp_path / "report"
    path.write_text(f'{line}\n{{"progress": 1}}\n')
    assert ReportFile(path).poll() == [Report(progress=1)]


def test_a_file_that_was_replaced_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "report"
    path.write_text('{"progress": 0.5}\n{"progress": 0.6}\n')
    report = ReportFile(path)
    report.poll()
    (tmp_path / "new").write_text('{"progress": 0.7}\n')
    (tmp_path / "new").rename(path)
    assert report.poll() == [Report(progress=0.7)]


def test_a_line_without_end_does_not_grow_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "report"
    path.write_bytes(b"x" * 600_000 + b'\n{"progress": 1}\n')
    report = ReportFile(path)
    assert [entry for _ in range(5) for entry in report.poll()] == [Report(progress=1)]


def test_a_long_message_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "report"
    path.write_text('{"message": "' + "x" * 2000 + '"}\n')
    (report,) = ReportFile(path).poll()
    assert report.message == "x" * 500


def test_the_tail_is_bounded_by_lines_and_bytes() -> None:
    tail = OutputTail(max_lines=3, max_bytes=100)
    for i in range(10):
        tail.add(f"line {i}")
    assert tail.last(10, 1000) == ["line 7", "line 8", "line 9"]
    assert tail.last(10, 12) == ["line 8", "line 9"]
    assert tail.last(10, 11) == ["line 9"]
    tail.add("y" * 1000)
    assert tail.last(10, 1000) == ["y" * 100]
