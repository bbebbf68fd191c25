"""What the scaler keeps of each look at a group: the decision, why, and what it was made of.

Limits: entries hold plain values; they are read by ``kelpie scaler`` and by nobody else. The same nothing in a row is
one entry with a count, whose facts are the newest.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from kelpie_celery.ledger.fleet import FleetView
from kelpie_celery.scaling.facts import FleetFacts, QueueFacts
from kelpie_scaler.decision import Action, Decision


def decided(
    decision: Decision, queue: QueueFacts, view: FleetView, fleet: FleetFacts, notes: tuple[str, ...] = ()
) -> tuple[dict[str, Any], str]:
    """The entry of a decision, and the digest by which the same nothing is known again (empty for deeds).

    Args:
        decision: What was decided.
        queue: The work that it was made of.
        view: The workers.
        fleet: The instances.
        notes: What happened when it was carried out, and what a person should know besides.
    """
    workers = {**asdict(view.facts), "condemned": view.condemned}
    facts = {"queue": _counts(queue), "workers": workers, "fleet": asdict(fleet)}
    entry = {
        "kind": "decision",
        "action": decision.action.value,
        "replicas": decision.replicas,
        "drain": decision.drain,
        "reasons": [*decision.reasons, *notes],
        **facts,
        "oldest_pending_s": round(queue.oldest_pending_s, 1),
    }
    same = _digest([decision.action, decision.replicas, decision.drain, notes, facts])
    return entry, same if decision.action is Action.NOTHING else ""


def trouble(error: str, *, kind: str = "error") -> tuple[dict[str, Any], str]:
    """The entry of a look that failed, and its digest."""
    return {"kind": kind, "reasons": [error]}, _digest([kind, error])


def _counts(queue: QueueFacts) -> dict[str, Any]:
    by = {str(priority): count for priority, count in queue.pending_by_priority.items()}
    counts = {"pending": queue.pending, "delayed": queue.delayed, "running": queue.running, "lapsed": queue.lapsed}
    return {**counts, "by_priority": by}


def _digest(what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]
