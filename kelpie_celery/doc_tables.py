"""The tables and the drawing of the documentation that are made from the models, so that they cannot lag behind.

Limits: Markdown only. ``python -m kelpie_celery.doc_tables docs`` writes them between their markers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kelpie_celery.definition import CheckpointBlock, DownloadBlock, JobDefinition, SyncBlock
from kelpie_celery.lifecycle import TRANSITIONS, Outcome, Status
from kelpie_celery.metrics.catalog import METRICS
from kelpie_celery.reasons import REASONS, Meaning
from kelpie_celery.retry_rules import RetryRule
from kelpie_celery.scaling.rule import ScalingRule
from kelpie_celery.settings import Settings, variables

_BEGIN, _END = "<!-- begin {name} -->\n", "<!-- end {name} -->"


def settings_table() -> str:
    """All settings: variable, type and unit, default, whether Kelpie has it too, meaning."""
    names = variables()
    schemas = Settings.model_json_schema(by_alias=False)["properties"]
    return _table(
        ["variable", "type", "default", "Kelpie's", "meaning"],
        (
            [
                " or ".join(f"`{name}`" for name in names[field]), _setting_type(field, schemas[field]),
                _default(info), "yes" if schemas[field]["kelpies"] else "", info.description or "",
            ]
            for field, info in Settings.model_fields.items()
        ),
    )  # fmt: skip


def definition_table() -> str:
    """All fields of a job definition: name, type, default, meaning."""
    return _model_table(JobDefinition)


def rule_table() -> str:
    """All fields of a scaling rule: name, type, default, meaning."""
    return _model_table(ScalingRule)


def block_table() -> str:
    """All fields of a block of ``sync``: those of every block, then those of ``during`` and ``before`` alone."""
    return _model_table(SyncBlock, CheckpointBlock, DownloadBlock)


def retry_table() -> str:
    """All fields of a retry rule."""
    return _model_table(RetryRule)


def reasons_table() -> str:
    """Every reason that an end can have: kind, whether it counts, what happened, what to do."""
    return _table(
        ["reason", "kind of end", "counts to `max_failures`", "what happened", "what you do"],
        ([f"`{reason}`", _kind(m), _counts(m), m.what, m.advice or "nothing"] for reason, m in REASONS.items()),
    )


def metrics_table() -> str:
    """Every metric: name, kind, labels, who exposes it, what it tells."""
    return _table(
        ["metric", "kind", "labels", "of", "what it tells"],
        (
            [f"`{m.name}`", m.kind, ", ".join(f"`{label}`" for label in m.labels), m.by, m.help]
            for m in METRICS.values()
        ),
    )


# What makes a job go from one status to the next. A transition without words, or words without one, is an error.
_ARROWS: dict[tuple[Status, Status], str] = {
    (Status.DRAFT, Status.PENDING): "its workflow comes to it",
    (Status.DRAFT, Status.CANCELED): "its workflow is given up",
    (Status.PENDING, Status.RUNNING): "a worker claims it",
    (Status.PENDING, Status.CANCELED): "cancel",
    (Status.RUNNING, Status.PENDING): "interrupted, failed with tries left, or goes on",
    (Status.RUNNING, Status.COMPLETED): "exit code 0, and every output is stored",
    (Status.RUNNING, Status.FAILED): "the last counted failure, a rule that says fail, total_timeout, poisoned",
    (Status.RUNNING, Status.CANCELED): "cancel",
}


def lifecycle_drawing() -> str:
    """The table of transitions as a drawing that GitHub shows."""
    table = {(before, after) for before, follow in TRANSITIONS.items() for after in follow}
    if table != set(_ARROWS):
        raise ValueError(f"these have words or a transition, and not both: {sorted(table ^ set(_ARROWS))}")
    starts = ["    [*] --> draft: a later step of a workflow", "    [*] --> pending: submit"]
    arrows = [f"    {before} --> {after}: {words}" for (before, after), words in _ARROWS.items()]
    ends = [f"    {status} --> [*]" for status in Status if status.ended]
    return "\n".join(["```mermaid", "stateDiagram-v2", *starts, *arrows, *ends, "```", ""])


def _kind(meaning: Meaning) -> str:
    return "goes on" if meaning.outcome is Outcome.CONTINUE else meaning.outcome.value


def _counts(meaning: Meaning) -> str:
    if meaning.counts:
        return "yes"
    return "ends the job" if meaning.final else "no"


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "settings.md": {"settings": settings_table},
    "scaling.md": {"rule": rule_table},
    "job-definition.md": {"fields": definition_table, "block": block_table, "retry": retry_table},
    "lifecycle.md": {"states": lifecycle_drawing, "reasons": reasons_table},
    "metrics.md": {"metrics": metrics_table},
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


def _model_table(*models: type[BaseModel]) -> str:
    """The fields of the models, each once, as the first that has it describes it."""
    rows: dict[str, list[str]] = {}
    for model in models:
        properties = model.model_json_schema()["properties"]
        for name, info in model.model_fields.items():
            rows.setdefault(name, [f"`{name}`", _type(properties[name]), _default(info), info.description or ""])
    return _table(["field", "type", "default", "meaning"], rows.values())


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
        return f"list of {_plural(kind['items'])}"
    if kind["type"] == "object":
        return "object of strings"
    low, high = kind.get("minimum"), kind.get("maximum")
    if low is not None and high is not None:
        return f"{kind['type']}, {low:g} to {high:,}".replace(",000,000", " million")
    return str(kind["type"])


_UNITS = {"_s": "seconds", "_ms": "milliseconds", "_bytes": "bytes"}
_WORDS = {"password": "secret text", "path": "path", "boolean": "`true` or `false`", "integer": "whole number"}


def _setting_type(field: str, schema: dict[str, Any]) -> str:
    """The type of a setting with its unit and its range, in a few words; names of fields end in their units."""
    kind = next(option for option in schema.get("anyOf", [schema]) if option.get("type") != "null")
    if "enum" in kind:
        return " or ".join(f"`{value}`" for value in kind["enum"])
    unit = next((unit for ending, unit in _UNITS.items() if field.endswith(ending)), None)
    if unit is None and field.endswith(("_url", "_uri")):
        return "URL"
    return (unit or _WORDS.get(kind.get("format", kind["type"]), "text")) + _range(kind)


def _range(kind: dict[str, Any]) -> str:
    low, above, high = kind.get("minimum"), kind.get("exclusiveMinimum"), kind.get("maximum")
    if low is not None and high is not None and high <= _SMALL:
        return f", {low} to {high}"
    if low is not None:
        return f", {low:g} or more"
    return "" if above is None else f", more than {above:g}"


_SMALL = 1000
"""The largest limit that is worth telling; beyond it a limit only keeps mistakes out."""


def _plural(items: dict[str, Any]) -> str:
    return {"string": "strings", "integer": "whole numbers"}.get(items.get("type", ""), "objects")


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
    return f"`{value}`" if isinstance(value, int | float | str | Path) and value != "" else ""


if __name__ == "__main__":
    write(Path(sys.argv[1]))
