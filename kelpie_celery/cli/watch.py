"""``kelpie watch``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.live import Live

from kelpie_celery.cli._options import duration, open_kelpie, redis_option
from kelpie_celery.cli._view import console
from kelpie_celery.cli._watch_view import Paces, picture
from kelpie_celery.cli.show import note_unknown_group
from kelpie_celery.why.client import LOOK_EVERY_S
from kelpie_celery.why.overview import Sight

LEAST_S = 0.2
_LINES_EVERY_S = 10.0


def _interval(value: str) -> float:
    seconds = duration(value)
    if not LEAST_S <= seconds <= 86_400:  # noqa: PLR2004 -- a day
        raise click.BadParameter(f"{value!r} is no interval to look at; give {LEAST_S:g} s to 1 d")
    return seconds


@click.command(short_help="Watch container groups and their jobs.")
@click.option("--group", metavar="GROUP", help="This container group alone; default: all.")
@click.option("--once", is_flag=True, help="Print one picture and end.")
@click.option(
    "--every",
    "every_s",
    type=_interval,
    metavar="SECONDS",
    help="Pause between two looks; default: 2, without a terminal 10.",
)
@redis_option
def watch(group: str | None, once: bool, every_s: float | None, redis_url: str | None) -> None:
    """Watch container groups, the jobs that run, those that come next and those that ended last, until Ctrl-C.

    On a terminal one picture is kept up to date; elsewhere a block is printed at each look. An outage of Redis is sat
    out.
    """
    out = console()
    pause_s = every_s if every_s is not None else LOOK_EVERY_S if out.is_terminal else _LINES_EVERY_S
    with open_kelpie(redis_url) as kelpie:
        if group is not None:
            note_unknown_group(kelpie, group)
        if once:
            out.print(picture(Sight(kelpie.overview(group)), out.width, bars=out.is_terminal))
            return
        with _screen(out) as show:
            for sight in kelpie.watch(group, pause_s):
                show(sight)


@contextmanager
def _screen(out: Console) -> Iterator[Callable[[Sight], None]]:
    """A live picture on a terminal; elsewhere a block at each look."""
    paces = Paces()
    if not out.is_terminal:
        yield lambda sight: _print(out, sight, paces)
        return
    with Live(console=out, auto_refresh=False, vertical_overflow="ellipsis") as live:
        yield lambda sight: live.update(picture(sight, out.width, bars=True, paces=paces), refresh=True)


def _print(out: Console, sight: Sight, paces: Paces) -> None:
    out.print(picture(sight, out.width, bars=False, paces=paces))
    out.file.flush()
