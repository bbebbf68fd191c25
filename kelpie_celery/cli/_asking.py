"""Questions before something that cannot be undone.

Limits: only a terminal is asked.
"""

from __future__ import annotations

import sys

import click


def check_somebody_is_there() -> None:
    """Before anything is looked up for a question.

    Raises:
        click.UsageError: There is nobody to ask.
    """
    if not _is_terminal():
        raise click.UsageError("stdin is no terminal to ask on; give --yes", click.get_current_context())


def agrees(question: str) -> bool:
    """Ask, on stderr; no answer is a no."""
    return click.confirm(question, err=True)


def _is_terminal() -> bool:
    return sys.stdin.isatty()
