"""``kelpie fetch``."""

from __future__ import annotations

from dataclasses import asdict

import click

from kelpie_celery.cli._bars import transfer_bar
from kelpie_celery.cli._documents import print_document
from kelpie_celery.cli._errors import NOT_COMPLETED, OK, say, say_error
from kelpie_celery.cli._options import data_options, open_kelpie
from kelpie_celery.cli._text import counted, size
from kelpie_celery.cli.checkpoints import get
from kelpie_celery.errors import NoOutputs
from kelpie_celery.lifecycle import Status
from kelpie_celery.staging import JobOutputs, fetch_outputs
from kelpie_celery.staging.tree import shown


@click.command(short_help="Bring the outputs of a job down to a directory.")
@click.argument("job_id", metavar="JOB")
@click.option("-o", "--output", "directory", metavar="DIR", help="Where to; by default a directory of the job's id.")
@click.option("--as-is", is_flag=True, help="Take whatever lies below the output prefixes now.")
@click.option(
    "--checkpoint", is_flag=True, help="Its newest checkpoint instead, as `kelpie checkpoints get` brings it."
)
@click.option("--force", is_flag=True, help="Replace files that hold something else.")
@data_options
@click.pass_context
def fetch(
    ctx: click.Context, job_id: str, directory: str | None, as_is: bool, checkpoint: bool, force: bool,
    redis_url: str | None, as_json: bool,
) -> int:  # fmt: skip
    """Bring the outputs of JOB down to a directory.

    Of a job that completed, every file is verified by the SHA-256 that was noted when it was stored. What is there
    already is not fetched again, so after an interruption the same command goes on; files that hold something else are
    left alone. A job that has not completed is told with what there is, and the exit code is 1. With `compression` the
    files are unpacked. Of a job with several output prefixes, each gets a folder of its name.
    """
    target = directory or job_id
    if checkpoint:
        if as_is or force:
            raise click.UsageError("--checkpoint goes with neither --as-is nor --force", ctx)
        ctx.invoke(get, job_id=job_id, commit=None, directory=target, redis_url=redis_url, as_json=as_json)
        return OK
    with open_kelpie(redis_url) as kelpie, transfer_bar("fetching") as progress:
        try:
            done = fetch_outputs(kelpie, job_id, target, as_is=as_is, force=force, progress=progress)
        except NoOutputs as error:
            say_error(str(error))
            return NOT_COMPLETED
    _tell_doubts(done)
    if as_json:
        print_document(_document(done))
        return OK
    came = done.fetched
    click.echo(
        f"job {done.job_id}: {counted(came.files, 'output')}, {size(came.bytes)}, in {shown(came.directory)};"
        f" fetched: {came.fetched} ({size(came.fetched_bytes)}), there already: {came.unchanged}"
    )
    return OK


def _document(done: JobOutputs) -> dict[str, object]:
    return {
        "job_id": done.job_id, "status": done.status.value, "verified": done.is_verified,
        "prefixes": list(done.prefixes), **asdict(done.fetched),
    }  # fmt: skip


def _tell_doubts(done: JobOutputs) -> None:
    if not done.is_verified:
        what = "" if done.status is Status.COMPLETED else f"; the job is {done.status.value}"
        say(f"this is what lies below {', '.join(done.prefixes)} now, which need not be what the job stored{what}")
    if done.fetched.by_length:
        say(f"{counted(done.fetched.by_length, 'file')} verified by length alone: the storage gives no digest of them")
