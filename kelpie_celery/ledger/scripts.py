"""Loads the ledger's Lua operations, one file each, from the package.

Limits: an operation is sent by its hash and loaded again by redis-py when the server has forgotten it.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis import Redis
    from redis.commands.core import Script

ON_LINES = ("commit", "rollback", "lines", "collected")
"""The operations that know lines of commits."""

ON_OUTPUT = ("renew", "end_attempt")
"""The operations that take output of jobs."""

ON_FLEET = ("fleet", "drain", "condemn", "pardon")
"""The operations that look at all workers of a group."""

OPERATIONS = (
    "submit", "draft", "claim", "renew", "end_attempt", "publish", "cancel", "done", "pulse", "tick", "once",
    "move", "decided", "queue", "token", "hand_over", "take_webhooks", "settle_webhook", "steer_webhook", "unban",
    "finished",
    *ON_LINES, *ON_FLEET,
)  # fmt: skip


@cache
def source(operation: str) -> str:
    """The text of one operation with the common parts in front."""
    folder = files("kelpie_celery.ledger") / "lua"
    parts = (("_lines", ON_LINES), ("_fleet", ON_FLEET), ("_output", ON_OUTPUT))
    shared = [part for part, users in parts if operation in users]
    return "".join((folder / f"{part}.lua").read_text() for part in ("_common", *shared, operation))


def register(redis: Redis) -> dict[str, Script]:
    """One callable script for each operation, bound to ``redis``."""
    return {operation: redis.register_script(source(operation)) for operation in OPERATIONS}


def text(value: Any) -> str:
    """A reply of Redis as text, whatever ``decode_responses`` says."""
    return value.decode() if isinstance(value, bytes) else str(value)
