"""Turns pydantic's errors into ``(field, value, rule)``, with nothing secret in them.

Limits: it knows the error types that strict models of plain JSON types can raise; for any other it falls back
to pydantic's own message, which never holds the input.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails

from kelpie_celery._fields import BUCKET, GROUP_ID, MACHINE_ID, mask_url
from kelpie_celery._suggest import did_you_mean

Problem = tuple[str, str, str]

_MAX_NAME_CHARS = 60

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxlist = _short.maxdict = 3
_short.maxlevel = 2

_TYPES = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
    type(None): "null",
}

# What the regular expressions of fields and settings mean, in words.
_PATTERNS = {
    GROUP_ID: "must be 1 to 128 letters, digits, '.', '_' or '-'",
    MACHINE_ID: "must be 1 to 128 letters, digits, '.', '_', ':' or '-'",
    BUCKET: "must be a bucket's name: 3 to 255 letters, digits, '.', '-' or '_'; no address, no path",
}

_RULES: dict[str, Callable[[dict[str, Any]], str]] = {
    "missing": lambda _: "is required",
    "string_type": lambda _: "must be a string",
    "string_sub_type": lambda _: "must be a string",
    "string_unicode": lambda _: "must be valid Unicode text, without lone surrogates",
    "int_type": lambda _: "must be a whole number",
    "int_parsing": lambda _: "must be a whole number",
    "int_from_float": lambda _: "must be a whole number",
    "int_parsing_size": lambda _: "is too large a number",
    "float_type": lambda _: "must be a number",
    "float_parsing": lambda _: "must be a number",
    "finite_number": lambda _: "must be a finite number",
    "bool_type": lambda _: "must be true or false",
    "list_type": lambda _: "must be a list",
    "dict_type": lambda _: "must be an object",
    "mapping_type": lambda _: "must be an object",
    "model_type": lambda _: "must be an object",
    "model_attributes_type": lambda _: "must be an object",
    "invalid_key": lambda _: "must have strings as names",
    "greater_than": lambda ctx: f"must be more than {_number(ctx['gt'])}",
    "greater_than_equal": lambda ctx: f"must be at least {_number(ctx['ge'])}",
    "less_than": lambda ctx: f"must be less than {_number(ctx['lt'])}",
    "less_than_equal": lambda ctx: f"must be at most {_number(ctx['le'])}",
    "string_too_short": lambda ctx: f"must have at least {ctx['min_length']} character(s)",
    "string_too_long": lambda ctx: f"must have at most {ctx['max_length']} characters",
    "too_long": lambda ctx: f"must have at most {ctx['max_length']} entries",
    "string_pattern_mismatch": lambda ctx: _PATTERNS.get(ctx["pattern"], f"must match {ctx['pattern']}"),
    "literal_error": lambda ctx: f"must be {ctx['expected']}",
    "rule": lambda ctx: str(ctx["text"]),
}


def problem(error: ErrorDetails, known: Callable[[Sequence[int | str]], Sequence[str]]) -> Problem:
    """One fault in the words of its user.

    Args:
        error: What pydantic found.
        known: Gives the names of the fields of the object at a path, for "did you mean".
    """
    loc, kind = error["loc"], error["type"]
    if kind == "extra_forbidden":
        # The value of a misspelt `environment` is as secret as that of a well-spelt one.
        return path(loc), describe(error["input"]), _unknown(str(loc[-1]), known(loc[:-1]))
    found = _RULES.get(kind)
    text = found(error.get("ctx", {})) if found else error["msg"]
    if kind == "missing":
        return path(loc), "nothing", text
    return path(loc), shown(loc, error["input"]), text


def path(loc: Sequence[int | str]) -> str:
    """``("sync", "before", 0, "pattern")`` as ``sync.before[0].pattern``."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part != "[key]":
            text += ("." if text else "") + _name(part)
    return text or "definition"


def shown(loc: Sequence[int | str], value: object) -> str:
    """A short printable form of a value, masked where it may be secret."""
    field = loc[0] if loc else ""
    if field == "environment":
        return "***"
    if field == "webhook":
        return mask_url(value) if isinstance(value, str) else describe(value)
    if isinstance(value, str | int | float) or value is None:
        return _short.repr(value)
    return describe(value)


def describe(value: object) -> str:
    """What kind of thing a value is, and nothing of what it holds."""
    return _TYPES.get(type(value), "an object" if isinstance(value, Mapping) else type(value).__name__)


def _unknown(name: str, known: Sequence[str]) -> str:
    return "is not a field of a job definition" + did_you_mean(name, known)


def _name(part: str) -> str:
    part = part if len(part) <= _MAX_NAME_CHARS else part[:_MAX_NAME_CHARS] + "..."
    return part if part.isprintable() else ascii(part)[1:-1]


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)
