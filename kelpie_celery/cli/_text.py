"""Text for a terminal: one line, durations, times.

Limits: knows nothing of jobs.
"""

from __future__ import annotations

from datetime import UTC, datetime

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_UNITS = ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min"), (1, "s"))


def plain(text: object) -> str:
    """Text without anything that could drive a terminal: names and messages come from other people's machines."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def one_line(text: object) -> str:
    """The same with runs of white space made one space."""
    return " ".join(plain(text).split())


def duration(seconds: float) -> str:
    """``0.4 s``, ``42 s``, ``3 min 5 s``, ``2 h 10 min``, ``3 d 4 h``: the two largest units."""
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


def local_time(seconds: float) -> str:
    """A moment in the time zone of this machine, to the second."""
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def clock_time(seconds: float) -> str:
    """The time of day alone, in the time zone of this machine."""
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%H:%M:%S")


def iso_time(seconds: float | None) -> str | None:
    """A moment in UTC, ISO 8601, to the millisecond; None stays None."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
