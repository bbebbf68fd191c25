"""``kelpie get`` and ``kelpie list``."""

from __future__ import annotations

import click

from kelpie_celery._suggest import did_you_mean
from kelpie_celery.cli._documents import job_document, print_document
from kelpie_celery.cli._errors import say
from kelpie_celery.cli._options import data_options, open_kelpie
from kelpie_celery.cli._timeline import timeline
from kelpie_celery.cli._view import console, job_details, job_table
from kelpie_celery.client import LISTED, Kelpie

DEFAULT_LIMIT = 100
MAX_LIMIT = 10_000


@click.command(short_help="Show everything about a job.")
@click.argument("job_id", metavar="ID")
@data_options
def get(job_id: str, redis_url: str | None, as_json: bool) -> None:
    """Show everything about the job ID: its state, what it said last, and the history of its attempts.

    Values of its environment are masked.
    """
    with open_kelpie(redis_url) as kelpie:
        record = kelpie.get(job_id)
        if as_json:
            print_document(job_document(record, attempts=True))
            return
        now = kelpie.now()
    out = console()
    out.print(job_details(record, now))
    if record.attempts:
        out.print(timeline(record, now, out.width, bars=out.is_terminal))


@click.command("list", short_help="List jobs, the newest first.")
@click.option("--group", metavar="GROUP", help="Of this container group; default: of all.")
@click.option("--status", type=click.Choice([status.value for status in LISTED]), help="With this status only.")
@click.option(
    "--limit", type=click.IntRange(1, MAX_LIMIT), default=DEFAULT_LIMIT, show_default=True, help="At most so many."
)
@click.option("--oldest-first", is_flag=True, help="The oldest jobs instead of the newest.")
@data_options
def list_(
    group: str | None, status: str | None, limit: int, oldest_first: bool, redis_url: str | None, as_json: bool
) -> None:
    """List jobs, the newest first."""
    with open_kelpie(redis_url) as kelpie:
        records = kelpie.list(group, status, limit, newest_first=not oldest_first)
        if group is not None and not records:
            note_unknown_group(kelpie, group)
        if as_json:
            print_document([job_document(record, attempts=False) for record in records])
            return
        if not records:
            say("no such jobs")
            return
        now = kelpie.now()
    console().print(job_table(records, now, with_group=group is None))
    if len(records) == limit:
        say(f"there may be more than these {limit}; --limit shows more")


def note_unknown_group(kelpie: Kelpie, group: str) -> None:
    """Say on stderr when a group never had a job: most likely it is misspelt."""
    groups = kelpie.groups()
    if group not in groups:
        say(f"no job was ever submitted to the container group {group!r}{did_you_mean(group, groups)}")
