"""What the answers of SaladCloud's API and IMDS must look like: required and allowed fields with their types.

Written from the vendor's OpenAPI specifications (API 0.9.0-alpha.17, IMDS 0.9.0-alpha.3), apart from the simulator.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
NAME = re.compile(r"[a-z][a-z0-9-]{0,61}[a-z0-9]")

Check = Callable[[Any], bool]


def text(pattern: re.Pattern[str] = re.compile(r"[^\n]*")) -> Check:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def whole(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def number(low: float, high: float) -> Check:
    return lambda value: type(value) in {int, float} and low <= value <= high


def one_of(*values: object) -> Check:
    return lambda value: value in values


def list_of(check: Check, longest: int) -> Check:
    return lambda value: isinstance(value, list) and len(value) <= longest and all(map(check, value))


def flag(value: object) -> bool:
    return isinstance(value, bool)


def shape(required: dict[str, Check], optional: dict[str, Check] | None = None) -> Check:
    known = {**(optional or {}), **required}

    def check(value: Any) -> bool:
        if not isinstance(value, dict) or not required.keys() <= value.keys() <= known.keys():
            raise AssertionError(f"fields {sorted(value)} instead of {sorted(required)} and perhaps others")
        wrong = [f"{name}={value[name]!r}" for name in value if not known[name](value[name])]
        assert not wrong, wrong
        return True

    return check


COUNT = whole(0, 2**31 - 1)
RESOURCES = shape(
    {"cpu": whole(1, 1024), "memory": whole(1024, 2**30), "gpu_classes": list_of(text(UUID), 100)},
    {"shm_size": whole(64, 2**30), "storage_amount": whole(2**30, 2**50)},
)
CONTAINER = shape(
    {"command": list_of(text(), 100), "image": text(), "resources": RESOURCES},
    {
        "hash": text(re.compile(r"sha\d{1,3}:[a-fA-F0-9]{40,135}")),
        "size": whole(0, 2**63 - 1),
        "environment_variables": lambda value: isinstance(value, dict) and all(map(text(), value.values())),
        "image_caching": flag,
    },
)
STATE = shape(
    {
        "status": one_of("pending", "running", "stopped", "succeeded", "failed", "deploying"),
        "start_time": text(TIME),
        "finish_time": text(TIME),
        "instance_status_counts": shape(
            {"allocating_count": COUNT, "creating_count": COUNT, "running_count": COUNT, "stopping_count": COUNT}
        ),
    },
    {"description": text()},
)
AUTOSCALER = shape(
    {"desired_queue_length": whole(1, 100), "max_replicas": whole(1, 500), "min_replicas": whole(0, 100)},
    {
        "max_downscale_per_minute": whole(1, 100),
        "max_upscale_per_minute": whole(1, 100),
        "polling_period": whole(15, 1800),
    },
)
GROUP = shape(
    {
        "id": text(UUID),
        "name": text(NAME),
        "display_name": text(re.compile(r"[ ,-.0-9A-Za-z]{2,63}")),
        "organization_name": text(NAME),
        "project_name": text(NAME),
        "container": CONTAINER,
        "autostart_policy": flag,
        "restart_policy": one_of("always", "on_failure", "never"),
        "replicas": whole(0, 500),
        "priority": one_of("high", "medium", "low", "batch"),
        "country_codes": list_of(text(re.compile("[a-z]{2}")), 500),
        "current_state": STATE,
        "pending_change": flag,
        "version": whole(1, 2**31 - 1),
        "create_time": text(TIME),
        "update_time": text(TIME),
        "scheduled-scaling-enabled": flag,
        "scaling-actions": list_of(shape({"replicas": whole(0, 500), "schedule": text()}), 100),
    },
    {"queue_autoscaler": AUTOSCALER, "readiness_probe": lambda value: isinstance(value, dict)},
)
INSTANCE = shape(
    {
        "id": text(UUID),
        "machine_id": text(UUID),
        "state": one_of("allocating", "downloading", "creating", "running", "stopping"),
        "update_time": text(TIME),
        "version": whole(1, 2**31 - 1),
    },
    {"ready": flag, "started": flag, "deletion_cost": whole(0, 100_000), "pulling_progress": number(0, 100)},
)
QUOTAS = shape(
    {
        "container_groups_quotas": shape(
            {"container_replicas_quota": COUNT, "container_replicas_used": COUNT},
            {f"max_container_group_{what}_per_minute": COUNT for what in ("reallocations", "recreates", "restarts")},
        )
    },
    {"create_time": text(TIME), "update_time": text(TIME)},
)
LOG = shape(
    {
        "event_name": text(re.compile(".{1,255}")),
        "event_time": text(TIME),
        "version": text(),
        "resource_cpu": whole(1, 16),
        "resource_memory": whole(1024, 61_440),
        "resource_gpu_class": text(),
        "resource_storage_amount": whole(2**30, 268_435_456_000),
    },
    {"instance_id": text(UUID), "machine_id": text(UUID)},
)
PROBLEM_FIELDS: dict[str, Check] = {
    "type": one_of("about:blank"),
    "title": text(re.compile(".{1,2000}")),
    "status": whole(400, 599),
    "detail": text(re.compile(".{1,2000}")),
}
PROBLEM = shape(PROBLEM_FIELDS)
IMDS_PROBLEM = shape(
    {**PROBLEM_FIELDS, "code": text(re.compile(".{1,100}"))},
    {"errors": lambda value: isinstance(value, dict) and all(list_of(text(), 200)(one) for one in value.values())},
)


def nothing(value: object) -> bool:
    return value is None


P = r"/organizations/[^/]+/projects/[^/]+/containers"
G = P + r"/[^/]+"
I = G + r"/instances/[0-9a-f-]{36}"  # noqa: E741 -- as the vendor's pages abbreviate it
ANSWERS: list[tuple[str, str, str, int, Check]] = [
    ("api", "GET", P, 200, shape({"items": list_of(GROUP, 100)})),
    ("api", "POST", P, 201, GROUP),
    ("api", "GET", G, 200, GROUP),
    ("api", "PATCH", G, 200, GROUP),
    ("api", "DELETE", G, 202, nothing),
    ("api", "POST", G + "/(start|stop)", 202, nothing),
    ("api", "GET", G + "/system-logs", 200, shape({"items": list_of(LOG, 50)})),
    ("api", "GET", G + "/instances", 200, shape({"instances": list_of(INSTANCE, 1000)})),
    ("api", "GET", I, 202, INSTANCE),
    ("api", "PATCH", I, 200, INSTANCE),
    ("api", "POST", I + "/(reallocate|recreate|restart)", 202, nothing),
    ("api", "GET", "/organizations/[^/]+/quotas", 200, QUOTAS),
    ("imds", "GET", "/v1/status", 200, shape({"ready": flag, "started": flag})),
    ("imds", "GET", "/v1/token", 200, shape({"jwt": text(re.compile(".{1,1000}"))})),
    ("imds", "GET", "/v1/deletion-cost", 200, shape({"deletion_cost": whole(-(2**31), 2**31 - 1)})),
    ("imds", "PUT", "/v1/deletion-cost", 204, nothing),
    ("imds", "POST", "/v1/(reallocate|recreate|restart)", 204, nothing),
]


def check_exchange(record: dict[str, Any]) -> int | None:
    """See that an answer is one of the specification's.

    Returns:
        Which line of ``ANSWERS`` it is; None for an error.
    """
    service, method, status, body = record["service"], record["method"], record["status"], record["response"]
    if status >= 400:
        assert isinstance(body, str) or (PROBLEM if service == "api" else IMDS_PROBLEM)(body)
        assert isinstance(body, str) or body["status"] == status
        return None
    path = re.sub(r"^.*/api/public|^/imds/[^/]+", "", urlsplit(record["url"]).path)
    for index, (of, verb, pattern, expected, check) in enumerate(ANSWERS):
        if (of, verb) == (service, method) and re.fullmatch(pattern, path):
            assert status == expected, (method, path, status)
            assert check(body), (method, path, body)
            return index
    raise AssertionError(f"{service} {method} {path} is not in the specification")


def exchanges(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a recording."""
    for line in path.read_text().splitlines():
        yield json.loads(line)
