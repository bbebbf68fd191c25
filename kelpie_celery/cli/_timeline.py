"""The history of a job's attempts as a time line.

On a terminal each attempt has a bar, all on one scale: what a checkpoint or the end kept, and what was lost. Limits:
the last 50 attempts, as the ledger keeps them; where there is little room, columns are left out, and messages get lines
of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from kelpie_celery.cli._text import duration, local_time, plain, size
from kelpie_celery.cli._view import words
from kelpie_celery.cli._watch_view import short_machine
from kelpie_celery.ledger.records import AttemptRecord, JobRecord
from kelpie_celery.why.timeline import Spent, Stretch, stretches, total

KEPT, LOST, OPEN = "█", "░", "▒"
_STYLES = {KEPT: "green", LOST: "red", OPEN: "cyan"}
WIDE, MIDDLE = 150, 90
"""Columns from which on there is room for everything, and for more than what is most needed."""

_BAR_LEAST = 70
_BAR_WIDTHS = {WIDE: 40, MIDDLE: 20, 0: 16}


def timeline(record: JobRecord, now: float, width: int, *, bars: bool) -> RenderableType:
    """The attempts, one a row, and what their time was good for.

    Args:
        record: With its attempts.
        now: By Redis's clock.
        width: Columns that there are.
        bars: Whether to draw, for a person's eyes; else there are whole names and numbers, and messages in their rows.
    """
    line = stretches(record, now)
    span_s = max((one.begin_s + one.spent.all for one in line), default=0.0)
    columns = [column for column in _columns(span_s, width, bars=bars) if width >= column[1]]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, _, _ in columns:
        table.add_column(name, no_wrap=name not in _FLEXIBLE, overflow="fold", justify=_JUSTIFY.get(name, "left"))
    for one in line:
        table.add_row(*(cell(one) for _, _, cell in columns))
    return Group(table, *(_messages(record.attempts) if bars else ()), _summary(record, total(line)))


_FLEXIBLE = frozenset({"machine", "reason", "message"})
_JUSTIFY: dict[str, JustifyMethod] = dict.fromkeys(("try", "exit", "lost", "checkpoints", "down", "up"), "right")


def _columns(span_s: float, width: int, *, bars: bool) -> list[tuple[str, int, Callable[[Stretch], RenderableType]]]:
    """Name, from how wide a terminal on it is shown, and what stands in it."""
    machine = short_machine if bars else plain
    found: list[tuple[str, int, Callable[[Stretch], RenderableType]]] = [
        ("try", 0, lambda one: str(one.attempt.n)),
        ("machine", 0, lambda one: Text(machine(one.attempt.machine))),
        ("started", WIDE, lambda one: local_time(one.attempt.started)),
        ("took", 0, lambda one: duration(one.spent.all)),
        ("outcome", 0, lambda one: words(one.attempt.outcome or "running")),
        ("reason", 0, lambda one: words(one.attempt.reason or "")),
        ("exit", MIDDLE, lambda one: _exit(one.attempt)),
        ("lost", MIDDLE, lambda one: duration(one.spent.lost) if one.spent.lost else ""),
        ("checkpoints", WIDE, lambda one: str(one.attempt.commits or "")),
        ("down", WIDE, lambda one: _moved(one.attempt, "received")),
        ("up", WIDE, lambda one: _moved(one.attempt, "sent")),
    ]
    if bars:
        cells = next(cells for least, cells in _BAR_WIDTHS.items() if width >= least)
        return [*found, (f"{KEPT} kept {LOST} lost", _BAR_LEAST, lambda one: bar(one, span_s, cells))]
    return [*found, ("message", 0, lambda one: words(one.attempt.message or ""))]


def bar(one: Stretch, span_s: float, width: int) -> Text:
    """An attempt's place on the whole job's time line, at least one cell wide."""
    if span_s <= 0:
        return Text(KEPT, _STYLES[KEPT])
    begin = min(width - 1, int(one.begin_s / span_s * width))
    cells = max(1, min(width - begin, round(one.spent.all / span_s * width)))
    kept = round(cells * one.spent.kept / one.spent.all) if one.spent.all else 0
    rest = LOST if one.spent.lost else OPEN
    text = Text(" " * begin)
    text.append(KEPT * kept, _STYLES[KEPT])
    return text.append(rest * (cells - kept), _STYLES[rest])


def _summary(record: JobRecord, spent: Spent) -> Text:
    """``in attempts: 3 h 2 min, of which 2 h 50 min kept, 12 min lost (7 %)``."""
    text = f"time in attempts {duration(spent.all)}: {duration(spent.kept)} kept"
    if spent.open:
        text += f", {duration(spent.open)} since the last checkpoint"
    if spent.unknown:
        text += f", {duration(spent.unknown)} of which that is not recorded"
    share = f" ({spent.lost / spent.all:.0%})".replace("%", " %") if spent.all else ""
    text += f", {duration(spent.lost)} lost{share}"
    if record.attempt > len(record.attempts):
        text += f"; of the last {len(record.attempts)} attempts, older ones are not kept"
    return Text(text)


def _messages(attempts: Sequence[AttemptRecord]) -> list[Text]:
    """The messages below the table, which has no room for them."""
    return [Text(f"try {one.n}: ").append_text(words(one.message)) for one in attempts if one.message]


def _moved(attempt: AttemptRecord, kind: str) -> str:
    """``1.2 GiB`` that were received or sent; empty where that is not recorded."""
    found = (attempt.model_extra or {}).get(f"{kind}_bytes")
    return size(found) if isinstance(found, int | float) and found > 0 else ""


def _exit(attempt: AttemptRecord) -> str:
    if attempt.exit_code is not None:
        return str(attempt.exit_code)
    return f"signal {attempt.signal}" if attempt.signal is not None else ""
