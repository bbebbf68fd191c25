"""``kelpie why``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import click
from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from kelpie_celery.cli._documents import print_document
from kelpie_celery.cli._options import data_options, open_kelpie
from kelpie_celery.cli._text import iso_time, plain
from kelpie_celery.cli._view import console, state, words
from kelpie_celery.ledger.records import JobRecord
from kelpie_celery.why.explain import Explanation

_MOMENTS = frozenset({
    "now", "at", "pending_since", "published", "lease_until", "launched", "exited", "attempt_started", "last_heard",
    "closed_until", "maintained", "control",
})  # fmt: skip
"""The facts that are times."""


@click.command(short_help="Tell why a job waits, or is not further.")
@click.argument("job_id", metavar="ID")
@data_options
def why(job_id: str, redis_url: str | None, as_json: bool) -> None:
    """Tell why the job ID waits, is not further, or ended as it did; what decides comes first.

    What is said of nodes is from the scaler's last look, and has its age; what is not known is said to be.
    """
    with open_kelpie(redis_url) as kelpie:
        found = kelpie.why(job_id)
    if as_json:
        print_document(document(found))
    else:
        console().print(view(found))


def view(found: Explanation) -> Group:
    """The job in a line, then the sentences, the deciding one in bold."""
    record = found.seen.record
    head = Text(f"{plain(record.id)} ").append_text(
        state(record.status, record.phase, canceling=record.cancel_requested)
    )
    head.append_text(words(f", {record.name}, group {record.container_group_id}, priority {record.priority}"))
    first, *others = found.because
    return Group(
        head,
        Padding(words(first.text, "bold"), (0, 0, 0, 2)),
        *(Padding(words(one.text), (0, 0, 0, 2)) for one in others),
    )


def document(found: Explanation) -> dict[str, Any]:
    """The same as JSON shows it: without the record, which ``kelpie get`` gives."""
    seen = found.seen
    facts = {field.name: _plain(getattr(seen, field.name), field.name) for field in fields(seen)}
    for name in ("now", "record", "group"):
        del facts[name]
    return {
        "id": found.job_id,
        "container_group_id": seen.record.container_group_id,
        "status": found.status.value,
        "at": iso_time(found.at),
        "because": [{"code": one.code, "text": one.text} for one in found.because],
        "job": facts,
        "group": _plain(seen.group, "group"),
    }


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, JobRecord):
        return value.id
    if name in _MOMENTS and isinstance(value, int | float):
        return iso_time(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name), field.name) for field in fields(value)}
    if name == "bans" and isinstance(value, Mapping):
        return {machine: iso_time(until) for machine, until in value.items()}
    return sorted(value) if isinstance(value, frozenset) else value
