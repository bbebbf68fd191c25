"""``kelpie wait``, and the waiting of ``kelpie submit --wait``."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click
from rich.console import Group
from rich.live import Live
from rich.text import Text

from kelpie_celery.bulk import Glance
from kelpie_celery.cli._documents import job_document, print_document
from kelpie_celery.cli._errors import NOT_COMPLETED, OK, TIMED_OUT, say_error
from kelpie_celery.cli._options import data_options, duration, open_kelpie
from kelpie_celery.cli._view import STYLES, console, ending_words, glance_words
from kelpie_celery.client import Kelpie
from kelpie_celery.errors import WaitTimeout
from kelpie_celery.ledger.records import JobRecord
from kelpie_celery.lifecycle import Status
from kelpie_celery.waiting import OnLook

_POLL_S = 1.0
_SHOWN = 20


@click.command(short_help="Wait until jobs have ended.")
@click.argument("job_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--timeout", type=duration, help="Wait at most so long (seconds, or 10m, 2h, 1d).")
@data_options
def wait(job_ids: tuple[str, ...], timeout: float | None, redis_url: str | None, as_json: bool) -> int:
    """Wait until every job ID has ended, and say how.

    Exit code: 0 when all completed, 1 when some failed or were canceled, 124 when the time is over. Interrupting the
    waiting leaves the jobs alone.
    """
    with open_kelpie(redis_url) as kelpie:
        return wait_and_tell(kelpie, list(dict.fromkeys(job_ids)), timeout, as_json=as_json)


def wait_and_tell(kelpie: Kelpie, job_ids: Sequence[str], timeout_s: float | None, *, as_json: bool) -> int:
    """Wait with a display on stderr, then tell on stdout how the jobs ended.

    Args:
        kelpie: The client.
        job_ids: For which to wait, each once.
        timeout_s: At most so long, in seconds.
        as_json: Whether to print records.

    Returns:
        The exit code.
    """
    late = None
    try:
        with display(len(job_ids)) as show:
            kelpie.wait(job_ids, timeout_s, poll_s=_POLL_S, on_look=show)
    except WaitTimeout as error:
        late = error
    records = [kelpie.get(job_id) for job_id in job_ids] if len(job_ids) <= _SHOWN else kelpie.get_many(job_ids)
    _tell(records, as_json=as_json)
    if late:
        sys.stdout.flush()
        say_error(str(late))
        return TIMED_OUT
    return OK if all(record.status is Status.COMPLETED for record in records) else NOT_COMPLETED


def _tell(records: Sequence[JobRecord], *, as_json: bool) -> None:
    if as_json:
        print_document([job_document(record, attempts=False) for record in records])
        return
    out = console()
    for record in records:
        out.print(ending_words(record), soft_wrap=True)


@contextmanager
def display(count: int) -> Iterator[OnLook]:
    """A live picture on a terminal; elsewhere a line whenever something changes."""
    err = console(sys.stderr)
    if not err.is_terminal:
        yield _Changes().show
        return
    with Live(Text(f"waiting for {count} jobs"), console=err, transient=True, refresh_per_second=4) as live:
        yield lambda glances: live.update(picture(glances))


def picture(glances: Sequence[Glance]) -> Group:
    """Counts by status, and a line for each job that goes on; running ones first."""
    going = [glance for glance in glances if not glance.status.ended]
    going.sort(key=lambda glance: glance.status is not Status.RUNNING)
    lines = [glance_words(glance) for glance in going[:_SHOWN]]
    if len(going) > _SHOWN:
        lines.append(Text(f"and {len(going) - _SHOWN} more", style="dim"))
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return Group(_counts(glances), *lines)


def _counts(glances: Sequence[Glance]) -> Text:
    counts = Counter(glance.status for glance in glances)
    parts = [
        Text(f"{counts[status]} {status.value}", style=style) for status, style in STYLES.items() if counts[status]
    ]
    return Text(", ").join(parts)


class _Changes:
    """A line for each change that matters; progress alone does not."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[object, ...]] = {}

    def show(self, glances: Sequence[Glance]) -> None:
        """Tell what changed since the last look."""
        for glance in glances:
            now = (glance.status, glance.phase, glance.attempt, glance.cancel_requested)
            if self._seen.get(glance.id) != now:
                self._seen[glance.id] = now
                print(glance_words(glance).plain, file=sys.stderr, flush=True)  # noqa: T201 -- the command's own voice
