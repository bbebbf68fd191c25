"""Findings for a person: a table on a terminal, plain lines elsewhere.

Limits: texts come from other people's programs and servers, so they are made harmless here.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kelpie_celery.cli._text import one_line
from kelpie_celery.cli._view import words
from kelpie_celery.findings import Finding, Level

_STYLES = {
    Level.OK: "green",
    Level.INFO: "cyan",
    Level.WARNING: "yellow",
    Level.PROBLEM: "bold red",
    Level.ERROR: "bold red",
}
_LEVEL_CHARS = max(len(level.value) for level in Level)


def show_findings(out: Console, findings: Sequence[Finding]) -> None:
    """Print them, in their order."""
    if out.is_terminal:
        out.print(_table(findings))
        return
    for one in findings:
        out.print(Text(f"{one.level.value:<{_LEVEL_CHARS}}  {one.check}: {one_line(one.text)}"), soft_wrap=True)
        if one.mend:
            out.print(Text(f"{'':<{_LEVEL_CHARS}}  -> {one_line(one.mend)}"), soft_wrap=True)


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("what", no_wrap=True)
    table.add_column("found", overflow="fold")
    for one in findings:
        found = words(one.text)
        if one.mend:
            found.append("\n-> " + one_line(one.mend), style="bold")
        table.add_row(Text(one.level.value, style=_STYLES[one.level]), one.check, found)
    return table
