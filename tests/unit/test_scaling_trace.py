"""Traces: what is read, and what is refused with the number of its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from kelpie_celery.errors import TraceError
from kelpie_scaler.simulation.trace import Arrival, parse_trace, read_trace


def refusal(*lines: str) -> str:
    with pytest.raises(TraceError) as caught:
        parse_trace(lines, "t.jsonl")
    return str(caught.value)


def test_lines_are_read_in_any_order_and_sorted_by_arrival() -> None:
    lines = ['{"at_s": 5, "duration_s": 1.5, "priority": 0}\n', "\n", '{"at_s": -1.5, "duration_s": 0}']

    assert parse_trace(lines, "x") == [Arrival(-1.5, 0.0), Arrival(5.0, 1.5, 0)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: is not JSON"),
        ("[1]", "line 2: is not an object"),
        ("[" * 100_000, "line 2: is"),
        ('{"at_s": 1}', "line 2: duration_s: is required"),
        ('{"duration_s": 1}', "line 2: at_s: is required"),
        ('{"at_s": "1", "duration_s": 1}', "line 2: at_s: must be a number of seconds"),
        ('{"at_s": true, "duration_s": 1}', "line 2: at_s: must be a number of seconds"),
        ('{"at_s": NaN, "duration_s": 1}', "line 2: at_s: must be a number of seconds"),
        ('{"at_s": 1, "duration_s": Infinity}', "line 2: duration_s: must be a number of seconds"),
        ('{"at_s": 1, "duration_s": 1' + "0" * 400 + "}", "line 2: duration_s: must be a number of seconds"),
        ('{"at_s": 1, "duration_s": -1}', "line 2: duration_s: must be 0 to 315360000 seconds (got -1)"),
        ('{"at_s": 1, "duration_s": 1, "priority": 10}', "line 2: priority: must be a whole number from 0 to 9"),
        ('{"at_s": 1, "duration_s": 1, "priority": true}', "line 2: priority: must be a whole number"),
        ('{"at_s": 1, "duration": 1}', "line 2: 'duration' is not a field of a trace; did you mean 'duration_s'?"),
    ],
)
def test_a_wrong_line_is_told_with_its_number_and_what_a_line_has_to_be(line: str, words: str) -> None:
    said = refusal('{"at_s": 0, "duration_s": 1}', line)

    assert said.startswith("the trace t.jsonl is refused: " + words)
    assert said.endswith('a line is {"at_s": seconds, "duration_s": seconds} and, if you like, "priority": 0 to 9')


def test_of_many_wrong_lines_the_first_ones_are_told() -> None:
    said = refusal(*["x"] * 100)

    assert "line 5:" in said
    assert "line 6:" not in said
    assert "; and more;" in said


def test_an_empty_trace_is_refused() -> None:
    assert refusal("\n", "") == (
        'the trace t.jsonl holds no job; a line is {"at_s": seconds, "duration_s": seconds} and, if you like, '
        '"priority": 0 to 9'
    )


def test_a_file_that_cannot_be_read_is_told_by_its_name(tmp_path: Path) -> None:
    binary = tmp_path / "b"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, words in ((tmp_path / "none", "No such file"), (tmp_path, "directory"), (binary, "not text in UTF-8")):
        with pytest.raises(TraceError, match=words) as caught:
            read_trace(path)
        assert str(path) in str(caught.value)
        assert caught.value.__context__ is None
