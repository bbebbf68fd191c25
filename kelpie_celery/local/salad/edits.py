"""From the bodies of requests to the fields of a group.

Limits: hash and size of an image are made up; nothing is pulled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from kelpie_celery.local.salad.bodies import GroupPatch, Prototype
from kelpie_celery.local.salad.model import Group

IMAGE_BYTES: Final = 5_500_000_000
IMAGE: Final = "docker.io/example/worker:1"
GPU_CLASS: Final = "0d3a7b1c-52f4-4f0e-9c11-7f2f1f0a9b21"

_KEPT_AS_GIVEN: Final = ("networking", "liveness_probe", "readiness_probe", "startup_probe", "queue_connection")


def default_prototype(
    name: str, replicas: int, env: Mapping[str, str] | None, more: Mapping[str, Any]
) -> dict[str, Any]:
    """The API's body for a group of which little is said.

    Args:
        name: Its name.
        replicas: The desired count.
        env: Its own variables.
        more: Fields of the body that win over the defaults.
    """
    container = {
        "image": IMAGE,
        "resources": {"cpu": 4, "memory": 8192, "gpu_classes": [GPU_CLASS]},
        **({"environment_variables": dict(env)} if env else {}),
    }
    fields = {"autostart_policy": False, "restart_policy": "always", "container": container, **more}
    return {**fields, "name": name, "replicas": replicas}


def new_container(body: Prototype) -> dict[str, Any]:
    """``container`` of a new group, as the API shows it."""
    given = body.container.model_dump(mode="json", exclude_none=True, exclude={"priority"})
    given["resources"] = {"gpu_classes": [], **given["resources"]}
    return {"command": [], **given, **_image_facts(given["image"])}


def changed_container(before: dict[str, Any], body: GroupPatch) -> dict[str, Any]:
    """``container`` after a patch."""
    if body.container is None:
        return before
    given = body.container.model_dump(mode="json", exclude_none=True, exclude={"priority", "resources"})
    resources = body.container.resources
    more = resources.model_dump(mode="json", exclude_none=True) if resources else {}
    changed = {**before, **given, "resources": {**before["resources"], **more}}
    return {**changed, **_image_facts(changed["image"])}


def _image_facts(image: str) -> dict[str, Any]:
    return {"hash": f"sha256:{hashlib.sha256(image.encode()).hexdigest()}", "size": IMAGE_BYTES}


def set_common(group: Group, body: Prototype | GroupPatch) -> bool:
    """Set what a creation and a patch have in common; whether it makes a new version."""
    given = body.model_fields_set
    if "display_name" in given:
        group.display_name = body.display_name or group.name
    if "country_codes" in given:
        group.country_codes = list(body.country_codes or ())
    if body.scaling_actions is not None:
        group.scaling_actions = [action.model_dump() for action in body.scaling_actions]
    if body.scheduled_scaling is not None:
        group.scheduled_scaling = body.scheduled_scaling
    if body.queue_autoscaler is not None:
        group.queue_autoscaler = body.queue_autoscaler.model_dump(exclude_none=True)
    if body.container is not None and body.container.priority is not None:
        group.priority = body.container.priority
    before = dict(group.settings)
    for name in _KEPT_AS_GIVEN:
        _keep(group, name, body)
    return group.settings != before


def _keep(group: Group, name: str, body: Prototype | GroupPatch) -> None:
    if name not in body.model_fields_set:
        return
    value = getattr(body, name)
    if value is None:
        if name.endswith("_probe"):
            group.settings.pop(name, None)
        return
    given = value.model_dump(exclude_none=True)
    if name == "networking":
        given = {"dns": f"{group.name}.local", "load_balancer": "round_robin", **group.settings.get(name, {}), **given}
    group.settings[name] = given
