"""What the Redis user of a container group's workers may do: its own group's jobs, and what it shares with others.

A worker's password is in the hands of whoever owns the node. With these rules it opens the records and the queue of one
group; it lists no keys, reads no other group's jobs, changes no scaling rule, and commands no other worker. The scripts
of the ledger name their keys as they run; Redis checks each call of theirs against the user's rules, as it does those
of the user. What is shared all the same is listed in ``docs/security.md``.

Limits: Redis 7 or later, or Valkey: read-only keys and selectors came with Redis 7. One user serves one database.
"""

from __future__ import annotations

import re

from kelpie_celery._fields import GROUP_ID
from kelpie_celery.errors import SettingsError
from kelpie_celery.ledger import keys

USER_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
NO_PASSWORD = "#SHA256-OF-THE-PASSWORD"  # noqa: S105 -- a place for one; Redis refuses it as it is

# Without client|setinfo, which Redis 7.0 does not know: redis-py goes on when it is refused.
_CONNECTION = (
    "auth", "hello", "ping", "select", "client|setname", "info", "time",
    "multi", "exec", "discard", "watch", "unwatch", "eval", "evalsha", "script|load", "script|exists",
)  # fmt: skip
_PUBSUB = ("subscribe", "unsubscribe", "psubscribe", "punsubscribe")
_DATA = (
    "get", "mget", "set", "setex", "del", "exists", "ttl", "expire", "pexpire", "persist", "incr",
    "hget", "hmget", "hgetall", "hset", "hsetnx", "hdel", "hexists", "hincrby", "hincrbyfloat", "hlen",
    "lpush", "rpush", "rpop", "brpop", "llen", "lindex", "lset", "ltrim", "lrange",
    "sadd", "srem", "smembers", "sismember",
    "zadd", "zincrby", "zrem", "zscore", "zcard", "zcount", "zrange", "zrevrange", "zrangebyscore", "zrevrangebyscore",
    "zremrangebyscore",
)  # fmt: skip


def check_group(group: str) -> str:
    """A container group that may have a user of its own.

    Raises:
        SettingsError: It is no group's id, or its queue would be the control worker's.
    """
    if not re.fullmatch(GROUP_ID, group):
        raise SettingsError(f"{group!r} is no container group: 1 to 128 letters, digits, '.', '_' or '-'")
    if keys.queue_name(group) == keys.CONTROL_QUEUE:
        raise SettingsError(f"the container group {group!r} has the control worker's queue; give the group another id")
    return group


def worker_rules(group: str, database: int = 0) -> list[str]:
    """The rules of a user for the workers of one container group, without its password.

    Args:
        group: The container group.
        database: The number of the Redis database.

    Raises:
        SettingsError: No user can be made for this group.
    """
    queue = keys.queue_name(check_group(group))
    own = [f"{keys.group_prefix(group)}*", queue, f"{queue}{keys.PRIORITY_SEPARATOR}*", f"_kombu.binding.{queue}",
           f"_kombu.binding_permanent.{queue}"]  # fmt: skip
    shared = ["kelpie:line:*", "kelpie:once:*", "celery-task-meta-*", "celery-taskset-meta-*",
              "_kombu.binding.celery.pidbox", "_kombu.binding_deadlines", "kelpie@*.celery.pidbox*"]  # fmt: skip

    read = ["kelpie:where:*", "_kombu.binding.reply.celery.pidbox"]
    written = ["*.reply.celery.pidbox"]
    heard = [f"/{database}.celery.pidbox"]
    told = [f"/{database}.celeryev/*", "celery-task-meta-*"]
    return [
        *(f"~{pattern}" for pattern in own + shared),
        *(f"%R~{pattern}" for pattern in read),
        *(f"%W~{pattern}" for pattern in written),
        *(f"&{channel}" for channel in heard),
        "-@all",
        *(f"+{command}" for command in _CONNECTION + _PUBSUB + _DATA),
        # By a selector, as a channel that may be listened to may be published to otherwise: on that of the control
        # commands anybody can stop every worker.
        f"({' '.join(f'&{channel}' for channel in told)} -@all +publish)",
    ]


def set_user(name: str, rules: list[str], password_hash: str | None = None) -> str:
    """The command that makes the user, for ``redis-cli``; whatever the user could do before is taken away.

    Args:
        name: The user.
        rules: As `worker_rules` gives them.
        password_hash: SHA-256 of its password (hex); a placeholder that Redis refuses without it.
    """
    secret = f"#{password_hash}" if password_hash else NO_PASSWORD
    return " ".join(["ACL SETUSER", name, "reset", "on", secret, *rules])
