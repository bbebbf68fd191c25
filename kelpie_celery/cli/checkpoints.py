"""``kelpie checkpoints``, with ``list``, ``get`` and ``rollback``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import click

from kelpie_celery.checkpoints.download import Downloaded
from kelpie_celery.checkpoints.kept import Checkpoint
from kelpie_celery.cli import Commands
from kelpie_celery.cli._asking import agrees, check_somebody_is_there
from kelpie_celery.cli._bars import transfer_bar
from kelpie_celery.cli._checkpoint_view import checkpoint_document, checkpoint_table, download_document
from kelpie_celery.cli._documents import print_document
from kelpie_celery.cli._errors import NOT_COMPLETED, OK, say
from kelpie_celery.cli._options import data_options, open_kelpie
from kelpie_celery.cli._text import counted, local_time, size
from kelpie_celery.cli._view import console
from kelpie_celery.client import Kelpie
from kelpie_celery.ledger.records import JobRecord
from kelpie_celery.lifecycle import Status

_SHOWN = 5


class CheckpointCommands(Commands):
    """The commands below ``kelpie checkpoints``."""

    table: ClassVar[Mapping[str, tuple[str, str]]] = {
        "list": ("kelpie_celery.cli.checkpoints:list_", "List the checkpoints that a job can go back to."),
        "get": ("kelpie_celery.cli.checkpoints:get", "Bring a checkpoint of a job down to a directory."),
        "rollback": ("kelpie_celery.cli.checkpoints:rollback", "Take a job back to an older checkpoint."),
        "gc": ("kelpie_celery.cli.gc:gc", "Delete what no checkpoint needs any more below a prefix."),
    }


@click.command(
    cls=CheckpointCommands, short_help="List, fetch and roll back checkpoints of jobs.", invoke_without_command=True
)
@click.pass_context
def checkpoints(ctx: click.Context) -> None:
    """List the checkpoints of a job, bring one down, go back to one, and delete what is left over.

    The storage is found by the same variables as workers have: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION,
    and AWS_ENDPOINT_URL for a storage other than AWS. `list` needs the last one alone.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@click.command("list", short_help="List the checkpoints that a job can go back to.")
@click.argument("job_id", metavar="JOB")
@data_options
def list_(job_id: str, redis_url: str | None, as_json: bool) -> None:
    """List the checkpoints that JOB can go back to, the newest first.

    Of a job with several checkpoint prefixes they are shown together: a checkpoint is one id below all of them.
    """
    with open_kelpie(redis_url) as kelpie:
        found = kelpie.checkpoints(job_id)
        if not found:
            say(kelpie.why_no_checkpoints(job_id))
    if as_json:
        print_document([checkpoint_document(one) for one in found])
    elif found:
        prefixes = dict.fromkeys(prefix for one in found for prefix in one.prefixes)
        say(f"job {job_id} keeps checkpoints below {', '.join(prefixes)}")
        console().print(checkpoint_table(found, job_id))


@click.command(short_help="Bring a checkpoint of a job down to a directory.")
@click.argument("job_id", metavar="JOB")
@click.argument("commit", metavar="[CHECKPOINT]", required=False)
@click.option("-o", "--output", "directory", metavar="DIR", required=True, help="A new or an empty directory.")
@data_options
def get(job_id: str, commit: str | None, directory: str, redis_url: str | None, as_json: bool) -> None:
    """Bring CHECKPOINT of JOB down to a directory, by default the newest.

    Every byte is verified. Nothing is in the directory before everything is there. Of a job with several checkpoint
    prefixes, each gets a folder of its name.
    """
    with open_kelpie(redis_url) as kelpie, transfer_bar("fetching") as progress:
        done = kelpie.download_checkpoint(job_id, Path(directory), commit, progress=progress)
    _tell_gaps(done)
    if as_json:
        print_document(download_document(done, job_id, directory))
        return
    ids = ", ".join(dict.fromkeys(part.commit for part in done.parts))
    click.echo(f"checkpoint {ids}: {counted(done.files, 'file')}, {size(done.bytes)}, in {directory}")


def _tell_gaps(done: Downloaded) -> None:
    for prefix in done.without:
        say(f"below {prefix} the job keeps no such checkpoint")
    if done.refused_links:
        more = f" and {len(done.refused_links) - _SHOWN} more" if len(done.refused_links) > _SHOWN else ""
        say(f"links that lead out of the directory were left out: {', '.join(done.refused_links[:_SHOWN])}{more}")


@click.command(short_help="Take a job back to an older checkpoint.")
@click.argument("job_id", metavar="JOB")
@click.argument("commit", metavar="CHECKPOINT")
@click.option("--yes", is_flag=True, help="Do not ask.")
@data_options
def rollback(job_id: str, commit: str, yes: bool, redis_url: str | None, as_json: bool) -> int:
    """Take JOB back to an older CHECKPOINT: its content becomes the job's newest checkpoint.

    A running attempt is stopped, and once its lease is over (30 s, or twice the job's heartbeat interval) the job goes
    on from there, on whichever worker takes it; that is no failure. Of a job that has ended, nothing changes but what
    the next job with the same prefix goes on from.
    """
    with open_kelpie(redis_url) as kelpie:
        if not yes:
            check_somebody_is_there()
            older = kelpie.checkpoint(job_id, commit)
            if not agrees(_question(kelpie.get(job_id), older)):
                say("nothing was changed")
                return NOT_COMPLETED
        record = kelpie.get(job_id)
        new = kelpie.rollback(job_id, commit)
        _tell_rollback(kelpie, record, commit, new, as_json=as_json)
    return OK


def _question(record: JobRecord, older: Checkpoint) -> str:
    return f"Take job {record.id} back to checkpoint {older.id} of {local_time(older.at)}? {_consequence(record)}"


def _consequence(record: JobRecord) -> str:
    if record.status is Status.PENDING:
        return "The job is pending, and goes on from there."
    if record.status is Status.RUNNING and not record.cancel_requested:
        return (
            f"Its running attempt {record.attempt} is stopped, and the job goes on from there once that attempt's lease"
            " is over."
        )
    state = f"has ended ({record.status.value})" if record.status.ended else "is being canceled"
    return f"The job {state}; the next job with its prefix goes on from there."


def _tell_rollback(kelpie: Kelpie, record: JobRecord, commit: str, new: str, *, as_json: bool) -> None:
    if as_json:
        status = kelpie.get(record.id).status.value
        print_document({"id": record.id, "checkpoint": new, "of": commit, "status": status})
        return
    click.echo(f"job {record.id} has the new checkpoint {new} with the content of {commit}")
    say(_consequence(record))
