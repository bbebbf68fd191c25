"""``kelpie machines``: the machines that jobs ran on, and which of them may not have which jobs.

Limits: what the ledger keeps of a machine for a week.
"""

from __future__ import annotations

from typing import Any

import click
from rich import box
from rich.table import Table

from kelpie_celery._suggest import did_you_mean
from kelpie_celery.cli._documents import print_document
from kelpie_celery.cli._errors import NOT_COMPLETED, OK, say
from kelpie_celery.cli._options import data_options, open_kelpie
from kelpie_celery.cli._text import counted, duration, iso_time, size
from kelpie_celery.cli._view import console, words
from kelpie_celery.client import Kelpie
from kelpie_celery.ledger.machines import MachineEntry

_DEFAULT = "list"
_FIELDS = ("workers", "jobs", "completed", "failures", "interruptions", "others", "streak", "bans", "received_bytes",
           "received_bytes_s", "sent_bytes", "sent_bytes_s")  # fmt: skip


class _ListByDefault(click.Group):
    """``kelpie machines GROUP`` is ``kelpie machines list GROUP``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        named = next((arg for arg in args if not arg.startswith("-")), None)
        asks_for_help = args[:1] in (["-h"], ["--help"])
        if named not in self.commands and not asks_for_help:
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


@click.group(cls=_ListByDefault, short_help="Show machines and what they did; lift bans.")
def machines() -> None:
    """Show the machines that jobs ran on, or let one have jobs again: kelpie machines [GROUP]."""


@machines.command(_DEFAULT, short_help="List the machines of a container group, or of all.")
@click.argument("group", required=False)
@data_options
def list_(group: str | None, redis_url: str | None, as_json: bool) -> int:
    """List the machines of the container group GROUP, or of all, the one that was heard of last first.

    Counts are of attempts in the last week.
    """
    with open_kelpie(redis_url) as kelpie:
        groups = [group] if group is not None else kelpie.groups()
        found = [(one, entry) for one in groups for entry in kelpie.machines(one)]
        now = kelpie.now() if found else 0.0
        if as_json:
            print_document([_document(one, entry) for one, entry in found])
        elif found:
            console().print(_table(found, now))
        if not found:
            _say_nothing_known(kelpie, group)
            return NOT_COMPLETED if group is not None else OK
    return OK


@machines.command(short_help="Let a machine have jobs again that failed on it.")
@click.argument("machine")
@click.option("--job", "job_id", metavar="ID", help="Only this job.")
@click.option("--group", metavar="GROUP", help="Only in this container group; default: in all.")
@data_options
def unban(machine: str, job_id: str | None, group: str | None, redis_url: str | None, as_json: bool) -> int:
    """Let the machine MACHINE have jobs again that failed on it.

    Without --job all of its bans are lifted, and it is no longer taken for one that fails jobs which succeed elsewhere.
    """
    with open_kelpie(redis_url) as kelpie:
        lifted = kelpie.unban(machine, group=group, job=job_id)
    if as_json:
        print_document({"machine": machine, "lifted": lifted})
    hint = "" if lifted else "; 'kelpie machines' shows the machines and how many bans each has"
    say(f"{counted(lifted, 'ban')} of machine {machine} lifted{hint}")
    return OK


def _say_nothing_known(kelpie: Kelpie, group: str | None) -> None:
    if group is None:
        say("no machine was heard of in the last week")
        return
    known = kelpie.groups()
    meant = "" if group in known else did_you_mean(group, known)
    say(f"no machine of the container group {group} was heard of in the last week{meant}")


def _document(group: str, entry: MachineEntry) -> dict[str, Any]:
    facts = {name: getattr(entry, name) for name in _FIELDS}
    return {"machine": entry.machine, "container_group_id": group, "heard": iso_time(entry.heard_at), **facts}


def _table(found: list[tuple[str, MachineEntry]], now: float) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("MACHINE", overflow="fold")
    table.add_column("GROUP", overflow="fold")
    for heading in ("HEARD", "RUNS", "DONE", "FAILED", "INTERRUPTED", "STREAK", "BANS", "DOWN", "UP"):
        table.add_column(heading, justify="right")
    for group, entry in found:
        counts = (entry.jobs, entry.completed, entry.failures, entry.interruptions, entry.streak, entry.bans)
        table.add_row(
            words(entry.machine), words(group), f"{duration(now - entry.heard_at)} ago", *map(str, counts),
            _rate(entry.received_bytes_s), _rate(entry.sent_bytes_s),
        )  # fmt: skip
    return table


def _rate(bytes_s: float | None) -> str:
    return "" if bytes_s is None else f"{size(bytes_s)}/s"
