"""The types of the fields of a job definition, each with the rule that it enforces.

Limits: one field at a time; what ties several fields together is in ``kelpie_celery.definition``.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from kelpie_celery.errors import DefinitionError
from kelpie_celery.globs import MARKER, MAX_GLOB_CHARS, marker_of
from kelpie_celery.patterns import compile_pattern

GROUP_ID = r"^[A-Za-z0-9._-]{1,128}$"
MACHINE_ID = r"^[A-Za-z0-9._:-]{1,128}$"
BUCKET = r"^[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]$"
MAX_SECONDS = 10 * 365 * 86_400.0

MAX_TAGS = 50
# Linux refuses to start a program with one argument, or one NAME=value, of 128 KiB or more (MAX_ARG_STRLEN).
_MAX_ARGUMENT_BYTES = 128 * 1024 - 1
_MAX_ENVIRONMENT_BYTES = 64 * 1024
_MAX_PATH_BYTES = 4095
# An S3 key has at most 1,024 bytes; what is left belongs to the files' names and to our own keys.
_MAX_PREFIX_BYTES = 800
_MAX_WEBHOOK_CHARS = 2048

# The usual path, known to be good at a glance: no segment begins with a dot, all is ASCII.
_PLAIN_PATH = re.compile(r"/?(?:[A-Za-z0-9_-][A-Za-z0-9_.=-]*/)*[A-Za-z0-9_-][A-Za-z0-9_.=-]*/?")
_ENV_NAME = re.compile(r"[-._A-Za-z][-._A-Za-z0-9]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_OWN_SEGMENT = ".kelpie"


def rule(text: str) -> PydanticCustomError:
    """A fault whose message is the rule itself; braces in it are taken literally."""
    return PydanticCustomError("rule", "{text}", {"text": text})


class Described:
    """Adds to the JSON schema what a Python check enforces."""

    def __init__(self, **schema: Any) -> None:
        self._schema = schema

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(core_schema) | self._schema


def _argument(value: str) -> str:
    if "\0" in value:
        raise rule("must not contain a NUL character")
    if len(value) > _MAX_ARGUMENT_BYTES // 4 and len(value.encode()) > _MAX_ARGUMENT_BYTES:
        raise rule(f"must have at most {_MAX_ARGUMENT_BYTES} bytes, the most that Linux passes to a program")
    return value


def _command(value: str) -> str:
    _argument(value)
    if not value.strip():
        raise rule("must name a program")
    return value


def _prefix(value: str) -> str:
    """Check a prefix and end it with ``/``, as Kelpie did."""
    if _PLAIN_PATH.fullmatch(value) and value[0] != "/" and len(value) < _MAX_PREFIX_BYTES:
        return value if value.endswith("/") else value + "/"
    segments = value.removesuffix("/").split("/")
    if not value or value.startswith("/"):
        raise rule("must name a folder inside the bucket, and must not begin with '/'")
    if any(segment in {".", ".."} for segment in segments):
        raise rule("must not contain '.' or '..' as a segment")
    if _OWN_SEGMENT in segments:
        raise rule(f"must not contain the segment '{_OWN_SEGMENT}', which is reserved")
    if _CONTROL.search(value):
        raise rule("must not contain control characters")
    if len(value.encode()) > _MAX_PREFIX_BYTES:
        raise rule(f"must have at most {_MAX_PREFIX_BYTES} bytes, so that names of files fit into the key")
    return value if value.endswith("/") else value + "/"


def _local_path(value: str) -> str:
    if _PLAIN_PATH.fullmatch(value) and len(value) <= _MAX_PATH_BYTES:
        return value
    if not value or "\0" in value:
        raise rule("must name a directory; it is empty or contains a NUL character")
    if ".." in value.split("/"):
        raise rule("must not contain '..' as a segment")
    if value.startswith(("$", "~")):
        raise rule("is used as it is: nothing replaces '$NAME' or '~' in it; write the path out")
    # A job's directories are cleared between jobs.
    if posixpath.normpath(value) in {"/", "//", "."}:
        raise rule("must not be the root or the working directory itself; name a directory below it")
    if len(value.encode()) > _MAX_PATH_BYTES:
        raise rule(f"must have at most {_MAX_PATH_BYTES} bytes")
    return value


def _pattern(value: str) -> str:
    try:
        compile_pattern(value)
    except DefinitionError as error:
        reason = error.problems[0][2]
    else:
        return value
    raise rule(reason)


def _commit(value: str) -> str:
    if value in {"quiet", "report"}:
        return value
    if not value.startswith(MARKER):
        raise rule("must be 'quiet', 'report' or 'marker:' and a glob, as in 'marker:step-*/DONE'")
    try:
        marker_of(value)
    except DefinitionError as error:
        reason = error.problems[0][2]
    else:
        return value
    raise rule(f"its glob {reason}")


def _webhook(value: str) -> str:
    if len(value) > _MAX_WEBHOOK_CHARS:
        raise rule(f"must have at most {_MAX_WEBHOOK_CHARS} characters")
    try:
        parts = urlsplit(value)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not value.isprintable() or " " in value:
        raise rule("must be a URL that begins with http:// or https:// and names a host")
    return value


def _environment(value: dict[str, str]) -> dict[str, str]:
    size = 0
    for position, (name, text) in enumerate(value.items(), 1):
        # A faulty name is told by its place: somebody may have put "NAME=secret" there.
        if not _ENV_NAME.fullmatch(name):
            raise rule(f"name {position} is no variable's name: letters, digits, '_', '-' and '.', no digit first")
        if "\0" in text:
            raise rule(f"the value of {name} must not contain a NUL character")
        size += len(name) + len(text.encode()) + 2
    if size > _MAX_ENVIRONMENT_BYTES:
        raise rule(f"must have at most {_MAX_ENVIRONMENT_BYTES} bytes in all, not {size}")
    return value


def _printable(value: str) -> str:
    if _CONTROL.search(value):
        raise rule("must not contain control characters")
    return value


Argument = Annotated[str, AfterValidator(_argument)]
Command = Annotated[str, Field(min_length=1, max_length=_MAX_PATH_BYTES), AfterValidator(_command)]
Bucket = Annotated[str, Field(pattern=BUCKET)]
Prefix = Annotated[str, AfterValidator(_prefix), Described(pattern=r"^[^/\x00-\x1f]", maxLength=_MAX_PREFIX_BYTES)]
LocalPath = Annotated[str, AfterValidator(_local_path), Described(minLength=1)]
PatternText = Annotated[str, AfterValidator(_pattern), Described(format="regex", maxLength=1000)]
CommitText = Annotated[
    str,
    AfterValidator(_commit),
    Described(pattern=f"^(quiet|report|{MARKER}.+)$", maxLength=len(MARKER) + MAX_GLOB_CHARS),
]
Webhook = Annotated[str, AfterValidator(_webhook), Described(format="uri", pattern="^https?://")]
Environment = Annotated[
    dict[str, str],
    AfterValidator(_environment),
    Described(propertyNames={"pattern": f"^{_ENV_NAME.pattern}$"}),
]
GroupId = Annotated[str, Field(pattern=GROUP_ID)]
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS, allow_inf_nan=False)]
IdempotencyKey = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_printable)]
TagName = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_printable)]
TagValue = Annotated[str, Field(max_length=256), AfterValidator(_printable)]


def mask_url(value: str) -> str:
    """Scheme and host of a URL, with the rest masked: user, password, path and query may all be secret."""
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "***"
    if not host or not parts.scheme:
        return "***"
    user = "***@" if "@" in parts.netloc else ""
    rest = "/***" if parts.path.strip("/") or parts.query or parts.fragment else ""
    return f"{parts.scheme}://{user}{host}{f':{port}' if port else ''}{rest}"


def mask_environment(value: Mapping[str, str]) -> dict[str, str]:
    """The names, without the values."""
    return dict.fromkeys(value, "***")
