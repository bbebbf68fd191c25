"""The demo's live table; where the output is no terminal, a line every few seconds.

Limits: draws what it is given, asks nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from kelpie_celery.clock import Clock
from kelpie_celery.demo.chaos import Struck
from kelpie_celery.ledger.records import JobRecord
from kelpie_celery.lifecycle import Status

LINE_EVERY_S = 4.0
_BAR_WIDTH = 16
_STYLES = {Status.COMPLETED: "green", Status.RUNNING: "cyan", Status.FAILED: "red", Status.CANCELED: "red"}


class Display:
    """Shows how the jobs stand."""

    def __init__(self, console: Console, clock: Clock) -> None:
        self._console, self._clock = console, clock
        self._live: Live | None = None
        self._began = self._last_line = clock.boottime()

    @contextmanager
    def live(self) -> Iterator[None]:
        """While it lasts, a terminal shows the table and keeps it up to date."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, refresh_per_second=4) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the demo began."""
        return self._clock.boottime() - self._began

    def say(self, text: str) -> None:
        """A line of its own, above the table."""
        self._console.print(f"[dim]{self.elapsed_s:5.1f} s[/dim]  {text}", highlight=False)

    def show(self, records: Mapping[str, JobRecord], struck: Sequence[Struck]) -> None:
        """Show this moment."""
        if self._live is not None:
            self._live.update(table(records, struck))
        elif self._clock.boottime() - self._last_line >= LINE_EVERY_S:
            self._last_line = self._clock.boottime()
            self.say(line(records))


def table(records: Mapping[str, JobRecord], struck: Sequence[Struck]) -> Table:
    """One row a job."""
    made = ", ".join(f"{s.strike.signum.name} {s.machine}" for s in struck[-3:]) or "none yet"
    drawn = Table(caption=f"machines killed: {len(struck)} (last: {made})", caption_justify="left", expand=False)
    for heading in ("job", "status", "try", "machine", "progress", "commits", "interrupted", "done"):
        number = heading in ("try", "commits", "interrupted")
        drawn.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for name, record in records.items():
        style = _STYLES.get(record.status, "")
        bar = ProgressBar(total=1.0, completed=share(record), width=_BAR_WIDTH)
        status = f"[{style}]{standing(record)}[/]" if style else standing(record)
        numbers = (str(record.num_commits), str(record.num_interruptions))
        drawn.add_row(name, status, str(record.attempt or ""), record.machine_id or "", bar, *numbers, steps(record))
    return drawn


def line(records: Mapping[str, JobRecord]) -> str:
    """All jobs in one line."""
    parts = [f"{name} {_short(record)}" for name, record in records.items()]
    return " | ".join(parts) + f" | interruptions {sum(r.num_interruptions for r in records.values())}"


def _short(record: JobRecord) -> str:
    if record.status is Status.RUNNING:
        return f"{share(record):.0%} #{record.attempt}"
    return str(record.status)


def standing(record: JobRecord) -> str:
    """The status, and the phase of a running attempt."""
    if record.status is Status.DRAFT:
        return "draft"
    return f"{record.status}, {record.phase}" if record.phase else str(record.status)


def share(record: JobRecord) -> float:
    """How far a job is, 0 to 1."""
    if record.status is Status.COMPLETED:
        return 1.0
    return (record.progress.progress or 0.0) if record.progress else 0.0


def steps(record: JobRecord) -> str:
    """How far a job says that it is."""
    return (record.progress.message or "") if record.progress else ""
