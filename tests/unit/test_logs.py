"""Logs: their two forms, and what never stands in them."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from kelpie_celery.logs import FIELDS, TextFormatter, configure_logging
from kelpie_celery.redaction import Redactor

SECRET = 'hunter2 "quoted" \\ é/+%'


@pytest.fixture(autouse=True)
def _root_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def written(message: str, *args: Any, json_lines: bool = False, secrets: list[str] | None = None, **log: Any) -> str:
    """What one record looks like."""
    stream = io.StringIO()
    configure_logging("info", json_lines=json_lines, secrets=secrets or [], stream=stream)
    logging.getLogger("kelpie_celery.sample").warning(message, *args, **log)
    return stream.getvalue()


def thrown(text: str) -> BaseException:
    """An exception with a traceback and a cause."""

    def throw() -> None:
        raise RuntimeError(text) from ValueError({"key": text})

    try:
        throw()
    except RuntimeError as error:
        return error
    raise AssertionError("unreachable")


def test_a_text_line_has_time_level_message_action_and_fields() -> None:
    line = written("job claimed", extra={"duration_s": 1.23456, "bytes": 7, "job_id": "j-1", "action": "job_claimed"})

    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00 WARNING job claimed"
        r" action=job_claimed job_id=j-1 duration_s=1\.235 bytes=7\n",
        line,
    )


def test_a_json_line_has_the_same_as_members() -> None:
    line = written("job claimed", json_lines=True, extra={"action": "job_claimed", "attempt": 2, "machine_id": None})

    data = json.loads(line)
    assert data.pop("time").endswith("+00:00")
    assert data == {
        "level": "warning",
        "logger": "kelpie_celery.sample",
        "message": "job claimed",
        "action": "job_claimed",
        "attempt": 2,
    }


def test_a_value_cannot_forge_a_line_or_a_field() -> None:
    line = written("job claimed", extra={"job_id": "a\nb action=x", "tail": ""})

    assert line.count("\n") == 1
    assert r'job_id="a\nb action=x" tail=""' in line


def test_documented_fields_come_first() -> None:
    line = written("m", extra={"z": 1, **dict.fromkeys(reversed(FIELDS), "x")})

    assert re.findall(r"(\w+)=", line) == [*FIELDS, "z"]


@pytest.mark.parametrize("json_lines", [False, True])
def test_an_exception_follows_with_its_traceback(json_lines: bool) -> None:
    text = written("failed", json_lines=json_lines, exc_info=thrown("it broke"), stack_info=True)

    trace = json.loads(text)["exception"] if json_lines else text
    assert "Traceback (most recent call last)" in trace
    assert "RuntimeError: it broke" in trace
    assert "Stack (most recent call last)" in trace


@pytest.mark.parametrize("json_lines", [False, True])
def test_a_secret_is_masked_wherever_it_stands(json_lines: bool) -> None:
    text = written(
        "failed %s %r",
        SECRET,
        SECRET,
        json_lines=json_lines,
        secrets=[SECRET],
        exc_info=thrown(SECRET),
        extra={"action": "x", "url": f"redis://:{SECRET}@h", "nested": {"a": [SECRET]}},
    )

    assert "hunter2" not in text
    assert text.count("***") >= 6
    if json_lines:
        json.loads(text)


def test_url_encoded_and_many_line_secrets_are_masked() -> None:
    redactor = Redactor(["p@ss/word", "-----BEGIN-----\nline-one\nline-two\n"])

    assert redactor.mask("redis://:p%40ss%2Fword@h p@ss/word") == "redis://:***@h ***"
    assert redactor.mask("> line-two") == "> ***"


def test_a_secret_that_begins_like_another_leaves_no_rest_behind() -> None:
    assert Redactor(["secret", "secret-long"]).mask("secret-long secret") == "*** ***"


def test_values_too_short_to_mask_are_left_alone() -> None:
    assert Redactor(["", "1", "true"]).mask("1 is true") == "1 is true"


def test_secrets_of_one_job_are_masked_while_it_runs_also_when_jobs_overlap() -> None:
    redactor = Redactor()
    first, second = redactor.hiding(["canary-1"]), redactor.hiding(["canary-1", "canary-2"])

    with first:
        with second:
            assert redactor.mask("canary-1 canary-2") == "*** ***"
        assert redactor.mask("canary-1 canary-2") == "*** canary-2"
    assert redactor.mask("canary-1") == "canary-1"


def test_secrets_may_be_added_while_the_process_runs() -> None:
    stream = io.StringIO()
    redactor = configure_logging(stream=stream)
    redactor.add(["late-canary"])
    logging.getLogger("x").info("late-canary")

    assert "late-canary" not in stream.getvalue()


def test_a_record_whose_arguments_do_not_fit_is_shown_without_them() -> None:
    # Left to itself, logging prints such a record to stderr, arguments and all, past the redactor.
    record = logging.makeLogRecord({"msg": "no place for %d", "args": ("canary",), "levelname": "INFO"})

    assert TextFormatter(Redactor()).format(record).endswith(" INFO    no place for %d")


def test_a_second_call_replaces_the_first_and_leaves_others_alone() -> None:
    other = logging.NullHandler()
    logging.getLogger().addHandler(other)
    first, second = io.StringIO(), io.StringIO()

    configure_logging(stream=first)
    configure_logging("error", stream=second)
    logging.getLogger("x").error("once")
    logging.getLogger("x").warning("not at all")

    assert first.getvalue() == ""
    assert second.getvalue().count("\n") == 1
    assert other in logging.getLogger().handlers
