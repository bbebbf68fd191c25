"""How ``kelpie watch`` looks: groups, then jobs, as wide as there is room.

Limits: a picture has at most as many rows as `kelpie_celery.why.overview` reads. Ids are never cut: where there is
little room, columns are left out.
"""

from __future__ import annotations

from collections.abc import Callable

from rich import box
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kelpie_celery.cli._decision_view import action_words_of
from kelpie_celery.cli._text import clock_time, counted, duration, plain, size
from kelpie_celery.cli._view import STYLES, progress_words, took, words
from kelpie_celery.ledger.records import JobRecord
from kelpie_celery.lifecycle import Phase, Status
from kelpie_celery.why.facts import DecisionSeen, GroupSeen
from kelpie_celery.why.overview import Overview, Sight
from kelpie_celery.why.words import after

WIDE, MIDDLE = 160, 110
"""Columns of a terminal from which on there is room for everything, and for most."""

_FLEXIBLE = frozenset({"name", "said", "transfer"})

PACE_LEAST_S = 10.0
"""A job has to be watched for so long before its pace says anything."""

_BAR_WIDTH = 12
_SHORT_MACHINE = 8
_UUID_LENGTH = 36


class Paces:
    """How fast jobs go on, by what they said since they are watched."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, int], tuple[float, float]] = {}
        self._last: dict[tuple[str, int], tuple[float, float]] = {}

    def note(self, seen: Overview) -> None:
        """Remember what running jobs say; those that are not seen any more are forgotten."""
        said = {
            (r.id, r.attempt): (seen.now, r.progress.progress)
            for r in seen.running
            if r.progress is not None and r.progress.progress is not None
        }
        self._first = {key: self._first.get(key, now) for key, now in said.items()}
        # An outage shows the same picture again, and a job that says nothing new is where it was.
        self._last = {
            key: now if key not in self._last or self._last[key][1] != now[1] else self._last[key]
            for key, now in said.items()
        }

    def left_s(self, record: JobRecord, now: float) -> float | None:
        """Until it is done if it goes on as it did while it was watched; None before that can be told."""
        key = (record.id, record.attempt)
        if key not in self._last:
            return None
        (began, at_first), (said, at_last) = self._first[key], self._last[key]
        gained, took_s = at_last - at_first, said - began
        if gained <= 0 or took_s < PACE_LEAST_S or not 0 <= at_last <= 1:
            return None
        return max(0.0, (1 - at_last) / gained * took_s - (now - said))


def picture(sight: Sight, width: int, *, bars: bool, paces: Paces | None = None) -> Group:
    """Everything about one look.

    Args:
        sight: What was seen.
        width: Columns that there are.
        bars: Draw progress; else it is written.
        paces: What was seen at the looks before.
    """
    seen, paces = sight.overview, paces or Paces()
    paces.note(seen)
    parts: list[RenderableType] = [_head(sight), _groups(seen, width)]
    jobs = [*seen.running, *seen.pending, *seen.ended]
    parts.append(_jobs(jobs, seen.now, width, paces, bars=bars) if jobs else Text("no jobs"))
    hidden = sum(one.counts.running for one in seen.groups) - len(seen.running)
    if hidden > 0:
        parts.append(
            Text(f"and {counted(hidden, 'running job')} more; 'kelpie list --status running' shows them", "dim")
        )
    return Group(*parts)


def _head(sight: Sight) -> Text:
    if sight.away:
        return words(
            f"Redis at {sight.redis} is away; what follows is {duration(sight.age_s)} old. The jobs run on.", "bold red"
        )
    return Text(f"as of {clock_time(sight.overview.now)}", "dim")


# -- groups --------------------------------------------------------------------------------------------------------


def _groups(seen: Overview, width: int) -> RenderableType:
    if not seen.groups:
        return Text("no container group had a job yet")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("group", overflow="fold")
    for name in ("pending", "running", "done", "failed", "workers", "nodes"):
        table.add_column(name, justify="right", no_wrap=True)
    if width >= MIDDLE:
        table.add_column("scaler", overflow="fold")
    for one in seen.groups:
        table.add_row(*_group_row(one, seen.now)[: 7 + (width >= MIDDLE)])
    if not seen.more_groups:
        return table
    return Group(table, Text(f"and {counted(seen.more_groups, 'group')} more; --group shows one", "dim"))


def _group_row(one: GroupSeen, now: float) -> list[RenderableType]:
    if one.spoilt:
        return [words(one.group), *["?"] * 6, Text("its keys hold what they should not", "red")]
    counts, workers = one.counts, one.workers
    delayed = f" ({counts.delayed} later)" if counts.delayed else ""
    busy = f" ({workers.busy} busy)" if workers.busy else ""
    return [
        words(one.group), f"{counts.pending}{delayed}", str(counts.running), str(counts.completed),
        str(counts.failed), f"{workers.heard}{busy}", nodes_words(one.decision), scaler_words(one, now),
    ]  # fmt: skip


def nodes_words(decision: DecisionSeen | None) -> str:
    """``2 of 3``: running, of those asked for; ``?`` where the scaler could not see them, nothing without a scaler."""
    if decision is None:
        return ""
    return (
        "?" if decision.running is None or decision.replicas is None else f"{decision.running} of {decision.replicas}"
    )


def scaler_words(one: GroupSeen, now: float) -> Text:
    """What the scaler decided, how long ago, and why, in a line."""
    if one.rule is None:
        return Text("no rule" if one.rule_known else "not known", "dim")
    if one.rule.paused and (one.decision is None or one.decision.kind != "suspended"):
        return Text("the rule is paused", "yellow")
    if one.decision is None:
        return Text("no scaler has looked yet", "yellow")
    decision = one.decision
    why = f": {decision.reasons[0]}" if decision.reasons else ""
    style = "" if decision.kind == "decision" else "red"
    number = decision.drain if decision.action == "drain" else decision.wanted
    what = action_words_of(decision.kind, decision.action, number)
    return words(f"{duration(max(0.0, now - decision.at))} ago, {what}{why}", style)


# -- jobs ----------------------------------------------------------------------------------------------------------


def _jobs(jobs: list[JobRecord], now: float, width: int, paces: Paces, *, bars: bool) -> Table:
    columns = [(name, cell) for name, least, cell in _columns(now, paces, bars=bars) if width >= least]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, _ in columns:
        # Where there is too little room after all, rich takes it from those that may wrap.
        table.add_column(name, no_wrap=name not in _FLEXIBLE, justify="right" if name == "try" else "left")
    for record in jobs:
        table.add_row(*(cell(record) for _, cell in columns))
    return table


def _columns(now: float, paces: Paces, *, bars: bool) -> list[tuple[str, int, Callable[[JobRecord], RenderableType]]]:
    """Name, from how wide a terminal on it is shown, and what stands in it."""
    return [
        ("job", 0, lambda record: Text(plain(record.id))),
        ("name", WIDE, lambda record: _one_row(words(record.name))),
        ("status", 50, _brief_state),
        ("progress", 65, lambda record: _progress(record, bars=bars)),
        ("said", MIDDLE, lambda record: _one_row(_said(record))),
        ("transfer", WIDE, lambda record: _one_row(_transfer(record))),
        ("left", 76, lambda record: left_words(record, now, paces.left_s(record, now))),
        ("try", MIDDLE, lambda record: str(record.attempt or "")),
        ("machine", MIDDLE, lambda record: short_machine(record.machine_id or "")),
        ("took", WIDE, lambda record: took(record, now)),
    ]


def _one_row(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _brief_state(record: JobRecord) -> Text:
    """The phase of a running job, the status of others."""
    style = STYLES.get(record.status, "")
    if record.cancel_requested and not record.status.ended:
        return Text("canceling", style)
    return Text((record.phase or record.status).value, style)


def _progress(record: JobRecord, *, bars: bool) -> RenderableType:
    share = record.progress.progress if record.progress else None
    if record.status is not Status.RUNNING or share is None:
        return Text("")
    if bars and 0 <= share <= 1:
        return ProgressBar(1.0, share, width=_BAR_WIDTH, complete_style=STYLES[Status.RUNNING])
    return progress_words(share, None)


def _said(record: JobRecord) -> Text:
    if record.status is Status.RUNNING:
        return words(record.progress.message or "") if record.progress else Text("")
    return words(": ".join(filter(None, (record.reason, record.message))))


def _transfer(record: JobRecord) -> Text:
    one = record.transfer
    if one is None:
        return Text("")
    of = f"/{size(one.total_bytes)}" if one.total_bytes else ""
    rate = f" {size(one.rate_bytes_s)}/s" if one.rate_bytes_s else ""
    return words(f"{one.stage} {size(one.done_bytes)}{of}{rate}")


def left_words(record: JobRecord, now: float, pace_s: float | None) -> str:
    """How long it takes still: of a restore or an upload as the worker tells it, else by the job's pace while watched.

    Of a job that waits for a try: until when. A commit under way says nothing of how long the job takes.
    """
    if record.status is Status.PENDING:
        return f"due {after(record.not_before - now)}" if record.not_before else ""
    if record.status is not Status.RUNNING:
        return ""
    if record.phase is not Phase.EXECUTING:
        left_s = record.transfer.left_s if record.transfer else None
        return "" if left_s is None else duration(left_s)
    return "" if pace_s is None else f"~{duration(pace_s)}"


def short_machine(name: str) -> str:
    """The first characters of a machine's id; other names as they are."""
    shown = plain(name)
    return shown[:_SHORT_MACHINE] if len(shown) == _UUID_LENGTH and shown.count("-") == 4 else shown[:24]  # noqa: PLR2004 -- a UUID
