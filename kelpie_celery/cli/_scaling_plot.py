"""A picture of a container group's work and replicas over time, from the scaler's decisions.

Limits: matplotlib is an extra (``pip install 'kelpie-celery[plot]'``); between two decisions nothing is known, so
values are drawn as steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kelpie_celery.errors import KelpieError

SERIES = (
    ("jobs pending", "queue", "pending", "tab:orange", "-"),
    ("jobs running", "queue", "running", "tab:blue", "-"),
    ("replicas wanted", "", "replicas", "tab:gray", "--"),
    ("instances up", "fleet", "running", "tab:green", "-"),
)


def draw(group: str, entries: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Write the picture.

    Args:
        group: The container group, for the title.
        entries: The decisions, the newest first.
        output: Where; the ending says the format.

    Raises:
        KelpieError: matplotlib is not installed, does not know the format, or the file cannot be written.
    """
    try:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num  # noqa: PLC0415 - an extra
        from matplotlib.figure import Figure  # noqa: PLC0415
        from matplotlib.ticker import MaxNLocator  # noqa: PLC0415
    except ImportError as e:
        raise KelpieError("plotting needs matplotlib: pip install 'kelpie-celery[plot]'") from e
    decisions = [entry for entry in reversed(entries) if "fleet" in entry]
    moments = [_moment(at) for entry in decisions for at in (entry["at"], entry["until_at"])]
    times = date2num(moments)  # type: ignore[no-untyped-call]  # matplotlib types its dates in part
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots()
    for label, part, name, colour, line in SERIES:
        axes.step(times, list(_values(decisions, part, name)), line, where="post", label=label, color=colour)
    for entry in entries:
        if entry.get("kind") in ("move", "error", "suspended"):
            at = float(date2num(_moment(entry["at"])))  # type: ignore[no-untyped-call]
            axes.axvline(at, color="tab:red", linewidth=0.6, alpha=0.5)
    locator = AutoDateLocator(tz=UTC)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))  # type: ignore[no-untyped-call]
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title=f"container group {group}", xlabel="UTC", ylim=(0, None))
    axes.grid(alpha=0.3)
    # Beside the picture: above it, it would hide the very peaks that one looks for.
    figure.legend(loc="outside lower center", ncols=len(SERIES))
    try:
        figure.savefig(output, dpi=110)
    except (OSError, ValueError) as e:
        raise KelpieError(f"{output} cannot be written: {e}; give a path that ends in .png, .svg or .pdf") from e


def _values(decisions: Sequence[Mapping[str, Any]], part: str, name: str) -> Iterator[float]:
    for entry in decisions:
        facts = entry.get(part) or {} if part else entry
        value = float(facts.get(name) or 0)
        yield from (value, value)


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
