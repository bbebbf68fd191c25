"""How the scaler's decisions look on a terminal, and as JSON.

Limits: what an older scaler kept may lack fields; they are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from kelpie_celery.cli._text import clock_time, duration, iso_time, local_time, one_line
from kelpie_celery.cli._view import words

_STYLES = {"nothing": "", "error": "red", "suspended": "red", "move": "yellow"}


def decision_document(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A decision as JSON shows it."""
    facts = {name: value for name, value in entry.items() if name not in ("at", "until_at", "same", "count")}
    return {
        "at": iso_time(entry["at"]), "until": iso_time(entry["until_at"]), "count": int(entry.get("count", 1)), **facts
    }  # fmt: skip


def action_words(entry: Mapping[str, Any]) -> str:
    """``start 3``, ``set_replicas 2``, ``drain 1``, ``nothing``, ``move``, ``error``."""
    action = str(entry.get("action", ""))
    return action_words_of(str(entry.get("kind", "")), action, entry.get("drain" if action == "drain" else "replicas"))


def action_words_of(kind: str, action: str, number: int | None) -> str:
    """The same from its parts; ``number`` is of what is started, set or drained."""
    if kind != "decision":
        return kind
    return f"{action} {number}" if action in ("start", "set_replicas", "drain") else action


def decision_table(entries: Sequence[Mapping[str, Any]]) -> Table:
    """Decisions, one a row."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("when", no_wrap=True)
    table.add_column("times", justify="right")
    table.add_column("decision", no_wrap=True)
    for name in ("pending", "running", "workers", "replicas", "up"):
        table.add_column(name, justify="right")
    table.add_column("why", overflow="fold")
    for entry in entries:
        queue, workers, fleet = (entry.get(name) or {} for name in ("queue", "workers", "fleet"))
        table.add_row(
            _when(entry),
            str(entry.get("count", 1)),
            words(action_words(entry), _style(entry)),
            *(_number(value) for value in (queue.get("pending"), queue.get("running"), workers.get("workers"),
                                           fleet.get("replicas"), fleet.get("running"))),
            words(_why(entry)),
        )  # fmt: skip
    return table


def decision_details(entry: Mapping[str, Any], now: float) -> Table:
    """Everything about one decision."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    count = int(entry.get("count", 1))
    more = f", {count} times since {local_time(entry['at'])}" if count > 1 else ""
    table.add_row("decision", words(action_words(entry), _style(entry)))
    table.add_row("when", f"{local_time(entry['until_at'])} ({duration(now - entry['until_at'])} ago{more})")
    for number, reason in enumerate(entry.get("reasons") or ()):
        table.add_row("" if number else "because", words(reason))
    for name in ("instance", "machine"):
        if entry.get(name):
            table.add_row(name, words(entry[name]))
    for name, label in (("queue", "jobs"), ("workers", "workers"), ("fleet", "SaladCloud")):
        if entry.get(name):
            table.add_row(label, words(_facts(entry[name])))
    return table


def _when(entry: Mapping[str, Any]) -> str:
    begun = local_time(entry["at"])
    return f"{begun} to {clock_time(entry['until_at'])}" if int(entry.get("count", 1)) > 1 else begun


def _why(entry: Mapping[str, Any]) -> str:
    who = f"instance {entry['instance']}: " if entry.get("instance") else ""
    return who + "; ".join(one_line(reason) for reason in entry.get("reasons") or ())


def _style(entry: Mapping[str, Any]) -> str:
    return _STYLES.get(action_words(entry), "cyan")


def _number(value: object) -> str:
    return "" if value is None else str(value)


def _facts(facts: Mapping[str, Any]) -> str:
    """``pending 3, running 1``; what is empty or says no is left out."""
    told = []
    for name, value in facts.items():
        if isinstance(value, Mapping | list | tuple):
            if value:
                told.append(f"{name} {_inner(value)}")
        elif value is not False and value is not None:
            told.append(f"{name} {value}")
    return ", ".join(told).replace("_", " ")


def _inner(value: Mapping[str, Any] | Sequence[Any]) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}:{one}" for key, one in value.items())
    return " and ".join(map(str, value))
