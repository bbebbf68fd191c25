"""``celery -A kelpie_celery kelpie ...``: the ``kelpie`` command below Celery's.

Celery finds it by the entry point group ``celery.commands``, and loads it whenever ``celery`` is called in this
environment: so it imports nothing but click. Limits: Celery's global options (``--broker``, ``--quiet``, ...) mean
nothing here; Redis is found as ``kelpie`` finds it.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from kelpie_celery.cli import run


@click.command(
    "kelpie",
    short_help="Submit, show, wait for and cancel jobs, as the command kelpie does.",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def kelpie(words: tuple[str, ...]) -> NoReturn:
    """Run the command ``kelpie`` with these words: with its output, its errors and its exit codes."""
    sys.exit(run(list(words)))
