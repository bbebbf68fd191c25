"""A measured figure, what it is held against, and how all of them are shown and kept.

Limits: a figure is a number; what it means is in its name and in ``docs/benchmarks.md``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table


@dataclass(frozen=True)
class Target:
    """What a figure is to be: at least or at most ``bound``, in the figure's unit."""

    bound: float
    at_least: bool = False

    def met_by(self, value: float) -> bool:
        """Whether a value keeps it."""
        return value >= self.bound if self.at_least else value < self.bound

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<'} {self.bound:,g}"


@dataclass(frozen=True)
class Figure:
    """One line of the table, and of ``bench.json``.

    Attributes:
        name: ``part.what``.
        value: In ``unit``.
        target: What it is to be; None for a figure that is only shown beside others.
        against: What it was measured beside, or under which conditions.
    """

    name: str
    value: float
    unit: str
    target: Target | None = None
    against: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        return self.target.met_by(self.value) if self.target else None

    def as_json(self) -> dict[str, object]:
        """The form in ``bench.json``."""
        target = str(self.target) if self.target else None
        return {**asdict(self), "value": float(f"{self.value:.6g}"), "target": target, "met": self.met}


def write(figures: Sequence[Figure], path: Path) -> None:
    """Write ``bench.json``."""
    path.write_text(json.dumps([figure.as_json() for figure in figures], indent=2) + "\n")


def table(figures: Sequence[Figure]) -> Table:
    """All figures for people."""
    drawn = Table()
    for heading in ("figure", "value", "unit", "target", "met", "against"):
        drawn.add_column(heading, justify="right" if heading == "value" else "left", overflow="fold")
    for figure in figures:
        met = {True: "[green]yes[/]", False: "[bold red]NO[/]", None: ""}[figure.met]
        drawn.add_row(figure.name, rounded(figure.value), figure.unit, str(figure.target or ""), met, figure.against)
    return drawn


def rounded(value: float) -> str:
    """A number with three significant digits, none of them lost before the point."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 6)}f}"


def missed(figures: Sequence[Figure]) -> list[Figure]:
    """Those that do not keep their target."""
    return [figure for figure in figures if figure.met is False]
