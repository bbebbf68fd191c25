"""``kelpie scaler``: what the scaler decided about a container group, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kelpie_celery._suggest import did_you_mean
from kelpie_celery.cli._decision_view import decision_details, decision_document, decision_table
from kelpie_celery.cli._documents import print_document
from kelpie_celery.cli._errors import NOT_COMPLETED, OK, say
from kelpie_celery.cli._options import data_options, open_kelpie, redis_option
from kelpie_celery.cli._text import counted
from kelpie_celery.cli._view import console
from kelpie_celery.client import Kelpie
from kelpie_celery.ledger.fleet import DECISIONS_KEPT
from kelpie_celery.ledger.rules import Rules


@click.group(short_help="Show why a container group is scaled as it is.")
def scaler() -> None:
    """Show what the scaler decided about a container group, and why."""


@scaler.command(short_help="Show the last decision and its reasons.")
@click.argument("group")
@data_options
def why(group: str, redis_url: str | None, as_json: bool) -> int:
    """Show the last decision about the container group GROUP, its reasons, and what it was made of."""
    with open_kelpie(redis_url) as kelpie:
        found = kelpie.app.ledger.decisions(group, 1)
        if as_json:
            print_document(decision_document(found[0]) if found else None)
        if not found:
            _say_nothing_known(kelpie, group)
            return NOT_COMPLETED
        now = kelpie.now()
    if not as_json:
        console().print(decision_details(found[0], now))
    return OK


@scaler.command(short_help="List the last decisions, the newest first.")
@click.argument("group")
@click.option("--limit", type=click.IntRange(1, DECISIONS_KEPT), default=50, show_default=True, help="At most so many.")
@data_options
def history(group: str, limit: int, redis_url: str | None, as_json: bool) -> int:
    """List what the scaler did about the container group GROUP, the newest first.

    The same nothing in a row is one line with a count.
    """
    with open_kelpie(redis_url) as kelpie:
        found = kelpie.app.ledger.decisions(group, limit)
        if as_json:
            print_document([decision_document(entry) for entry in found])
        if not found:
            _say_nothing_known(kelpie, group)
            return NOT_COMPLETED
    if not as_json:
        console().print(decision_table(found))
        if len(found) == limit < DECISIONS_KEPT:
            say(f"there may be more than these {limit}; --limit shows more")
    return OK


@scaler.command(short_help="Plot queue and replicas over time.")
@click.argument("group")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, writable=True, path_type=Path), default=Path("scaling.png"),
    show_default=True, help="The picture; its ending says its format (png, svg, pdf).",
)  # fmt: skip
@redis_option
def plot(group: str, output: Path, redis_url: str | None) -> int:
    """Plot the work and the replicas of the container group GROUP over time, as far as decisions are kept.

    Needs matplotlib: pip install 'kelpie-celery[plot]'
    """
    with open_kelpie(redis_url) as kelpie:
        found = kelpie.app.ledger.decisions(group)
        shown = [entry for entry in found if "fleet" in entry]
        if not shown:
            _say_nothing_known(kelpie, group)
            return NOT_COMPLETED
    _draw(group, found, output)
    click.echo(f"{output}: {counted(len(shown), 'decision')}")
    return OK


def _draw(group: str, found: list[dict[str, Any]], output: Path) -> None:
    from kelpie_celery.cli import _scaling_plot  # noqa: PLC0415 - only this command needs it

    _scaling_plot.draw(group, found, output)


def _say_nothing_known(kelpie: Kelpie, group: str) -> None:
    rules = Rules(kelpie.app.ledger.redis)
    known = [rule.container_group_id for rule in rules.all()]
    if group in known:
        say(f"nothing was decided about container group {group!r} yet; is the control worker up, with SALAD_API_KEY?")
    else:
        meant = did_you_mean(group, known)
        say(f"the container group {group!r} has no scaling rule{meant}; 'kelpie rules set' makes one")
