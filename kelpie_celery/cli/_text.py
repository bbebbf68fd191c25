"""Text for a terminal: one line, durations, sizes, times.

Limits: knows nothing of jobs.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_UNITS = ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min"), (1, "s"))
_SIZES = ("KiB", "MiB", "GiB", "TiB")
_NOT_KNOWN = "?"


def plain(text: object) -> str:
    """Text without anything that could drive a terminal: names and messages come from other people's machines."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def one_line(text: object) -> str:
    """The same with runs of white space made one space."""
    return " ".join(plain(text).split())


def duration(seconds: float) -> str:
    """``0.4 s``, ``42 s``, ``3 min 5 s``, ``2 h 10 min``, ``3 d 4 h``: the two largest units; ``?`` for no number."""
    if not math.isfinite(seconds):
        return _NOT_KNOWN
    if seconds < 0:
        return "0 s"
    if seconds < 9.95:  # noqa: PLR2004 -- below ten seconds a tenth matters
        return f"{seconds:.1f} s"
    whole = round(seconds)
    parts: list[tuple[int, str]] = []
    for size, unit in _UNITS:
        count, whole = divmod(whole, size)
        if count or parts:
            parts.append((count, unit))
    return " ".join(f"{count} {unit}" for count, unit in parts[:2] if count)


def size(count_bytes: float) -> str:
    """``512 B``, ``3.4 MiB``, ``1.2 GiB``; ``?`` for no number."""
    if not math.isfinite(count_bytes):
        return _NOT_KNOWN
    number, unit = count_bytes, "B"
    for larger in _SIZES:
        if number < 1023.95:  # noqa: PLR2004 -- what would be shown as 1024.0
            break
        number, unit = number / 1024, larger
    return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"


def counted(count: int, word: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def local_time(seconds: float) -> str:
    """A moment in the time zone of this machine, to the second; ``?`` for none that a calendar has."""
    return _formatted(seconds, "%Y-%m-%d %H:%M:%S %Z")


def clock_time(seconds: float) -> str:
    """The time of day alone, in the time zone of this machine; ``?`` as above."""
    return _formatted(seconds, "%H:%M:%S")


def _formatted(seconds: float, form: str) -> str:
    moment = _moment(seconds)
    try:
        return _NOT_KNOWN if moment is None else moment.astimezone().strftime(form)
    except (OverflowError, OSError, ValueError):  # at the ends of the calendar
        return _NOT_KNOWN


def _moment(seconds: float) -> datetime | None:
    """None where a group's workers wrote a number that is no time."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):
        return None


def iso_time(seconds: float | None) -> str | None:
    """A moment in UTC, ISO 8601, to the millisecond; None stays None, and stands for what is no moment."""
    moment = None if seconds is None else _moment(seconds)
    return None if moment is None else moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
