"""``kelpie checkpoints gc``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click
from pydantic import TypeAdapter, ValidationError
from rich.progress import Progress

from kelpie_celery import _fields
from kelpie_celery.checkpoints.client import OLDER_THAN_S
from kelpie_celery.checkpoints.collect import Garbage, OnDeleted
from kelpie_celery.cli._asking import agrees, check_somebody_is_there
from kelpie_celery.cli._checkpoint_view import garbage_document, garbage_table
from kelpie_celery.cli._documents import print_document
from kelpie_celery.cli._errors import NOT_COMPLETED, OK, say
from kelpie_celery.cli._options import data_options, duration, open_kelpie
from kelpie_celery.cli._text import counted, size
from kelpie_celery.cli._view import console
from kelpie_celery.transfers import CONTROL_SUFFIX

_SCHEME = "s3://"


@click.command(short_help="Delete what no checkpoint needs any more below a prefix.")
@click.argument("place", metavar="s3://BUCKET/PREFIX")
@click.option(
    "--older-than", "older_than_s", type=duration, default=f"{OLDER_THAN_S:.0f}", show_default="1d",
    help="What is younger stays (seconds, or 10m, 2h, 1d).",
)  # fmt: skip
@click.option(
    "--forgotten", is_flag=True, help="Where Redis has forgotten the prefix: keep the newest whole checkpoint only."
)
@click.option("--delete", is_flag=True, help="Delete what was found; without it nothing is.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@data_options
def gc(
    place: str, older_than_s: float, forgotten: bool, delete: bool, yes: bool, redis_url: str | None, as_json: bool
) -> int:
    """Find what no checkpoint needs any more below a checkpoint prefix whose jobs have ended, and delete it.

    Workers do this while their job runs; this is for what jobs leave at their end. What kept checkpoints need stays,
    and so do plain keys, records of jobs, and everything that is not kelpie's. Refused while a job that is pending or
    running keeps its checkpoints there.
    """
    bucket, prefix = _place(place)
    if delete and not yes:
        check_somebody_is_there()
    with open_kelpie(redis_url) as kelpie:
        garbage = kelpie.find_garbage(bucket, prefix, older_than_s=older_than_s, forgotten=forgotten)
        if not as_json:
            _tell(garbage)
        deleted = 0
        if delete and garbage.found:
            if not yes and not agrees(f"Delete {counted(len(garbage.found), 'object')} ({size(garbage.bytes)})?"):
                say("nothing was deleted")
                return NOT_COMPLETED
            with _bar(len(garbage.found)) as progress:
                deleted = kelpie.delete_garbage(garbage, progress=progress)
    if as_json:
        print_document(garbage_document(garbage, deleted))
    elif deleted:
        click.echo(f"{counted(deleted, 'object')} deleted, {size(garbage.bytes)}")
    elif garbage.found:
        say("nothing was deleted; --delete does it")
    return OK


def _place(place: str) -> tuple[str, str]:
    bucket, _, prefix = place.removeprefix(_SCHEME).partition("/")
    if prefix.rstrip("/").endswith(CONTROL_SUFFIX):
        raise click.UsageError(
            f"{place!r}: name the checkpoint prefix itself, without {CONTROL_SUFFIX}", click.get_current_context()
        )
    try:
        return TypeAdapter(_fields.Bucket).validate_python(bucket), TypeAdapter(_fields.Prefix).validate_python(prefix)
    except ValidationError as error:
        rule = error.errors()[0]["msg"]
    raise click.UsageError(
        f"{place!r} is no checkpoint prefix such as s3://bucket/prefix: {rule}", click.get_current_context()
    )


def _tell(garbage: Garbage) -> None:
    url = garbage.line.address.url
    if not any(tally.objects for tally in garbage.tallies.values()):
        say(f"nothing of kelpie's lies beside {url}")
        return
    say(f"{url}: what {counted(len(garbage.kept), 'checkpoint')} refer to stays")
    if not garbage.versions:
        say("versions cannot be listed here; should the bucket keep versions, deleting frees no room")
    console().print(garbage_table(garbage))


@contextmanager
def _bar(total: int) -> Iterator[OnDeleted | None]:
    err = console(sys.stderr)
    if not err.is_terminal:
        yield None
        return
    with Progress(console=err, transient=True) as bar:
        task = bar.add_task("deleting", total=total)
        yield lambda done, _: bar.update(task, completed=done)
