"""``kelpie stats``: where the time of container groups went.

Limits: whole hours, of the last 90 days.
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
from kelpie_celery.cli._options import duration as seconds_of
from kelpie_celery.cli._text import duration, iso_time, local_time
from kelpie_celery.cli._view import console, words
from kelpie_celery.ledger.sums import DAY_S, KEPT_DAYS
from kelpie_celery.stats import GroupStats

_SECONDS = ("useful_s", "lost_s", "restoring_s", "syncing_s", "silent_s", "waiting_s")
_COUNTS = ("completed", "failures", "interruptions", "others")
_HEADINGS = ("USEFUL", "LOST", "RESTORING", "SYNCING", "SILENT", "WAITING", "GPU HOURS", "USED WELL", "DONE", "FAILED",
             "INTERRUPTED", "EVERY")  # fmt: skip


def _since(_ctx: click.Context, _option: click.Parameter, value: str) -> float:
    since_s = seconds_of(value)
    if not 0 < since_s <= KEPT_DAYS * DAY_S:
        raise click.BadParameter(f"{value!r} must be above 0 and at most {KEPT_DAYS}d, for so long sums are kept")
    return since_s


@click.command(short_help="Show where the time of container groups went.")
@click.option("--group", metavar="GROUP", help="Only this container group; default: all.")
@click.option("--since", metavar="DURATION", default="24h", callback=_since, show_default=True, help="How far back.")
@data_options
def stats(group: str | None, since: float, redis_url: str | None, as_json: bool) -> int:
    """Show where the time of container groups went: useful work, lost work, restores, uploads, waiting.

    Work counts with the checkpoint that keeps it, everything else with the end of its attempt.
    """
    with open_kelpie(redis_url) as kelpie:
        known = kelpie.groups()
        groups = known if group is None else [group]
        found = [kelpie.stats(one, since) for one in groups]
        if as_json:
            print_document([_document(one) for one in found])
        elif found:
            say(f"since {local_time(found[0].since)}")
            console().print(_table(found))
    if group is not None and group not in known:
        say(f"no job was ever submitted to the container group {group}{did_you_mean(group, known)}")
        return NOT_COMPLETED
    if not found:
        say("no job was ever submitted")
    return OK


def _document(one: GroupStats) -> dict[str, Any]:
    return {
        "container_group_id": one.group, "since": iso_time(one.since), "until": iso_time(one.until),
        **{name: round(getattr(one, name), 3) for name in _SECONDS},
        "gpu_hours": round(one.gpu_hours, 6), "useful_fraction": one.useful_fraction,
        **{name: getattr(one, name) for name in _COUNTS},
        "between_interruptions_s": one.between_interruptions_s, "ends": dict(one.ends),
    }  # fmt: skip


def _table(found: list[GroupStats]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("GROUP", overflow="fold")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right")
    for one in found:
        fraction, every_s = one.useful_fraction, one.between_interruptions_s
        table.add_row(
            words(one.group), *(duration(getattr(one, name)) for name in _SECONDS), f"{one.gpu_hours:.2f}",
            "" if fraction is None else f"{fraction:.1%}", str(one.completed), str(one.failures),
            str(one.interruptions), "" if every_s is None else duration(every_s),
        )  # fmt: skip
    return table
