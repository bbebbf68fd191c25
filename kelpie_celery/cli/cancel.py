"""``kelpie cancel`` and ``kelpie purge``."""

from __future__ import annotations

import click

from kelpie_celery.cli._asking import agrees, check_somebody_is_there
from kelpie_celery.cli._documents import print_document
from kelpie_celery.cli._errors import NOT_COMPLETED, OK, USER_ERROR, say, say_error
from kelpie_celery.cli._options import data_options, open_kelpie
from kelpie_celery.cli.show import note_unknown_group
from kelpie_celery.client import Kelpie
from kelpie_celery.errors import JobNotFound
from kelpie_celery.lifecycle import Status


@click.command(short_help="Cancel jobs.")
@click.argument("job_ids", metavar="ID...", nargs=-1, required=True)
@data_options
def cancel(job_ids: tuple[str, ...], redis_url: str | None, as_json: bool) -> int:
    """Cancel the jobs ID, and print what became of each.

    A pending job is "canceled" at once; a running one is "canceling": its worker stops it within seconds. A job that
    has ended stays what it is. An id that does not exist is an error, and does not keep the others from being canceled.
    """
    answers, code = [], OK
    with open_kelpie(redis_url) as kelpie:
        for job_id in dict.fromkeys(job_ids):
            try:
                answers.append({"id": job_id, "status": kelpie.cancel(job_id)})
            except JobNotFound as error:
                say_error(str(error))
                code = USER_ERROR
    if as_json:
        print_document(answers)
    else:
        for answer in answers:
            click.echo(f"{answer['id']} {answer['status']}")
    return code


@click.command(short_help="Cancel all jobs of a container group.")
@click.option("--group", metavar="GROUP", required=True, help="The container group.")
@click.option(
    "--status", type=click.Choice([Status.PENDING.value, Status.RUNNING.value]), help="Only these; default: both."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@data_options
def purge(group: str, status: str | None, yes: bool, redis_url: str | None, as_json: bool) -> int:
    """Cancel the pending and running jobs of a container group. Their records stay."""
    with open_kelpie(redis_url) as kelpie:
        if not yes and not _agreed(kelpie, group, status):
            say("nothing was canceled")
            return NOT_COMPLETED
        done = kelpie.purge(group, status)
        if not done.canceled and not done.canceling:
            note_unknown_group(kelpie, group)
    if as_json:
        print_document({"container_group_id": group, "canceled": done.canceled, "canceling": done.canceling})
    else:
        click.echo(f"{done.canceled} canceled, {done.canceling} canceling")
    return OK


def _agreed(kelpie: Kelpie, group: str, status: str | None) -> bool:
    check_somebody_is_there()
    counts = kelpie.counts(group)
    jobs = {Status.PENDING: counts.pending, Status.RUNNING: counts.running}
    told = " and ".join(f"{count} {name.value}" for name, count in jobs.items() if status in (None, name))
    return agrees(f"Cancel {told} jobs of the container group {group!r}?")
