"""Traces: when jobs arrive, and how long each computes. One JSON object a line.

    {"at_s": 0.0, "duration_s": 754.2}
    {"at_s": 31.5, "duration_s": 60, "priority": 0}

``at_s`` counts from any moment, the same for all lines; ``priority`` is 0 (first) to 9, by default 5.

Limits: a trace is held in memory; lines may come in any order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kelpie_celery._suggest import did_you_mean
from kelpie_celery.errors import TraceError

MAX_JOBS = 2_000_000
MAX_S = 10 * 365 * 86_400.0
_FIELDS = ("at_s", "duration_s", "priority")
_LINE = 'a line is {"at_s": seconds, "duration_s": seconds} and, if you like, "priority": 0 to 9'
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Arrival:
    """One job of a trace.

    Attributes:
        at_s: When it is submitted.
        duration_s: How long it computes, without interruptions.
        priority: 0 goes first, 9 last.
    """

    at_s: float
    duration_s: float
    priority: int = 5


def read_trace(path: Path) -> list[Arrival]:
    """Read a file, in the order of arrival.

    Raises:
        TraceError: Names the file and the lines that are wrong.
    """
    try:
        with path.open(encoding="utf-8-sig") as lines:
            return parse_trace(lines, str(path))
    except OSError as error:
        fault = f"cannot read the trace {path}: {error.strerror or type(error).__name__}; name a file of JSON lines"
    except UnicodeDecodeError:
        fault = f"cannot read the trace {path}: it is not text in UTF-8; {_LINE}"
    raise TraceError(fault)


def parse_trace(lines: Iterable[str], source: str) -> list[Arrival]:
    """The same from lines of text.

    Raises:
        TraceError: Names the lines that are wrong.
    """
    found: list[Arrival] = []
    faults: list[str] = []
    for number, line in enumerate(lines, 1):
        if line.isspace() or not line:
            continue
        one = _arrival(line)
        if isinstance(one, str):
            faults.append(f"line {number}: {one}")
        else:
            found.append(one)
        if len(faults) > _SHOWN or len(found) > MAX_JOBS:
            break
    if faults:
        more = "; and more" if len(faults) > _SHOWN else ""
        raise TraceError(f"the trace {source} is refused: {'; '.join(faults[:_SHOWN])}{more}; {_LINE}")
    if not found:
        raise TraceError(f"the trace {source} holds no job; {_LINE}")
    if len(found) > MAX_JOBS:
        raise TraceError(f"the trace {source} holds more than {MAX_JOBS} jobs; cut it")
    return sorted(found, key=lambda one: one.at_s)


def _arrival(line: str) -> Arrival | str:
    """A job, or what is wrong with its line."""
    try:
        raw = json.loads(line)
    except ValueError as error:
        return f"is not JSON: {error.msg}" if isinstance(error, json.JSONDecodeError) else "is not JSON"
    except RecursionError:
        return "is nested too deeply"
    if not isinstance(raw, Mapping):
        return "is not an object"
    for name in raw:
        if name not in _FIELDS:
            return f"{name[:60]!a} is not a field of a trace{did_you_mean(name, _FIELDS)}"
    return _checked(raw)


def _checked(raw: Mapping[str, Any]) -> Arrival | str:
    for name, least in (("at_s", -MAX_S), ("duration_s", 0.0)):
        value = raw.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{name}: must be a number of seconds" if name in raw else f"{name}: is required"
        if not (math.isfinite(value) if isinstance(value, float) else abs(value) < MAX_S):
            return f"{name}: must be a number of seconds"
        if not least <= value <= MAX_S:
            return f"{name}: must be {least:.0f} to {MAX_S:.0f} seconds (got {value:g})"
    priority = raw.get("priority", 5)
    if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority <= 9:  # noqa: PLR2004 -- as in definitions
        return "priority: must be a whole number from 0 to 9"
    return Arrival(float(raw["at_s"]), float(raw["duration_s"]), priority)
