"""Whether a Redis is fit to hold jobs: what its configuration, its figures and its clock say.

What an ordinary user may not ask (``CONFIG GET``) is taken from ``INFO`` where that tells it, and is not known else.

Limits: one server; of a replica, a proxy or a managed service nothing is known but what it answers.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

from redis import Redis
from redis import exceptions as redis_errors

from kelpie_celery._calls import Calls, shown_url
from kelpie_celery._transport import in_the_clear
from kelpie_celery.app import connect
from kelpie_celery.clock import Clock
from kelpie_celery.findings import Finding, error, info, ok, warning
from kelpie_celery.settings import Settings

LEAST = (6, 2)
SLOW_S, MUCH_TOO_SLOW_S = 0.1, 1.0
SKEW_S, MUCH_SKEW_S = 2.0, 30.0
FULL, NEARLY_FULL = 0.95, 0.8
_ASKED = 5
_MIB = 1024 * 1024
_CONFIG = "set it in redis.conf or by CONFIG SET, and keep it over a restart (CONFIG REWRITE)"


def check_redis(settings: Settings, clock: Clock) -> list[Finding]:
    """All about the Redis of the settings.

    Raises:
        LedgerUnavailable: It cannot be reached, or refuses.
    """
    url = settings.redis_url.get_secret_value()
    with connect(url, settings.redis_timeout_s) as client:
        try:
            took_s, ahead_s = _round_trips(client, clock)
        except redis_errors.RedisError as e:
            raise Calls(url, clock, 0.0).unavailable("look at Redis", e) from None
        server = _Server(client)
        found = [_latency(shown_url(url), server, took_s)]
        if took_s >= MUCH_TOO_SLOW_S:
            return [*found, info("redis settings", "not looked at: each answer takes too long", "mend that first")]
        looks: list[Callable[[], Iterator[Finding]]] = [
            lambda: _version(server), lambda: _transport(url, settings), lambda: _append_only(server),
            lambda: _eviction(server), lambda: _memory(server), lambda: _connections(server),
            lambda: iter([_clock(ahead_s)]),
        ]  # fmt: skip
        for look in looks:
            found += look()
        return found


class _Server:
    """What a server tells of itself, asked once; an empty answer where it does not."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self.info: dict[str, Any] = {}
        try:
            answer: Any = client.info()
            self.info = dict(answer)
        except redis_errors.RedisError:
            self.info = {}

    def config(self, name: str) -> str | None:
        """One value of the configuration; None where this user may not ask."""
        try:
            answer: Any = self._client.config_get(name)
        except redis_errors.RedisError:
            return None
        value = answer.get(name)
        return None if value is None else str(value)

    def number(self, name: str) -> int | None:
        """A figure of INFO."""
        value = self.info.get(name)
        return value if isinstance(value, int) else None


def _round_trips(client: Redis, clock: Clock) -> tuple[float, float]:
    """The usual time of an answer, and how far the server's clock is ahead, seconds."""
    took: list[float] = []
    ahead: list[float] = []
    for _ in range(_ASKED):
        if sum(took) >= 2 * MUCH_TOO_SLOW_S:
            break  # nobody has to wait for more of these
        began, wall = clock.boottime(), clock.now()
        answer: Any = client.time()
        seconds = clock.boottime() - began
        took.append(seconds)
        ahead.append(answer[0] + answer[1] / 1e6 - (wall + seconds / 2))
    return statistics.median(took), statistics.median(ahead)


def _latency(where: str, server: _Server, took_s: float) -> Finding:
    text = f"{_product(server)} at {where} answers in {1000 * took_s:.1f} ms"
    facts = {"latency_s": round(took_s, 5)}
    if took_s >= MUCH_TOO_SLOW_S:
        return error("redis", text, "run Redis nearer to the workers, or on a machine that is less busy", **facts)
    if took_s >= SLOW_S:
        return warning("redis", text, "leases are renewed by such calls: run Redis nearer to the workers", **facts)
    return ok("redis", text, **facts)


def _product(server: _Server) -> str:
    name = str(server.info.get("server_name") or "redis").capitalize()
    version = server.info.get("valkey_version") or server.info.get("redis_version")
    return f"{name} {version}" if version else name


def _version(server: _Server) -> Iterator[Finding]:
    text = str(server.info.get("redis_version") or "")
    parts = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if not parts:
        yield _unknown("redis version", "INFO server")
    elif parts < LEAST:
        yield error("redis version", f"Redis {text} is too old", "use Redis 6.2 or newer, or Valkey", version=text)
    else:
        yield ok("redis version", f"{text}, at least 6.2 is needed", version=text)


def _transport(url: str, settings: Settings) -> Iterator[Finding]:
    if url.startswith("rediss://"):
        yield ok("redis transport", "TLS, and the server's certificate is verified")
    elif in_the_clear(url):
        by = "KELPIE_ALLOW_INSECURE=1 allows it" if settings.allow_insecure else "it is not allowed"
        mend = "use rediss:// unless you trust the network in between"
        yield warning("redis transport", f"passwords and jobs go to another machine unencrypted; {by}", mend)
    else:
        yield ok("redis transport", "nothing leaves this machine")


def _append_only(server: _Server) -> Iterator[Finding]:
    on = server.config("appendonly") or {0: "no", 1: "yes"}.get(server.number("aof_enabled") or 0, "no")
    if server.config("appendonly") is None and server.number("aof_enabled") is None:
        yield _unknown("redis append-only", "CONFIG GET appendonly")
        return
    if on != "yes":
        yield error("redis append-only", "there is no append-only file: a restart of Redis loses jobs",
                    f"appendonly yes; {_CONFIG}", appendonly=on)  # fmt: skip
        return
    fsync = server.config("appendfsync")
    if fsync is None:
        yield _unknown("redis append-only", "CONFIG GET appendfsync")
    elif fsync == "always":
        yield ok("redis append-only", "every write is on the disk before it is acknowledged", appendfsync=fsync)
    elif fsync == "everysec":
        text = "the file is written to the disk once a second: a power loss may take the last second"
        mend = f"appendfsync always, where no job may be lost to a power failure; {_CONFIG}"
        yield warning("redis append-only", text, mend, appendfsync=fsync)
    else:
        text = "the file is written to the disk whenever the system likes: a power loss may take the last half minute"
        yield error("redis append-only", text, f"appendfsync always (or everysec); {_CONFIG}", appendfsync=fsync)


def _eviction(server: _Server) -> Iterator[Finding]:
    policy = server.config("maxmemory-policy") or server.info.get("maxmemory_policy")
    if policy is None:
        yield _unknown("redis eviction", "CONFIG GET maxmemory-policy")
    elif policy == "noeviction":
        yield ok("redis eviction", "nothing is thrown away when memory is full", policy=policy)
    else:
        text = f"{policy}: Redis throws records of jobs away when its memory is full"
        yield error("redis eviction", text, f"maxmemory-policy noeviction; {_CONFIG}", policy=policy)


def _memory(server: _Server) -> Iterator[Finding]:
    used, limit = server.number("used_memory"), server.number("maxmemory")
    whole = limit or server.number("total_system_memory")
    if used is None or not whole:
        yield _unknown("redis memory", "INFO memory")
        return
    share = used / whole
    of = "its maxmemory" if limit else "the machine's memory"
    text = f"{used / _MIB:,.0f} MiB of {whole / _MIB:,.0f} MiB ({of}) are used"
    mend = (
        "raise maxmemory, use a larger machine, or shorten KELPIE_JOB_RETENTION_S; when it is full, submits are refused"
    )
    make = error if share >= FULL else warning if share >= NEARLY_FULL else None
    yield make("redis memory", text, mend, used_bytes=used) if make else ok("redis memory", text, used_bytes=used)


def _connections(server: _Server) -> Iterator[Finding]:
    used = server.number("connected_clients")
    told = server.config("maxclients")
    most = int(told) if told and told.isdigit() else server.number("maxclients")
    if used is None or not most:
        yield _unknown("redis connections", "CONFIG GET maxclients")
        return
    text = f"{used} of {most} connections are in use"
    mend = "raise maxclients (and the limit of open files of Redis): a worker that cannot connect runs nothing"
    if used >= NEARLY_FULL * most:
        make = error if used >= FULL * most else warning
        yield make("redis connections", text, mend, used=used, most=most)
    else:
        yield ok("redis connections", text, used=used, most=most)


def _clock(ahead_s: float) -> Finding:
    facts = {"ahead_s": round(ahead_s, 3)}
    how = "ahead of" if ahead_s > 0 else "behind"
    if abs(ahead_s) < SKEW_S:
        return ok("redis clock", f"its clock is this machine's within {max(0.1, abs(ahead_s)):.1f} s", **facts)
    text = f"its clock is {abs(ahead_s):.1f} s {how} this machine's"
    make = error if abs(ahead_s) >= MUCH_SKEW_S else warning
    return make("redis clock", text, "set both by NTP: requests to the storage carry times, and expire", **facts)


def _unknown(check: str, ask: str) -> Finding:
    mend = f"ask {ask} as its administrator, or run kelpie doctor with --redis-url of a user who may"
    return info(check, "not known: this user may not ask", mend)
