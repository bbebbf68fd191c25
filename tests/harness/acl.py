"""Redis users for tests: those that ``kelpie redis-acl`` is about, made by an administrator."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from redis import Redis

from kelpie_celery.acl import worker_rules

PASSWORD = "a-password-of-the-group"


def make_user(admin_url: str, group: str, password: str = PASSWORD) -> str:
    """Make the user of a group's workers; the URL with which it connects."""
    name = f"worker-{group}"
    database = int(urlsplit(admin_url).path.strip("/") or 0)
    words = ["ACL", "SETUSER", name, "reset", "on", f">{password}", *worker_rules(group, database)]
    with Redis.from_url(admin_url) as client:
        admin: Any = client
        admin.execute_command(*words)
    return admin_url.replace("redis://", f"redis://{name}:{password}@", 1)


def refusals(admin_url: str) -> set[tuple[str, str, str]]:
    """What Redis has refused to users: (why, which key, channel or command, where it was asked for)."""
    with Redis.from_url(admin_url, decode_responses=True) as admin:
        rows: list[Any] = admin.acl_log()
    return {(row["reason"], row["object"], row["context"]) for row in rows}
