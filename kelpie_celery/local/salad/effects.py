"""What the state machine wants done to containers; ``containers.py`` does it, in this order.

A container is named by its instance id, which is new at each start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Launch:
    """Start the container.

    Attributes:
        group: The group's name, for the log file.
        place: Its file system; what an earlier container left in the same place is there.
        env: The variables of the platform and of the group.
        command: What to run; empty for the simulator's own choice.
    """

    instance_id: str
    group: str
    machine_id: str
    place: str
    env: Mapping[str, str] = field(repr=False)
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Freeze:
    """Let every process of it stand still: connections stay open, nothing is answered."""

    instance_id: str


@dataclass(frozen=True, slots=True)
class Notify:
    """Send a signal to its first process."""

    instance_id: str
    signum: int


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL to every process of it."""

    instance_id: str


@dataclass(frozen=True, slots=True)
class Wipe:
    """Erase a file system."""

    machine_id: str
    place: str


Effect = Launch | Freeze | Notify | Kill | Wipe
