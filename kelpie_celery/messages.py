"""Broker messages: built once, kept in the record, published by the ledger's Lua.

The format is kombu's virtual transport over Redis (kombu 5, ``kombu/transport/virtual/base.py``): JSON with a
base64 body on a list, one list a priority. Limits: JSON only; default exchange only.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kombu.utils.json import dumps

TAG = "@KELPIE_TAG@"
"""Stands for the delivery tag until the ledger publishes: ``<seconds since the epoch>.<job id>``."""

# What kombu's Producer.publish takes beside the message's properties.
_PUBLISH_ARGUMENTS = frozenset({
    "declare", "retry", "retry_policy", "timeout", "confirm_timeout", "delivery_mode", "exchange", "routing_key",
    "serializer", "compression", "headers", "mandatory", "immediate",
})  # fmt: skip


@dataclass(frozen=True)
class Envelope:
    """A message as Celery would have published it."""

    body: Any
    headers: Mapping[str, Any]
    queue: str
    properties: Mapping[str, Any]


class Capture:
    """Stands in for a kombu ``Producer``: keeps what would have been published, and touches no broker."""

    serializer = None

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []

    @property
    def connection(self) -> Capture:
        """Celery asks its producer for the connection, and that one for its error mapping."""
        return self

    @contextmanager
    def _reraise_as_library_errors(self) -> Iterator[None]:
        yield

    def publish(self, body: Any, **options: Any) -> None:
        """Keep a message."""
        properties = {k: v for k, v in options.items() if k not in _PUBLISH_ARGUMENTS and v is not None}
        self.envelopes.append(Envelope(body, options["headers"], options["routing_key"], properties))


def encode(envelope: Envelope, *, priority: int, tag: str = TAG) -> str:
    """The text that goes onto the list. The tag comes first, so that nothing of the user's can precede it."""
    properties = {
        "delivery_tag": tag,
        **{k: v for k, v in envelope.properties.items() if k != "delivery_tag"},
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": envelope.queue},
        "priority": priority,
        "body_encoding": "base64",
    }
    message = {
        "properties": properties,
        "headers": envelope.headers,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "body": base64.b64encode(dumps(envelope.body).encode()).decode(),
    }
    return str(dumps(message))


def decode(message: str) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
    """Headers, properties and body (args, kwargs, embed) of a message."""
    parsed = json.loads(message)
    return parsed["headers"], parsed["properties"], json.loads(base64.b64decode(parsed["body"]))


def published_at(delivery_tag: object) -> float | None:
    """When the ledger published a message, in seconds since the epoch; None for a foreign tag."""
    seconds = ".".join(str(delivery_tag).split(".", 2)[:2])
    try:
        return float(seconds)
    except ValueError:
        return None
