"""What the commands that talk to Redis share: their options, a client, logs on stderr.

Limits: warnings and errors are logged, unless ``KELPIE_LOG_LEVEL`` asks for more.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar, cast

import click

from kelpie_celery.client import Kelpie
from kelpie_celery.logs import configure_logging
from kelpie_celery.redaction import Redactor
from kelpie_celery.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*([a-z]*)")

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
redis_option = click.option(
    "--redis-url", metavar="URL", help="The Redis that holds the jobs; default: KELPIE_REDIS_URL."
)


def data_options(command: F) -> F:
    """Add ``--json`` and ``--redis-url``."""
    return json_option(redis_option(command))


def duration(value: str) -> float:
    """Seconds, or a number with a unit: ``90``, ``90s``, ``10m``, ``2h``, ``1d``; a type for click's options."""
    found = _DURATION.fullmatch(value.strip().lower())
    if not found or found[2] not in _UNITS:
        raise click.BadParameter(f"{value!r} is no duration; give seconds, or a number with s, m, h or d")
    return float(found[1]) * _UNITS[found[2]]


class _Stderr:
    """Writes to whatever stderr is at the moment: a live display puts itself in front of it."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


@contextmanager
def open_kelpie(redis_url: str | None) -> Iterator[Kelpie]:
    """A client, with its warnings on stderr and its secrets masked in them."""
    redactor = configure_logging("warning", stream=cast("TextIO", _Stderr()))
    with Kelpie(redis_url) as kelpie:
        _adopt(redactor, kelpie.settings)
        yield kelpie


def quiet_logs(settings: Settings) -> None:
    """The same for a command that needs no client."""
    _adopt(configure_logging("warning", stream=cast("TextIO", _Stderr())), settings)


def _adopt(redactor: Redactor, settings: Settings) -> None:
    redactor.add(settings.secrets())
    if "log_level" in settings.model_fields_set:
        logging.getLogger().setLevel(settings.log_level.upper())
