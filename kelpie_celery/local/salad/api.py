"""The operations of SaladCloud's public API that the simulator has, by the specification's ids.

Container groups, their instances and system logs, and quotas. Assumed: a request with a body of the wrong type is
refused (415) when strict; the answer to "get instance" has status 202, as the specification says, when strict, and
200 otherwise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from kelpie_celery.clock import Clock
from kelpie_celery.local.salad import views
from kelpie_celery.local.salad.bodies import GroupPatch, InstancePatch, Prototype, parsed
from kelpie_celery.local.salad.errors import Refusal
from kelpie_celery.local.salad.exchange import JSON, MERGE_PATCH, Act, Answer, Call
from kelpie_celery.local.salad.model import Group, Instance
from kelpie_celery.local.salad.world import World

PREFIX: Final = "/api/public"
KEY_HEADER: Final = "Salad-Api-Key"
MINUTE_S: Final = 60.0
_ORGANIZATION: Final = PREFIX + "/organizations/{organization}"
_GROUPS: Final = _ORGANIZATION + "/projects/{project}/containers"
_GROUP: Final = _GROUPS + "/{group}"
_INSTANCES: Final = _GROUP + "/instances"
_INSTANCE: Final = _INSTANCES + "/{instance}"
_LIST_LIMIT: Final = 100
_INSTANCES_LIMIT: Final = 1000


class ApiGate:
    """Who may call the API: the key must be right, and not used too often."""

    def __init__(self, key: str, a_minute: int, clock: Clock) -> None:
        self._key, self._a_minute, self._clock = key, a_minute, clock
        self._calls: deque[float] = deque()

    def __call__(self, call: Call) -> None:
        """Let a call pass.

        Raises:
            Refusal: 401, the key is missing or wrong; 429, too many requests.
        """
        if call.headers.get(KEY_HEADER) != self._key:
            raise Refusal(401, f"The header {KEY_HEADER} is missing, or its key is not valid.")
        now_s = self._clock.boottime()
        while self._calls and self._calls[0] <= now_s - MINUTE_S:
            self._calls.popleft()
        if self._a_minute and len(self._calls) >= self._a_minute:
            raise Refusal(429, f"More than {self._a_minute} requests in a minute; try again later.")
        self._calls.append(now_s)


def operations() -> Iterator[tuple[str, str, str, Act]]:
    """Every operation: method, path, id, and what carries it out."""
    yield "GET", _GROUPS, "list_container_groups", list_groups
    yield "POST", _GROUPS, "create_container_group", create_group
    yield "GET", _GROUP, "get_container_group", get_group
    yield "PATCH", _GROUP, "update_container_group", update_group
    yield "DELETE", _GROUP, "delete_container_group", delete_group
    yield "POST", _GROUP + "/start", "start_container_group", start_group
    yield "POST", _GROUP + "/stop", "stop_container_group", stop_group
    yield "GET", _GROUP + "/system-logs", "get_system_logs", system_logs
    yield "GET", _INSTANCES, "list_container_group_instances", list_instances
    yield "GET", _INSTANCE, "get_container_group_instance", get_instance
    yield "PATCH", _INSTANCE, "update_container_group_instance", update_instance
    yield "POST", _INSTANCE + "/reallocate", "reallocate_container_group_instance", reallocate
    yield "POST", _INSTANCE + "/recreate", "recreate_container_group_instance", recreate
    yield "POST", _INSTANCE + "/restart", "restart_container_group_instance", restart
    yield "GET", _ORGANIZATION + "/quotas", "get_quotas", quotas


def list_groups(world: World, call: Call) -> Answer:
    """``GET .../containers``; the newest beyond 100 cannot be reached."""
    _project(world, call)
    return Answer(200, {"items": [views.of_group(world, group) for group in world.groups[:_LIST_LIMIT]]})


def create_group(world: World, call: Call) -> Answer:
    """``POST .../containers``."""
    _project(world, call)
    _check_type(world, call, JSON)
    group = world.create(parsed(Prototype, call.body))
    place = f"{PREFIX}/organizations/{world.organization}/projects/{world.project}/containers/{group.name}"
    return Answer(201, views.of_group(world, group), headers={"Location": place})


def get_group(world: World, call: Call) -> Answer:
    """``GET .../containers/{name}``."""
    return Answer(200, views.of_group(world, _group(world, call)))


def update_group(world: World, call: Call) -> Answer:
    """``PATCH .../containers/{name}``; the answer has the type of a merge patch, as specified."""
    group = _group(world, call)
    _check_type(world, call, MERGE_PATCH)
    world.patch(group.name, parsed(GroupPatch, call.body))
    return Answer(200, views.of_group(world, group), MERGE_PATCH)


def delete_group(world: World, call: Call) -> Answer:
    """``DELETE .../containers/{name}``."""
    world.delete(_group(world, call).name)
    return Answer(202)


def start_group(world: World, call: Call) -> Answer:
    """``POST .../start``; a body is not looked at."""
    world.start(_group(world, call).name)
    return Answer(202)


def stop_group(world: World, call: Call) -> Answer:
    """``POST .../stop``; a body is not looked at."""
    world.stop(_group(world, call).name)
    return Answer(202)


def system_logs(world: World, call: Call) -> Answer:
    """``GET .../system-logs``: the last 50 events."""
    group = _group(world, call)
    return Answer(200, {"items": [views.of_event(group, event) for event in group.events]})


def list_instances(world: World, call: Call) -> Answer:
    """``GET .../instances``."""
    shown = _group(world, call).instances[:_INSTANCES_LIMIT]
    return Answer(200, {"instances": [views.of_instance(world, instance) for instance in shown]})


def get_instance(world: World, call: Call) -> Answer:
    """``GET .../instances/{id}``."""
    _, instance = _instance(world, call)
    return Answer(202 if world.behaviour.strict else 200, views.of_instance(world, instance))


def update_instance(world: World, call: Call) -> Answer:
    """``PATCH .../instances/{id}``."""
    _, instance = _instance(world, call)
    _check_type(world, call, MERGE_PATCH)
    world.patch_instance(instance, parsed(InstancePatch, call.body))
    return Answer(200, views.of_instance(world, instance))


def reallocate(world: World, call: Call) -> Answer:
    """``POST .../reallocate``."""
    world.reallocate(*_instance(world, call))
    return Answer(202)


def recreate(world: World, call: Call) -> Answer:
    """``POST .../recreate``."""
    world.start_over(*_instance(world, call), keep=False)
    return Answer(202)


def restart(world: World, call: Call) -> Answer:
    """``POST .../restart``."""
    world.start_over(*_instance(world, call), keep=True)
    return Answer(202)


def quotas(world: World, call: Call) -> Answer:
    """``GET .../quotas``."""
    _organization(world, call)
    return Answer(200, views.of_quotas(world))


def nothing_here(_world: World, _call: Call) -> Answer:
    """Any other path."""
    raise Refusal(404, "There is no such operation.", code="not-found")


def _organization(world: World, call: Call) -> None:
    if call.names["organization"] != world.organization:
        raise Refusal(404, f"No organization named '{call.names['organization']}'.")


def _project(world: World, call: Call) -> None:
    _organization(world, call)
    if call.names["project"] != world.project:
        raise Refusal(404, f"No project named '{call.names['project']}' in this organization.")


def _group(world: World, call: Call) -> Group:
    _project(world, call)
    return world.group(call.names["group"])


def _instance(world: World, call: Call) -> tuple[Group, Instance]:
    group = _group(world, call)
    return group, world.instance(group, call.names["instance"])


def _check_type(world: World, call: Call, wanted: str) -> None:
    accepted = {wanted} if world.behaviour.strict else {wanted, JSON}
    if call.media_type not in accepted:
        raise Refusal(415, f"The content type is '{call.media_type[:100] or 'missing'}' instead of {wanted}.")
