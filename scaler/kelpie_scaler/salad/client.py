"""The calls of SaladCloud's API that scaling needs, and no others.

A group is changed in its count only (a merge patch of ``replicas``): any other field would restart every replica.
Counts are patched on a difference only. Limits: at most 100 groups of a project can be found by id, since the API lists
no more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kelpie_celery.errors import SaladNotFound
from kelpie_scaler.salad.model import Group, Instance, Quotas, group_of, instances_of, quotas_of
from kelpie_scaler.salad.transport import Transport

MAX_REPLICAS = 500


@dataclass(frozen=True)
class Place:
    """Where a container group is: names, as the API's paths have them."""

    organization: str
    project: str
    group: str = ""

    @property
    def path(self) -> str:
        """The path of the group, or of the project's groups."""
        groups = f"/organizations/{self.organization}/projects/{self.project}/containers"
        return f"{groups}/{self.group}" if self.group else groups


def _always() -> None:
    """Nobody else can have taken over."""


class SaladClient:
    """Calls by name; each raises ``SaladError`` and its kinds.

    Args:
        transport: Sends them.
        may_act: Called before each try of a call that changes something; whatever it raises ends it.
    """

    def __init__(self, transport: Transport, may_act: Callable[[], None] = _always) -> None:
        self._transport, self._may_act = transport, may_act

    def acting_while(self, may_act: Callable[[], None]) -> SaladClient:
        """The same client, whose changes depend on another condition."""
        return SaladClient(self._transport, may_act)

    def check(self) -> None:
        """Make sure that this client may change something now; raises what ``may_act`` raises."""
        self._may_act()

    # -- questions ------------------------------------------------------------------------------------------------

    def find_group(self, place: Place, group_id: str) -> Group:
        """The group with this id, or with this name, among the project's.

        Raises:
            SaladNotFound: There is none, or no such organization or project.
        """
        raw = self._transport.call("GET", Place(place.organization, place.project).path)
        found = _items(raw)
        for field in ("id", "name"):
            for one in found:
                # Only the one that is meant is read: another that cannot be read is none of this group's business.
                if str(one.get(field)).lower() == group_id.lower():
                    return group_of(one)
        raise SaladNotFound(
            f"no container group of project {place.project!r} in organization {place.organization!r} has the id "
            f"{group_id!r}; check container_group_id of the rule, and the names of organization and project",
            status=404,
        )

    def group(self, place: Place) -> Group:
        """One group."""
        return group_of(self._transport.call("GET", place.path))

    def instances(self, place: Place) -> list[Instance]:
        """The group's instances, as far as they are not gone."""
        return instances_of(self._transport.call("GET", f"{place.path}/instances"))

    def quotas(self, organization: str) -> Quotas:
        """The organization's quotas."""
        return quotas_of(self._transport.call("GET", f"/organizations/{organization}/quotas"))

    # -- changes --------------------------------------------------------------------------------------------------

    def set_replicas(self, place: Place, group: Group, replicas: int) -> Group:
        """Have another count of replicas; nothing is sent when the group has it already.

        Returns:
            The group as it is then.
        """
        if not 0 <= replicas <= MAX_REPLICAS:
            raise ValueError(f"replicas must be 0 to {MAX_REPLICAS}, not {replicas}")
        if group.facts.replicas == replicas:
            return group
        return group_of(self._change("PATCH", place.path, patch={"replicas": replicas}))

    def start(self, place: Place) -> None:
        """Start a group that is stopped; set the count first, or the old one starts."""
        self._change("POST", f"{place.path}/start")

    def stop(self, place: Place) -> None:
        """Stop a group, whose instances all end; they may run on for minutes."""
        self._change("POST", f"{place.path}/stop")

    def reallocate(self, place: Place, instance_id: str) -> None:
        """Move an instance to another node."""
        self._change("POST", f"{place.path}/instances/{instance_id}/reallocate")

    def _change(self, method: str, path: str, patch: dict[str, Any] | None = None) -> Any:
        return self._transport.call(method, path, patch=patch, may_act=self._may_act)


def _items(raw: Any) -> list[dict[str, Any]]:
    items = raw.get("items") if isinstance(raw, dict) else None
    return [one for one in items if isinstance(one, dict)] if isinstance(items, list) else []
