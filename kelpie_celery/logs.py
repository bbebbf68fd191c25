r"""Logs: one line a record, as text or as JSON, with the fields that were given in ``extra``.

The text form is ``TIME LEVEL MESSAGE action=... job_id=... ...``; the JSON form has the same as members, with
``time`` (UTC, ISO 8601), ``level``, ``logger``, ``message`` and, when there is one, ``exception``. A message
is constant, ``action`` names what happened and is an interface; what varies is in fields, `FIELDS` first.

Limits: only records that go through the handler of `configure_logging` are formatted and redacted. Celery
replaces the root logger's handlers unless its signal ``setup_logging`` has a receiver.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, TextIO

from kelpie_celery.redaction import Redactor

FIELDS = ("action", "job_id", "attempt", "machine_id", "container_group", "duration_s")

_HANDLER = "kelpie"
# What every record has; the rest came in by ``extra``.
# Celery's own log records carry the whole task beside the sentence that names it.
_CELERYS = frozenset({"data"})
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """Formats for people; masks secrets anywhere in the result, tracebacks included."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        """One line; an exception follows on lines of its own."""
        mask = self._redactor.mask
        # Masked before and after: quoting changes how a secret is spelt, and joining may put one together.
        fields = "".join(f" {name}={_quoted(mask(_plain(v)))}" for name, v in fields_of(record).items())
        line = f"{_time(record)} {record.levelname:<7} {_message(record)}{fields}"
        trace = _trace(self, record)
        return mask(f"{line}\n{trace}" if trace else line)


class JsonFormatter(logging.Formatter):
    """Formats for machines: one JSON object a line; masks secrets anywhere in it."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object."""
        data: dict[str, Any] = fields_of(record) | {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        if trace := _trace(self, record):
            data["exception"] = trace
        mask = self._redactor.mask
        # Masked before and after: the encoding changes how a secret is spelt, above all one inside a repr.
        data = {name: mask(value) if isinstance(value, str) else value for name, value in data.items()}
        return mask(json.dumps(data, default=lambda value: mask(str(value))))


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """The fields that a record was given, the documented ones first, without those that are None."""
    given = {
        name: value
        for name, value in vars(record).items()
        if name not in _STANDARD and name not in _CELERYS and not name.startswith("_") and value is not None
    }
    return {name: given.pop(name) for name in FIELDS if name in given} | given


def configure_logging(
    level: str = "info",
    *,
    json_lines: bool = False,
    secrets: Iterable[str] = (),
    stream: TextIO | None = None,
) -> Redactor:
    """Send all logs of this process to ``stream``; a second call replaces the first.

    Args:
        level: ``debug``, ``info``, ``warning``, ``error`` or ``critical``.
        json_lines: JSON instead of text.
        secrets: What to mask, such as `Settings.secrets`.
        stream: Default: stderr.

    Returns:
        The redactor, to which more secrets may be added while the process runs.
    """
    redactor = Redactor(secrets)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.set_name(_HANDLER)
    handler.setFormatter(JsonFormatter(redactor) if json_lines else TextFormatter(redactor))
    root = logging.getLogger()
    for old in [found for found in root.handlers if found.get_name() == _HANDLER]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    return redactor


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _message(record: logging.LogRecord) -> str:
    """The message; one whose arguments do not fit is shown without them.

    Otherwise logging itself would print the record to stderr, arguments and all, past the redactor.
    """
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):
        return str(record.msg)


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """The traceback and stack of a record, if any; not cached on the record, where it would be unmasked."""
    parts = []
    if record.exc_info and record.exc_info[0] is not None:
        parts.append(formatter.formatException(record.exc_info))
    elif record.exc_text:
        parts.append(record.exc_text)
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)


def _plain(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _quoted(text: str) -> str:
    """On one line, and quoted when it holds a space, a quote or anything that cannot be printed."""
    needs_quotes = not text or not text.isprintable() or any(mark in text for mark in ' "=')
    return json.dumps(text) if needs_quotes else text
