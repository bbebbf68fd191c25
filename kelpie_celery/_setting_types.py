"""The types of settings, each with the rule that it enforces.

Limits: one setting at a time; what ties several together is in ``kelpie_celery.settings``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr

from kelpie_celery._fields import GROUP_ID, MACHINE_ID, MAX_SECONDS, rule

LogLevel = Literal["debug", "info", "warning", "error", "critical"]

# Spellings of Kelpie's and of other loggers.
_LEVELS = {"warn": "warning", "fatal": "critical", "trace": "debug"}


def _split(url: str) -> SplitResult:
    """Take a URL apart, its port included, which Python looks at only when it is asked for."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = None
    if parts is None:
        raise rule("is not a URL, or its port is no number up to 65535")
    return parts


def _redis_url(value: SecretStr) -> SecretStr:
    parts = _split(value.get_secret_value())
    path = parts.path.strip("/")
    if parts.scheme not in {"redis", "rediss", "unix"}:
        raise rule("must begin with redis://, rediss:// or unix://")
    if parts.scheme == "unix" and not path:
        raise rule("must name a socket, as in unix:///run/redis.sock?db=0")
    if parts.scheme != "unix" and not parts.hostname:
        raise rule("must name a host, as in redis://:password@host:6379/0")
    if parts.scheme != "unix" and path and not path.isdecimal():
        raise rule("must end in the number of a database, as in redis://host:6379/0")
    return value


def _endpoint(value: str) -> str:
    parts = _split(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise rule("must be a URL that begins with http:// or https:// and names a host")
    return value


def _directory(value: Path) -> Path:
    if value in {Path("/"), Path()}:
        raise rule("must not be the root or the working directory itself: it is cleared between jobs")
    return value


def _level(value: Any) -> Any:
    return _LEVELS.get(value.lower(), value.lower()) if isinstance(value, str) else value


RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]
EndpointUrl = Annotated[str, AfterValidator(_endpoint)]
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS, allow_inf_nan=False)]
SecondsOrZero = Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]
Milliseconds = Annotated[int, Field(ge=0, le=86_400_000)]
Count = Annotated[int, Field(ge=1)]
Slots = Annotated[int, Field(ge=1, le=64)]
GroupId = Annotated[str, Field(pattern=GROUP_ID)]
MachineId = Annotated[str, Field(pattern=MACHINE_ID)]
JobDirectory = Annotated[Path, AfterValidator(_directory)]
Level = Annotated[LogLevel, BeforeValidator(_level)]


def setting(name: str, description: str, *more: str, **field: Any) -> Any:
    """A field that is read from the variable ``name``, or from one of ``more``, the first that is set."""
    return Field(validation_alias=AliasChoices(name, *more), description=description, **field)
