"""``kelpie submit``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import BinaryIO

import click
from rich.progress import Progress

from kelpie_celery.batches import NotAllSubmitted
from kelpie_celery.cli._documents import print_document
from kelpie_celery.cli._errors import OK, exit_code_of, say, say_error
from kelpie_celery.cli._files import MAX_FILE_BYTES, read_definitions
from kelpie_celery.cli._options import data_options, duration, open_kelpie
from kelpie_celery.cli._view import console
from kelpie_celery.cli.wait import wait_and_tell
from kelpie_celery.client import Kelpie
from kelpie_celery.definition import JobDefinition
from kelpie_celery.errors import DefinitionError
from kelpie_celery.job import Job

# Fewer are there before anybody would look at a counter.
_MANY = 2000


@click.command(short_help="Submit one job or many.")
@click.argument("file", type=click.File("rb"))
@click.option("--group", metavar="GROUP", help="Replaces container_group_id in every definition.")
@click.option("--wait", "then_wait", is_flag=True, help="Wait until the jobs have ended, as `kelpie wait` does.")
@click.option("--timeout", type=duration, help="With --wait: wait at most so long (seconds, or 10m, 2h, 1d).")
@data_options
def submit(
    file: BinaryIO, group: str | None, then_wait: bool, timeout: float | None, redis_url: str | None, as_json: bool
) -> int:
    """Submit the job definitions in FILE, or on stdin with "-", and print the ids of the jobs.

    FILE holds one JSON object, a JSON array of objects, or one object a line. All are checked before the first one is
    submitted.
    """
    if timeout is not None and not then_wait:
        raise click.UsageError("--timeout needs --wait", click.get_current_context())
    definitions = read_definitions(_content(file), group)
    with open_kelpie(redis_url) as kelpie:
        try:
            jobs = _submit(kelpie, definitions)
        except NotAllSubmitted as error:
            _tell([job for job in error.jobs if job], as_json=as_json)
            say_error(str(error))
            return exit_code_of(error)
        if not (then_wait and as_json):
            _tell(jobs, as_json=as_json)
        if not then_wait:
            return OK
        sys.stdout.flush()
        return wait_and_tell(kelpie, [job.id for job in jobs], timeout, as_json=as_json)


def _content(file: BinaryIO) -> bytes:
    try:
        return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        fault = ("definitions", "no data", f"must be readable: {error.strerror or type(error).__name__}")
    raise DefinitionError([fault])


def _submit(kelpie: Kelpie, definitions: Sequence[JobDefinition]) -> list[Job]:
    if len(definitions) == 1:
        return [kelpie.submit(definitions[0])]
    err = console(sys.stderr)
    if len(definitions) < _MANY or not err.is_terminal:
        return kelpie.submit_many(definitions)
    with Progress(console=err, transient=True) as bar:
        task = bar.add_task("submitting", total=len(definitions))
        return kelpie.submit_many(definitions, lambda done, _: bar.update(task, completed=done))


def _tell(jobs: Sequence[Job], *, as_json: bool) -> None:
    known = sum(not job.created for job in jobs)
    if known:
        say(f"{known} of {len(jobs)} existed already (same idempotency key, same definition)")
    if as_json:
        print_document([{"id": job.id, "created": job.created} for job in jobs])
        return
    for job in jobs:
        click.echo(job.id)
