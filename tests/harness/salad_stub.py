"""As much of SaladCloud's API and of a node's metadata service as the tests of their clients need.

A group changes its status at once and its counts when the test says so. Limits: no rule of what is refused when.
"""

from __future__ import annotations

import copy
import re
from typing import Any

from tests.harness.http_stub import JSON, Asked, HttpStub, Reply

GROUP_ID = "6f1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d"
ORGANIZATION, PROJECT, NAME = "example-org", "default", "demo-workers"
KEY = "canary-key-0123456789"
MERGE_PATCH = "application/merge-patch+json"
NOW = "2026-05-04T09:12:44.1203377+00:00"

_GROUP: dict[str, Any] = {
    "id": GROUP_ID, "name": NAME, "display_name": "Demo workers", "organization_name": ORGANIZATION,
    "project_name": PROJECT,
    "container": {
        "image": "docker.io/example/worker:1.4.2", "command": [], "size": 1834210994,
        "hash": "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
        "resources": {"cpu": 4, "memory": 8192, "gpu_classes": ["0d3a7b1c-52f4-4f0e-9c11-7f2f1f0a9b21"]},
        "environment_variables": {}, "image_caching": True,
    },
    "autostart_policy": False, "restart_policy": "always", "replicas": 0, "priority": "low", "country_codes": [],
    "current_state": {
        "status": "stopped", "description": "", "start_time": NOW, "finish_time": NOW,
        "instance_status_counts": {},
    },
    "pending_change": False, "version": 4, "create_time": NOW, "update_time": NOW,
    "scheduled-scaling-enabled": False, "scaling-actions": [],
}  # fmt: skip


def group_body(**more: Any) -> dict[str, Any]:
    """A container group as the API gives it; ``status`` and ``running`` and the like go where they belong."""
    body = copy.deepcopy(_GROUP)
    state = body["current_state"]
    for name in ("allocating", "creating", "running", "stopping"):
        state["instance_status_counts"][f"{name}_count"] = more.pop(name, 0)
    state["status"] = more.pop("status", "stopped")
    return body | more


def instance_body(number: int, **more: Any) -> dict[str, Any]:
    """An instance that runs, on a machine of its own."""
    return {
        "id": f"b7f0c9de-1c2b-4f6a-a0d4-{number:012d}", "machine_id": f"51d2aa3e-97b4-5c56-8f0e-{number:012d}",
        "state": "running", "update_time": NOW, "version": 4, "started": True, "ready": True, "deletion_cost": 1,
        **more,
    }  # fmt: skip


def problem(status: int, detail: str, **headers: str) -> Reply:
    """An error as the API words it."""
    return Reply(status, {"type": "about:blank", "title": "Error", "status": status, "detail": detail}, headers=headers)


class SaladStub(HttpStub):
    """Groups by name, their instances, and the quotas of one organization."""

    prefix = "/api/public"

    def __init__(self) -> None:
        super().__init__()
        self.groups: dict[str, dict[str, Any]] = {NAME: group_body()}
        self.instances: dict[str, list[dict[str, Any]]] = {}
        self.moves_a_minute = 10

    def answer(self, asked: Asked) -> Reply:
        if asked.headers.get("Salad-Api-Key") != KEY:
            return problem(401, "bad key")
        path = asked.path.removeprefix(self.prefix)
        if path == f"/organizations/{ORGANIZATION}/quotas":
            return Reply(200, self._quotas())
        found = re.fullmatch(
            rf"/organizations/{ORGANIZATION}/projects/{PROJECT}/containers(?:/([^/]+)(?:/(.+))?)?", path
        )
        if not found:
            return problem(404, "no such path")
        name, more = found.groups()
        if name is None:
            return Reply(200, {"items": list(self.groups.values())})
        if name not in self.groups:
            return problem(404, f"No container group named '{name}' in this project.")
        return self._of_group(asked, self.groups[name], name, more)

    def _of_group(self, asked: Asked, group: dict[str, Any], name: str, more: str | None) -> Reply:
        if more is None and asked.method == "PATCH":
            assert asked.headers["Content-Type"] == MERGE_PATCH
            group |= asked.body
            return Reply(200, group, MERGE_PATCH)
        if more is None:
            return Reply(200, group)
        if more in ("start", "stop"):
            group["current_state"]["status"] = {"start": "deploying", "stop": "stopped"}[more]
            return Reply(202)
        if more == "instances":
            return Reply(200, {"instances": self.instances.get(name, [])})
        assert more.endswith("/reallocate")
        known = [one["id"] for one in self.instances.get(name, [])]
        return Reply(202) if more.split("/")[1] in known else problem(404, "no such instance")

    def _quotas(self) -> dict[str, Any]:
        kinds = ("reallocations", "recreates", "restarts")
        limits = {f"max_container_group_{kind}_per_minute": self.moves_a_minute for kind in kinds}
        of_replicas = {"container_replicas_quota": 100, "container_replicas_used": 37}
        return {"container_groups_quotas": of_replicas | limits, "create_time": NOW, "update_time": NOW}


class ImdsStub(HttpStub):
    """The metadata service of one node."""

    service = "imds"

    def __init__(self) -> None:
        super().__init__()
        self.costs: list[int] = []
        self.reasons: list[str] = []

    def answer(self, asked: Asked) -> Reply:
        forwarded = [name for name in asked.headers if name.lower().startswith("x-forwarded")]
        if asked.headers.get("Metadata") != "true" or forwarded:
            return problem(403, "the header Metadata is missing")
        if asked.path == "/v1/deletion-cost" and asked.method == "PUT":
            self.costs.append(asked.body["deletion_cost"])
            return Reply(204)
        if asked.path == "/v1/deletion-cost":
            return Reply(200, {"deletion_cost": self.costs[-1] if self.costs else 0}, JSON)
        if asked.path == "/v1/reallocate":
            self.reasons.append(asked.body["reason"])
            return Reply(204)
        return Reply(204) if asked.path in ("/v1/recreate", "/v1/restart") else problem(404, "no such path")
