"""How jobs look on a terminal.

Limits: environment values and webhook paths are masked, always; text of workers cannot drive the terminal.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TextIO

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from kelpie_celery.announcing import progress_text
from kelpie_celery.bulk import Glance
from kelpie_celery.cli._documents import masked_definition
from kelpie_celery.cli._text import clock_time, duration, local_time, one_line, plain, size
from kelpie_celery.ledger.records import JobRecord, Transfer
from kelpie_celery.lifecycle import Outcome, Status

STYLES = {
    Status.PENDING: "yellow",
    Status.RUNNING: "cyan",
    Status.COMPLETED: "green",
    Status.FAILED: "red",
    Status.CANCELED: "magenta",
}

# Without a terminal nobody sees the edge: rows must not be cut for one.
_NO_TERMINAL_WIDTH = 240
_MAX_MESSAGE_CHARS = 60


def console(stream: TextIO | None = None) -> Console:
    """A console on stdout, or on another stream, that adds no colours of its own."""
    out = stream or sys.stdout
    made = Console(file=out, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = _NO_TERMINAL_WIDTH
    return made


def words(text: object, style: str = "") -> Text:
    """Somebody else's text, harmless and on one line."""
    return Text(one_line(text), style=style)


def state(status: Status, phase: str | None, *, canceling: bool) -> Text:
    """Status and what there is to say of it, in the colour of the status."""
    more = "canceling" if canceling and not status.ended else phase
    return Text(f"{status.value} ({more})" if more else status.value, style=STYLES.get(status, ""))


def progress_words(progress: float | None, message: str | None) -> Text:
    """``42 %: epoch 3``; a number outside of 0 to 1 is shown as it is."""
    return words(progress_text(progress, message))


def job_table(records: Sequence[JobRecord], now: float, *, with_group: bool) -> Table:
    """Many jobs, one a row; ids are never cut."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("id", no_wrap=True, min_width=36)
    if with_group:
        table.add_column("group", overflow="fold")
    for name in ("name", "status", "progress"):
        table.add_column(name, overflow="fold")
    table.add_column("tries", justify="right")
    table.add_column("failed", justify="right")
    table.add_column("interrupted", justify="right")
    table.add_column("machine", overflow="fold")
    table.add_column("created", no_wrap=True)
    table.add_column("took", no_wrap=True)
    for record in records:
        table.add_row(*_row(record, now, with_group))
    return table


def _row(record: JobRecord, now: float, with_group: bool) -> list[RenderableType]:
    group = [words(record.container_group_id)] if with_group else []
    return [
        plain(record.id),
        *group,
        words(record.name),
        state(record.status, record.phase, canceling=record.cancel_requested),
        _progress_of(record),
        str(record.attempt),
        str(record.num_failures),
        str(record.num_interruptions),
        words(record.machine_id or ""),
        f"{duration(now - record.created)} ago",
        took(record, now),
    ]


def _progress_of(record: JobRecord) -> Text:
    if record.status is Status.RUNNING and record.progress:
        return progress_words(record.progress.progress, record.progress.message)
    if record.status in (Status.FAILED, Status.PENDING) and record.reason:
        return words(record.reason)
    return Text("")


def took(record: JobRecord, now: float) -> str:
    """From the first start to the end, or to now."""
    return duration((record.ended or now) - record.started) if record.started else ""


def job_details(record: JobRecord, now: float) -> Table:
    """Everything about one job but its history."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _details(record, now):
        table.add_row(name, value)
    return table


def _details(record: JobRecord, now: float) -> list[tuple[str, RenderableType]]:
    rows: list[tuple[str, RenderableType]] = [
        ("job", plain(record.id)),
        ("name", words(record.name)),
        ("group", words(f"{record.container_group_id}, priority {record.priority}")),
        ("status", _status_line(record)),
        *_command(record),
    ]
    if record.progress:
        rows.append(("progress", progress_words(record.progress.progress, record.progress.message)))
    if record.transfer:
        rows.append(("transfer", _transfer_words(record.transfer)))
    rows += _times(record, now)
    free = f", {record.num_free} more that a retry rule does not count" if record.num_free else ""
    rows.append(("failures", f"{record.num_failures} of at most {record.max_failures}{free}"))
    rows.append(("interruptions", str(record.num_interruptions)))
    last = f", the last one {duration(now - record.committed)} ago" if record.committed else ""
    rows.append(("checkpoints", f"{record.num_commits}{last}"))
    if record.reason or record.message:
        label = "reason" if record.status.ended else "last failure"
        rows.append((label, words(": ".join(filter(None, (record.reason, record.message))))))
    rows += _last_interruption(record)
    if record.result is not None and record.status is Status.COMPLETED:
        rows.append(("result", words(record.result)))
    return rows


def _last_interruption(record: JobRecord) -> list[tuple[str, RenderableType]]:
    """Why the last attempt that was interrupted was, while the job goes on."""
    last = next((a for a in reversed(record.attempts) if a.outcome == Outcome.INTERRUPTION), None)
    if last is None or record.status.ended:
        return []
    return [("last interruption", words(": ".join(filter(None, (last.reason, last.message)))))]


def _transfer_words(transfer: Transfer) -> Text:
    """``restore: 1.2 GiB of 3.4 GiB, 56.0 MiB/s, 40 s left``; what is not known is left out."""
    done = size(transfer.done_bytes)
    parts = [f"{done} of {size(transfer.total_bytes)}" if transfer.total_bytes else done]
    if transfer.rate_bytes_s:
        parts.append(f"{size(transfer.rate_bytes_s)}/s")
    if transfer.left_s is not None:
        parts.append(f"{duration(transfer.left_s)} left")
    return words(f"{transfer.stage}: {', '.join(parts)}")


def _status_line(record: JobRecord) -> Text:
    text = state(record.status, record.phase, canceling=record.cancel_requested)
    if record.attempt:
        text.append(f", attempt {record.attempt}", style="default")
    if record.machine_id and record.status is Status.RUNNING:
        text.append(f" on {one_line(record.machine_id)}", style="default")
    return text


def _command(record: JobRecord) -> list[tuple[str, RenderableType]]:
    definition = masked_definition(record.definition)
    command = [str(definition.get("command", "")), *map(str, definition.get("arguments", ()))]
    rows: list[tuple[str, RenderableType]] = [("command", words(shlex.join(command)))]
    pairs = [(name, definition[name]) for name in ("environment", "tags") if definition.get(name)]
    return rows + [(name, words(" ".join(f"{k}={v}" for k, v in values.items()))) for name, values in pairs]


def _times(record: JobRecord, now: float) -> list[tuple[str, RenderableType]]:
    rows: list[tuple[str, RenderableType]] = []
    for name, moment in (("created", record.created), ("started", record.started), ("ended", record.ended)):
        if moment:
            rows.append((name, f"{local_time(moment)} ({duration(now - moment)} ago)"))
    if record.started:
        rows.append(("took", took(record, now)))
    if record.heartbeat and record.status is Status.RUNNING:
        rows.append(("heartbeat", f"{duration(now - record.heartbeat)} ago"))
    if record.not_before:
        rows.append(("next try", f"in {duration(record.not_before - now)} ({clock_time(record.not_before)})"))
    return rows


def glance_words(glance: Glance) -> Text:
    """One line about a job that is waited for."""
    text = Text(f"{plain(glance.id)} ").append_text(
        state(glance.status, glance.phase, canceling=glance.cancel_requested)
    )
    if glance.status is Status.RUNNING:
        text.append(f", attempt {glance.attempt} on {one_line(glance.machine_id or '?')}")
    said = progress_words(glance.progress, glance.message)
    said.truncate(_MAX_MESSAGE_CHARS, overflow="ellipsis")
    return text.append(", ").append_text(said) if said and glance.status is Status.RUNNING else text


def ending_words(record: JobRecord) -> Text:
    """One line about a job that was waited for."""
    text = Text(f"{plain(record.id)} ").append_text(
        state(record.status, record.phase, canceling=record.cancel_requested)
    )
    if record.status is Status.FAILED:
        text.append(": " + one_line(": ".join(filter(None, (record.reason, record.message)))))
    if record.started and record.ended:
        text.append(f", {duration(record.ended - record.started)}")
    counts = ((record.num_interruptions, "interruption"), (record.num_failures, "failed try"))
    told = [f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts if count]
    return text.append(f" ({', '.join(told)})".replace("failed trys", "failed tries")) if told else text
