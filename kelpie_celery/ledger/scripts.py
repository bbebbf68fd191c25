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

OPERATIONS = (
    "submit", "draft", "claim", "renew", "commit", "end_attempt", "publish", "cancel", "done", "pulse", "tick", "once",
)  # fmt: skip


@cache
def source(operation: str) -> str:
    """The text of one operation with the common part in front."""
    folder = files("kelpie_celery.ledger") / "lua"
    return (folder / "_common.lua").read_text() + (folder / f"{operation}.lua").read_text()


def register(redis: Redis) -> dict[str, Script]:
    """One callable script for each operation, bound to ``redis``."""
    return {operation: redis.register_script(source(operation)) for operation in OPERATIONS}


def text(value: Any) -> str:
    """A reply of Redis as text, whatever ``decode_responses`` says."""
    return value.decode() if isinstance(value, bytes) else str(value)
