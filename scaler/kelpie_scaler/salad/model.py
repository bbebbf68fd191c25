"""What SaladCloud's answers are read as.

The API is an alpha: fields were renamed before, so older names are read too, and what is not needed is not asked for.
Source: the OpenAPI specification 0.9.0-alpha.17 and its forerunners. Limits: plain values; a missing count is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kelpie_celery.errors import SaladUnavailable
from kelpie_celery.scaling.facts import FleetFacts, GroupStatus


@dataclass(frozen=True)
class Group:
    """A container group: its id, its name, and what a decision needs."""

    id: str
    name: str
    facts: FleetFacts

    @property
    def asleep(self) -> bool:
        """Whether it was stopped, or never started, or cannot be; instances may live on for minutes."""
        return self.facts.status in (GroupStatus.STOPPED, GroupStatus.FAILED)

    @property
    def settled(self) -> bool:
        """Whether SaladCloud has nothing left to remove."""
        f = self.facts
        return not f.stopping and f.allocating + f.creating + f.running <= f.replicas and not f.pending_change


@dataclass(frozen=True)
class Instance:
    """One replica: ``since`` is the last change of its state, seconds since the epoch."""

    id: str
    machine_id: str
    state: str
    since: float
    deletion_cost: int


@dataclass(frozen=True)
class Quotas:
    """The organization's limits: replicas over all its groups, and moves a minute."""

    replicas: int
    used: int
    reallocations_per_minute: int


def group_of(raw: Any) -> Group:
    """A container group.

    Raises:
        SaladUnavailable: The answer is none.
    """
    try:
        return _group(raw)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise _unreadable("a container group", e) from None


def instances_of(raw: Any) -> list[Instance]:
    """The instances of a group.

    Raises:
        SaladUnavailable: The answer is none.
    """
    try:
        return [_instance(one) for one in raw["instances"]]
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise _unreadable("instances", e) from None


def quotas_of(raw: Any) -> Quotas:
    """The organization's quotas.

    Raises:
        SaladUnavailable: The answer is none.
    """
    try:
        found = raw["container_groups_quotas"]
        return Quotas(
            int(_first(found, "container_replicas_quota", "container_instance_quota") or 0),
            int(found.get("container_replicas_used") or 0),
            int(found.get("max_container_group_reallocations_per_minute") or 0),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise _unreadable("quotas", e) from None


def _unreadable(what: str, error: Exception) -> SaladUnavailable:
    return SaladUnavailable(
        f"SaladCloud's answer cannot be read as {what} ({type(error).__name__}: {error}); if it stays so, its API has "
        "changed, and kelpie-celery must be updated"
    )


def _group(raw: Mapping[str, Any]) -> Group:
    state = raw["current_state"]
    counts = _first(state, "instance_status_counts", "instance_status_count") or {}
    facts = FleetFacts(
        status=GroupStatus(state["status"]),
        replicas=int(raw["replicas"]),
        allocating=int(counts.get("allocating_count") or 0),
        creating=int(counts.get("creating_count") or 0),
        running=int(counts.get("running_count") or 0),
        stopping=int(counts.get("stopping_count") or 0),
        pending_change=bool(raw.get("pending_change")),
        autoscaled_by=tuple(_autoscalers(raw)),
    )
    return Group(str(raw["id"]), str(raw["name"]), facts)


def _autoscalers(raw: Mapping[str, Any]) -> list[str]:
    found = []
    if raw.get("queue_autoscaler"):
        found.append("queue autoscaler")
    if raw.get("scheduled-scaling-enabled") and raw.get("scaling-actions"):
        found.append("scheduled scaling")
    return found


def _instance(raw: Mapping[str, Any]) -> Instance:
    return Instance(
        id=str(_first(raw, "id", "instance_id") or ""),
        machine_id=str(raw.get("machine_id") or ""),
        state=str(raw["state"]),
        since=datetime.fromisoformat(raw["update_time"]).timestamp(),
        deletion_cost=int(raw.get("deletion_cost") or 0),
    )


def _first(raw: Mapping[str, Any], *names: str) -> Any:
    return next((raw[name] for name in names if raw.get(name) is not None), None)
