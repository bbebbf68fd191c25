"""Groups, instances, quotas and errors as the API's JSON has them.

The names of fields are the specification's: plural ``instance_status_counts``, hyphens in ``scaling-actions`` and
``scheduled-scaling-enabled``. Assumed: instances in ``downloading`` are counted as creating; a group that was never
started shows its creation as ``start_time`` and ``finish_time``, which are required.
"""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from kelpie_celery.local.salad.bodies import MAX_DELETION_COST
from kelpie_celery.local.salad.errors import Refusal
from kelpie_celery.local.salad.model import Event, Group, Instance
from kelpie_celery.local.salad.states import InstanceState
from kelpie_celery.local.salad.world import World

GPU_NAME = "Simulated GPU"


def timestamp(at: float) -> str:
    """A time as the live service writes it: seven digits behind the point, ``+00:00``."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "0+00:00"


def of_group(world: World, group: Group) -> dict[str, Any]:
    """A ``ContainerGroup``."""
    scaler = {"queue_autoscaler": group.queue_autoscaler} if group.queue_autoscaler else {}
    return {
        "id": group.id,
        "name": group.name,
        "display_name": group.display_name,
        "organization_name": group.organization,
        "project_name": group.project,
        "container": group.container,
        "autostart_policy": group.autostart_policy,
        "restart_policy": group.restart_policy,
        "replicas": group.replicas,
        "priority": group.priority,
        "country_codes": group.country_codes,
        "current_state": _state(world, group),
        "pending_change": group.pending_change,
        "version": group.version,
        "create_time": timestamp(group.created_at),
        "update_time": timestamp(group.updated_at),
        "scheduled-scaling-enabled": group.scheduled_scaling,
        "scaling-actions": group.scaling_actions,
        **group.settings,
        **scaler,
    }


def _state(world: World, group: Group) -> dict[str, Any]:
    return {
        "status": world.shown_status(group).value,
        "description": group.description,
        "start_time": timestamp(group.started_at),
        "finish_time": timestamp(group.finished_at),
        "instance_status_counts": counts(group),
    }


def counts(group: Group) -> dict[str, int]:
    """``instance_status_counts``."""
    number = {state: len(group.in_state(state)) for state in InstanceState}
    return {
        "allocating_count": number[InstanceState.ALLOCATING],
        "creating_count": number[InstanceState.DOWNLOADING] + number[InstanceState.CREATING],
        "running_count": number[InstanceState.RUNNING],
        "stopping_count": number[InstanceState.STOPPING],
    }


def of_instance(world: World, instance: Instance) -> dict[str, Any]:
    """A ``ContainerGroupInstance``."""
    up = instance.state in {InstanceState.RUNNING, InstanceState.STOPPING}
    view: dict[str, Any] = {
        "id": instance.id,
        "machine_id": instance.machine_id,
        "state": instance.state.value,
        "update_time": timestamp(instance.changed_at),
        "version": instance.version,
        "started": up,
        "ready": up,
        # IMDS takes a wider range than the API may show.
        "deletion_cost": min(MAX_DELETION_COST, max(0, instance.deletion_cost)),
    }
    if instance.state is InstanceState.DOWNLOADING:
        view["pulling_progress"] = _progress(world, instance)
    return view


def _progress(world: World, instance: Instance) -> float:
    whole_s = instance.phase_ends_s - instance.phase_began_s
    done_s = world.agenda.now_s - instance.phase_began_s
    return round(min(100.0, 100.0 * done_s / whole_s), 1) if whole_s > 0 else 100.0


def of_quotas(world: World) -> dict[str, Any]:
    """A ``Quotas``."""
    a_minute = world.behaviour.actions_per_minute
    return {
        "container_groups_quotas": {
            "container_replicas_quota": world.replicas_quota,
            "container_replicas_used": world.replicas_used,
            "max_container_group_reallocations_per_minute": a_minute,
            "max_container_group_recreates_per_minute": a_minute,
            "max_container_group_restarts_per_minute": a_minute,
        },
        "create_time": timestamp(world.created_at),
        "update_time": timestamp(world.created_at),
    }


def of_event(group: Group, event: Event) -> dict[str, Any]:
    """A ``SystemLog``; its resources are bounded by what a node can have."""
    resources = group.container["resources"]
    ids = {"instance_id": event.instance_id, "machine_id": event.machine_id}
    return {
        "event_name": event.name,
        "event_time": timestamp(event.at),
        "version": str(event.version),
        "resource_cpu": min(16, resources["cpu"]),
        "resource_memory": min(61_440, resources["memory"]),
        "resource_gpu_class": GPU_NAME if resources["gpu_classes"] else "",
        "resource_storage_amount": min(268_435_456_000, resources.get("storage_amount", 1_073_741_824)),
        **{name: value for name, value in ids.items() if value},
    }


def problem(refusal: Refusal, *, imds: bool = False) -> dict[str, Any]:
    """A problem document; IMDS adds a code, and what is wrong with which field."""
    base: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(refusal.status).phrase,
        "status": refusal.status,
        "detail": refusal.detail,
    }
    if not imds:
        return base
    fields = {"errors": refusal.fields} if refusal.fields else {}
    return {**base, "code": refusal.code or HTTPStatus(refusal.status).phrase.lower().replace(" ", "-"), **fields}
