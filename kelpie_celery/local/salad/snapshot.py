"""Groups and instances at one moment, for whoever looks at the simulator from Python; they do not change any more."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kelpie_celery.local.salad.model import Group
from kelpie_celery.local.salad.states import GroupStatus, InstanceState
from kelpie_celery.local.salad.world import World


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One instance.

    Attributes:
        alive: Its container runs (it is being started, at least).
        pid: The first process of its container; ``None`` while there is none.
    """

    id: str
    machine_id: str
    state: InstanceState
    deletion_cost: int
    version: int
    alive: bool
    pid: int | None


@dataclass(frozen=True, slots=True)
class GroupView:
    """One group.

    Attributes:
        status: What the API shows.
        replicas: The desired count.
        running_s: Seconds that its instances were ``running``, all together: what is billed. Real seconds.
        interruptions: Nodes that it lost.
        moves: Instances that were moved to another node, by whomever.
        events: The last 50 of its system log, the oldest first.
    """

    id: str
    name: str
    status: GroupStatus
    replicas: int
    version: int
    instances: tuple[InstanceView, ...]
    running_s: float
    interruptions: int
    moves: int
    events: tuple[str, ...]

    @property
    def gpu_hours(self) -> float:
        """Billed hours, at one GPU an instance."""
        return self.running_s / 3600.0

    def count(self, state: InstanceState | str) -> int:
        """Instances in one state."""
        return sum(instance.state == state for instance in self.instances)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "gpu_hours": self.gpu_hours}


def of_group(world: World, group: Group, pids: dict[str, int | None]) -> GroupView:
    """A group as it is now.

    Args:
        world: What it is part of.
        group: It.
        pids: By instance id: the first process of the container.
    """
    instances = tuple(
        InstanceView(
            one.id, one.machine_id, one.state, one.deletion_cost, one.version, one.alive, pids.get(one.id)
        )
        for one in group.instances
    )  # fmt: skip
    return GroupView(
        group.id, group.name, world.shown_status(group), group.replicas, group.version, instances,
        group.billed_until(world.agenda.now_s), group.interruptions, group.moves,
        tuple(event.name for event in group.events),
    )  # fmt: skip
