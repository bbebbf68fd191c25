"""What there is: container groups and their instances, as plain records that ``fleet.py`` and ``world.py`` change.

Times ending in ``_at`` are seconds since the epoch; ``billed_from_s`` and ``phase_...`` are seconds since boot.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from kelpie_celery.local.salad.states import ACTIVE, GroupStatus, InstanceState

NO_MACHINE: Final = "00000000-0000-0000-0000-000000000000"  # an instance without a node must have an id of one
EVENTS_KEPT: Final = 50  # what the API's system log holds


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the group's system log."""

    name: str
    at: float
    version: int
    instance_id: str = ""
    machine_id: str = ""


@dataclass(eq=False, slots=True)
class Instance:
    """One instance: one slot of the group on one node.

    Attributes:
        phase: Rises whenever it goes elsewhere; what was planned for an earlier one is void.
        place: Its file system on the node.
        launched: A container was started with this id.
        alive: That container has not ended.
        failures: Non-zero exits in a row on this node.
    """

    id: str
    version: int
    place: str
    changed_at: float
    machine_id: str = NO_MACHINE
    state: InstanceState = InstanceState.ALLOCATING
    deletion_cost: int = 0
    phase: int = 0
    phase_began_s: float = 0.0
    phase_ends_s: float = 0.0
    launched: bool = False
    alive: bool = False
    failures: int = 0
    billed_from_s: float | None = None


@dataclass(eq=False, slots=True)
class Group:
    """One container group.

    Attributes:
        settings: The fields that are kept and shown as they were given: ``networking``, probes, ``readme`` ...
        replicas: The desired count.
        shown_status: What the API shows until ``shown_until_s``: an order is acknowledged a moment late.
        edit: A changed container that waits for its image; ``None`` when no image is prepared for an edit.
        preparation: Counts preparations; what an earlier one planned is void.
        start_when_prepared: Start as soon as the image is there.
        billed_s: Seconds of instances that are not ``running`` any more.
    """

    organization: str
    project: str
    id: str
    name: str
    display_name: str
    container: dict[str, Any]
    created_at: float
    autostart_policy: bool = False
    restart_policy: str = "always"
    priority: str = "high"
    country_codes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    queue_autoscaler: dict[str, Any] | None = None
    scaling_actions: list[dict[str, Any]] = field(default_factory=list)
    scheduled_scaling: bool = False
    command: tuple[str, ...] = ()
    replicas: int = 0
    status: GroupStatus = GroupStatus.PENDING
    description: str = ""
    shown_status: GroupStatus = GroupStatus.PENDING
    shown_until_s: float = 0.0
    version: int = 1
    edit: dict[str, Any] | None = None
    preparation: int = 0
    start_when_prepared: bool = False
    deleted: bool = False
    updated_at: float = 0.0
    started_at: float = 0.0
    finished_at: float = 0.0
    instances: list[Instance] = field(default_factory=list)
    billed_s: float = 0.0
    interruptions: int = 0
    moves: int = 0
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))

    @property
    def active(self) -> bool:
        """Whether it should have instances."""
        return self.status in ACTIVE and not self.deleted

    @property
    def preparing(self) -> bool:
        """Whether an image is being prepared, for the first time or for an edit."""
        return self.status is GroupStatus.PENDING or self.edit is not None

    @property
    def kept(self) -> list[Instance]:
        """The instances that are not on their way out."""
        return [instance for instance in self.instances if instance.state is not InstanceState.STOPPING]

    @property
    def pending_change(self) -> bool:
        """Whether a change is not on all containers yet."""
        return self.edit is not None or any(instance.version != self.version for instance in self.kept)

    @property
    def counted_replicas(self) -> int:
        """What it takes of the quota."""
        return int(self.queue_autoscaler["max_replicas"]) if self.queue_autoscaler else self.replicas

    def in_state(self, state: InstanceState) -> list[Instance]:
        """Its instances in one state."""
        return [instance for instance in self.instances if instance.state is state]

    def billed_until(self, now_s: float) -> float:
        """Seconds that its instances were ``running``, all together."""
        live = (now_s - i.billed_from_s for i in self.instances if i.billed_from_s is not None)
        return self.billed_s + sum(live)
