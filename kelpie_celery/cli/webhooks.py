"""``kelpie webhooks``, with ``list``, ``retry`` and ``drop``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import click
from rich import box
from rich.table import Table

from kelpie_celery._fields import mask_url
from kelpie_celery.cli import Commands
from kelpie_celery.cli._documents import print_document
from kelpie_celery.cli._errors import OK, USER_ERROR, say, say_error
from kelpie_celery.cli._options import data_options, open_kelpie
from kelpie_celery.cli._text import iso_time, local_time
from kelpie_celery.cli._view import console, words
from kelpie_celery.client import Kelpie
from kelpie_celery.errors import WebhookNotFound, WebhookSent
from kelpie_celery.ledger.webhooks import TOLD, Webhook
from kelpie_celery.webhooks import OPEN

F = TypeVar("F", bound=Callable[..., Any])

_MAX_LISTED = 10_000


class WebhookCommands(Commands):
    """The commands below ``kelpie webhooks``."""

    table: ClassVar[Mapping[str, tuple[str, str]]] = {
        "list": ("kelpie_celery.cli.webhooks:list_", "List webhooks that wait or are dead, or all of some jobs."),
        "retry": ("kelpie_celery.cli.webhooks:retry", "Have webhooks tried again at once."),
        "drop": ("kelpie_celery.cli.webhooks:drop", "Have webhooks not sent any more."),
    }


@click.command(cls=WebhookCommands, short_help="List, retry and drop webhooks.", invoke_without_command=True)
@click.pass_context
def webhooks(ctx: click.Context) -> None:
    """Look after the webhooks that tell of jobs with a "webhook" in their definition.

    The control worker sends them. One that no try could deliver is dead: it stays on a list until it is tried again,
    dropped, or gone with its job's record.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@click.command("list", short_help="List webhooks that wait or are dead, or all of some jobs.")
@click.argument("job_ids", metavar="[ID...]", nargs=-1)
@click.option("--group", metavar="GROUP", help="Only those of this container group.")
@click.option("--dead", is_flag=True, help="Only those that were given up.")
@click.option("--limit", type=click.IntRange(1, _MAX_LISTED), default=100, show_default=True, help="At most so many.")
@data_options
def list_(
    job_ids: tuple[str, ...], group: str | None, dead: bool, limit: int, redis_url: str | None, as_json: bool
) -> None:
    """List the webhooks that are waiting to be sent or were given up; with ID, all of these jobs, sent ones too."""
    with open_kelpie(redis_url) as kelpie:
        found = kelpie.webhooks(dict.fromkeys(job_ids)) if job_ids else kelpie.open_webhooks(
            group, dead_only=dead, limit=limit
        )  # fmt: skip
    if as_json:
        print_document([_document(hook) for hook in found])
    elif found:
        console().print(_table(found))
    else:
        say("there are no such webhooks")


def _steering(command: F) -> F:
    for option in (
        click.option("--dead", is_flag=True, help="Every webhook that was given up, of any job."),
        click.option("--group", metavar="GROUP", help="With --dead: only those of this container group."),
        click.option(
            "--status", type=click.Choice([status.value for status in TOLD]), help="Only that of this status."
        ),
        click.argument("job_ids", metavar="[ID...]", nargs=-1),
    ):
        command = option(command)
    return data_options(command)


@click.command(short_help="Have webhooks tried again at once.")
@_steering
def retry(**given: Any) -> int:
    """Have the webhooks of the jobs ID that were not sent tried at once, with all their tries."""
    return _steer("retry", Kelpie.retry_webhook, **given)


@click.command(short_help="Have webhooks not sent any more.")
@_steering
def drop(**given: Any) -> int:
    """Have the webhooks of the jobs ID that were not sent dropped for good."""
    return _steer("drop", Kelpie.drop_webhook, **given)


def _steer(
    order: str, act: Callable[[Kelpie, str, str], None], *, job_ids: tuple[str, ...], status: str | None,
    group: str | None, dead: bool, redis_url: str | None, as_json: bool,
) -> int:  # fmt: skip
    if bool(job_ids) == dead:
        raise click.UsageError(
            f"name the jobs whose webhooks are to {order}, or give --dead", click.get_current_context()
        )
    with open_kelpie(redis_url) as kelpie:
        wanted = _wanted(kelpie, job_ids, status, group)
        done, code = [], OK if wanted else USER_ERROR
        for job_id, told in wanted:
            try:
                act(kelpie, job_id, told)
                done.append({"id": job_id, "status": told})
            except (WebhookNotFound, WebhookSent) as error:
                say_error(str(error))
                code = USER_ERROR
    if as_json:
        print_document(done)
    else:
        for answer in done:
            click.echo(f"{answer['id']} {answer['status']}")
    if not wanted:
        say_error("there are no such webhooks that were not sent; 'kelpie webhooks list ID' shows all of a job")
    return code


def _wanted(kelpie: Kelpie, job_ids: Sequence[str], status: str | None, group: str | None) -> list[tuple[str, str]]:
    """Pairs of a job and a status; with both named, whatever there is, so that what is not there is told."""
    if job_ids and status:
        return [(job_id, status) for job_id in dict.fromkeys(job_ids)]
    if job_ids:
        found = [hook for hook in kelpie.webhooks(dict.fromkeys(job_ids)) if hook.told.state in OPEN]
    else:
        found = kelpie.open_webhooks(group, dead_only=True, limit=_MAX_LISTED)
    return [(hook.job_id, hook.status.value) for hook in found if status in (None, hook.status.value)]


def _document(hook: Webhook) -> dict[str, Any]:
    told = hook.told
    return {
        "job_id": hook.job_id,
        "container_group_id": hook.group,
        "status": hook.status.value,
        "state": told.state,
        "url": mask_url(hook.url),
        "at": iso_time(told.at),
        "attempt": told.attempt,
        "machine_id": told.machine,
        "reason": told.reason or None,
        "tries": told.tries,
        "last_try": iso_time(told.tried),
        "next_try": iso_time(hook.due) if told.state == "waiting" else None,
        "code": told.code,
        "error": told.error or None,
    }


def _table(found: Sequence[Webhook]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("JOB", no_wrap=True, min_width=36)
    for heading in ("STATUS", "STATE", "TRIES", "NEXT TRY", "TO", "LAST ERROR"):
        table.add_column(heading, overflow="fold")
    for hook in found:
        due = hook.due if hook.told.state == "waiting" else None
        table.add_row(
            words(hook.job_id), hook.status.value, hook.told.state, str(hook.told.tries),
            local_time(due) if due is not None else "", words(mask_url(hook.url)), words(hook.told.error),
        )  # fmt: skip
    return table
