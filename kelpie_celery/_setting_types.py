"""The types of settings, each with the rule that it enforces.

Limits: one setting at a time; what ties several together is in ``kelpie_celery.settings``.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr

from kelpie_celery._fields import GROUP_ID, MACHINE_ID, MAX_SECONDS, rule

SALAD_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
"""Names of organizations and projects: what fits into a path. Its containers are told them too, and must start."""

LogLevel = Literal["debug", "info", "warning", "error", "critical"]

_BYTES = re.compile(r"([0-9]{1,18})([KMGT]?)", re.IGNORECASE)
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
MAX_BYTES = 1 << 60
_WEBHOOK_SECRET_BYTES = (24, 128)

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


def _webhook_secret(value: SecretStr) -> SecretStr:
    text = value.get_secret_value().removeprefix("whsec_")
    try:
        size = len(base64.b64decode(text + "=" * (-len(text) % 4), validate=True))
    except (binascii.Error, ValueError):
        size = 0
    if not _WEBHOOK_SECRET_BYTES[0] <= size <= _WEBHOOK_SECRET_BYTES[1]:
        raise rule(
            "must be 24 to 128 bytes in base64, with or without whsec_ in front; `openssl rand -base64 32` makes one"
        )
    return value


def _endpoint(value: str) -> str:
    parts = _split(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise rule("must be a URL that begins with http:// or https:// and names a host")
    return value


def _api_key(value: SecretStr) -> SecretStr:
    # Anything else cannot stand in a header, and what refuses it there would show it.
    if not re.fullmatch(r"[!-~]+", value.get_secret_value()):
        raise rule("must be printable ASCII without spaces")
    return value


def _directory(value: Path) -> Path:
    if value in {Path("/"), Path()}:
        raise rule("must not be the root or the working directory itself: it is cleared between jobs")
    return value


def _bytes(value: Any) -> Any:
    """``10G`` as a number of bytes; what is no such text is left to be refused or taken as it is."""
    if not isinstance(value, str):
        return value
    found = _BYTES.fullmatch(value)
    if not found:
        raise rule("must be a whole number of bytes, or one with K, M, G or T behind it, as in 50G (K is 1024)")
    return int(found[1]) << _UNITS[found[2].upper()]


def _ip_address(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise rule("must be an IP address of this machine, such as 127.0.0.1, 0.0.0.0 or ::") from None


def _level(value: Any) -> Any:
    return _LEVELS.get(value.lower(), value.lower()) if isinstance(value, str) else value


def _signal(value: Any) -> Any:
    return value.upper().removeprefix("SIG") if isinstance(value, str) else value


RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]
WebhookSecret = Annotated[SecretStr, AfterValidator(_webhook_secret)]
EndpointUrl = Annotated[str, AfterValidator(_endpoint)]
ApiKey = Annotated[SecretStr, AfterValidator(_api_key)]
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS, allow_inf_nan=False)]
SecondsOrZero = Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]
Milliseconds = Annotated[int, Field(ge=0, le=86_400_000)]
Bytes = Annotated[int, Field(ge=0, le=MAX_BYTES), BeforeValidator(_bytes)]
Port = Annotated[int, Field(ge=1, le=65_535)]
IpAddress = Annotated[str, AfterValidator(_ip_address)]
Count = Annotated[int, Field(ge=1)]
Slots = Annotated[int, Field(ge=1, le=64)]
GroupId = Annotated[str, Field(pattern=GROUP_ID)]
SaladName = Annotated[str, Field(pattern=SALAD_NAME)]
MachineId = Annotated[str, Field(pattern=MACHINE_ID)]
JobDirectory = Annotated[Path, AfterValidator(_directory)]
Flag = Annotated[bool, Field()]
CancelSignal = Annotated[Literal["TERM", "INT"], BeforeValidator(_signal)]
Level = Annotated[LogLevel, BeforeValidator(_level)]


def setting(name: str, description: str, *more: str, kelpies: bool = False, **field: Any) -> Any:
    """A field that is read from the variable ``name``, or from one of ``more``, the first that is set.

    Args:
        name: The variable.
        description: For the documentation.
        more: Other names of it.
        kelpies: Salad's Kelpie reads it too.
        field: As `pydantic.Field` takes it.
    """
    marks: dict[str, Any] = {"kelpies": kelpies}
    return Field(validation_alias=AliasChoices(name, *more), description=description, json_schema_extra=marks, **field)
