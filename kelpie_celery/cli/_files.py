"""Reads files of job definitions: one JSON object, a JSON array, or JSON lines.

Limits: a file is read whole, up to `MAX_FILE_BYTES`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kelpie_celery._strict_json import strict_json
from kelpie_celery.batches import place, validate_all
from kelpie_celery.definition import JobDefinition
from kelpie_celery.errors import DefinitionError

MAX_FILE_BYTES = 1024**3

_BLANK = " \t\r\n"


@dataclass(frozen=True)
class Entries:
    """The definitions of a file, not validated yet.

    Attributes:
        raw: What the file holds, in its order.
        where: Names the place of the definition at a position, in front of a field's name.
    """

    raw: list[Any]
    where: Callable[[int], str]


def read_definitions(data: bytes, group: str | None = None) -> list[JobDefinition]:
    """Every definition of a file, validated.

    Args:
        data: The file's content.
        group: Replaces the container group of each.

    Raises:
        DefinitionError: Names every fault and its place.
    """
    entries = read_entries(data)
    if not entries.raw:
        raise DefinitionError([("definitions", "nothing", "must hold at least one job definition")])
    raw = [_in_group(entry, group) for entry in entries.raw] if group is not None else entries.raw
    return validate_all(raw, entries.where)


def read_entries(data: bytes) -> Entries:
    """Take a file apart.

    Raises:
        DefinitionError: It is not JSON; names the place.
    """
    text = _text(data)
    if not text.strip(_BLANK):
        return Entries([], place)
    if text.lstrip(_BLANK).startswith("["):
        return Entries(strict_json(text, MAX_FILE_BYTES), place)
    if _is_lines(text):
        return _lines(text)
    return Entries([strict_json(text, MAX_FILE_BYTES)], lambda _: "")


def _text(data: bytes) -> str:
    if len(data) > MAX_FILE_BYTES:
        raise DefinitionError([("definitions", "more", f"must have at most {MAX_FILE_BYTES} bytes")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        fault = ("definitions", f"byte {error.start}", "must be JSON in UTF-8")
    raise DefinitionError([fault])


def _is_lines(text: str) -> bool:
    """Whether the first line is an object by itself and more follows."""
    start = text.lstrip(_BLANK)
    first, _, rest = start.partition("\n")
    if not rest.strip(_BLANK):
        return False
    try:
        return isinstance(json.loads(first), Mapping)
    except (ValueError, RecursionError):
        return False


def _lines(text: str) -> Entries:
    raw, numbers, faults = [], [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip(_BLANK):
            continue
        numbers.append(number)
        try:
            raw.append(strict_json(line, MAX_FILE_BYTES))
        except DefinitionError as error:
            faults += [(f"line {number}: {field}", value, rule) for field, value, rule in error.problems]
    if faults:
        raise DefinitionError(faults[:50])
    return Entries(raw, lambda position: f"line {numbers[position]}: ")


def _in_group(entry: Any, group: str) -> Any:
    return {**entry, "container_group_id": group} if isinstance(entry, Mapping) else entry
