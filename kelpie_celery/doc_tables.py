"""The tables of the documentation that are made from the models, so that they cannot lag behind.

Limits: Markdown only. ``python -m kelpie_celery.doc_tables docs`` writes them between their markers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kelpie_celery.definition import JobDefinition, SyncBlock
from kelpie_celery.settings import Settings, variables

_BEGIN, _END = "<!-- begin {name} -->\n", "<!-- end {name} -->"


def settings_table() -> str:
    """All settings: variable, default, meaning."""
    names = variables()
    return _table(
        ["variable", "default", "meaning"],
        (
            [" or ".join(f"`{name}`" for name in names[field]), _default(info), info.description or ""]
            for field, info in Settings.model_fields.items()
        ),
    )


def definition_table() -> str:
    """All fields of a job definition: name, type, default, meaning."""
    return _model_table(JobDefinition)


def block_table() -> str:
    """All fields of a block of ``sync``."""
    return _model_table(SyncBlock)


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "settings.md": {"settings": settings_table},
    "job-definition.md": {"fields": definition_table, "block": block_table},
}


def with_tables(name: str, text: str) -> str:
    """The page ``name`` with its tables made anew.

    Raises:
        ValueError: When a marker is missing.
    """
    for table, make in TABLES[name].items():
        begin, end = _BEGIN.format(name=table), _END.format(name=table)
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"{name} has no markers for the table '{table}': {begin.strip()} and {end}")
        text = f"{before}{begin}{make()}{end}{after}"
    return text


def write(docs: Path) -> None:
    """Make the tables of all pages in ``docs`` anew."""
    for name in TABLES:
        page = docs / name
        page.write_text(with_tables(name, page.read_text()))


def _model_table(model: type[BaseModel]) -> str:
    properties = model.model_json_schema()["properties"]
    return _table(
        ["field", "type", "default", "meaning"],
        (
            [f"`{name}`", _type(properties[name]), _default(info), info.description or ""]
            for name, info in model.model_fields.items()
        ),
    )


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def _type(schema: dict[str, Any]) -> str:
    """A field's type and range in a few words."""
    options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    kind = options[0]
    if "$ref" in kind:
        return "object"
    if "enum" in kind:
        return " or ".join(f"`{value}`" for value in kind["enum"])
    if kind["type"] == "array":
        return "list of strings"
    if kind["type"] == "object":
        return "object of strings"
    low, high = kind.get("minimum"), kind.get("maximum")
    if low is not None and high is not None:
        return f"{kind['type']}, {low:g} to {high:,}".replace(",000,000", " million")
    return str(kind["type"])


def _default(info: FieldInfo) -> str:
    """The default; one that is computed at the start is told in the meaning, in words."""
    if info.is_required():
        return "required"
    value = info.default
    if info.default_factory in {list, dict}:
        return "`[]`" if info.default_factory is list else "`{}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float) and value.is_integer():
        return f"`{int(value)}`"
    return f"`{value}`" if isinstance(value, int | float | str | Path) else ""


if __name__ == "__main__":
    write(Path(sys.argv[1]))
