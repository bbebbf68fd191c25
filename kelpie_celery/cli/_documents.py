"""JSON documents on stdout: the stable form of records for programs.

Times are ISO 8601 in UTC. Values of a job's environment and the path of its webhook are masked, always.
``docs/cli.md`` lists the fields. Limits: numbers that JSON does not know (NaN) become null.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from kelpie_celery._fields import mask_environment, mask_url
from kelpie_celery.cli._text import iso_time
from kelpie_celery.ledger.records import AttemptRecord, JobRecord

_FROM_RECORD = (
    "attempt",
    "machine_id",
    "worker",
    "num_failures",
    "max_failures",
    "num_free",
    "num_interruptions",
    "num_heartbeats",
    "num_commits",
    "cancel_requested",
    "reason",
    "message",
)


def print_document(value: Any) -> None:
    """Print one JSON document; only ASCII, so that no terminal and no locale can harm it."""
    json.dump(_finite(value), sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def job_document(record: JobRecord, *, attempts: bool) -> dict[str, Any]:
    """A job's record.

    Args:
        record: The record.
        attempts: Whether its history was read too.
    """
    return {
        "id": record.id,
        "container_group_id": record.container_group_id,
        "name": record.name,
        "status": record.status.value,
        "phase": record.phase.value if record.phase else None,
        "priority": record.priority,
        "created": iso_time(record.created),
        "started": iso_time(record.started),
        "ended": iso_time(record.ended),
        "heartbeat": iso_time(record.heartbeat),
        "committed": iso_time(record.committed),
        "next_try": iso_time(record.not_before),
        **{name: getattr(record, name) for name in _FROM_RECORD},
        "progress": record.progress.model_dump() if record.progress else None,
        "transfer": record.transfer.model_dump() if record.transfer else None,
        "result": record.result,
        "definition": masked_definition(record.definition),
        **({"attempts": [_attempt_document(attempt) for attempt in record.attempts]} if attempts else {}),
    }


def masked_definition(definition: Mapping[str, Any]) -> dict[str, Any]:
    """A definition as it may be shown."""
    shown = dict(definition)
    if shown.get("environment"):
        shown["environment"] = mask_environment(shown["environment"])
    if shown.get("webhook"):
        shown["webhook"] = mask_url(shown["webhook"])
    return shown


def _attempt_document(attempt: AttemptRecord) -> dict[str, Any]:
    times = {name: iso_time(getattr(attempt, name)) for name in ("started", "ended", "committed")}
    return {**attempt.model_dump(exclude={"nonce", *times}), **times}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
