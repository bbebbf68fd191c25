"""A simulated SaladCloud in virtual time: fixed timings, ids that can be read, and what its containers were told."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from kelpie_celery.clock import ManualClock
from kelpie_celery.local.salad.behaviour import Behaviour, Timings, fixed
from kelpie_celery.local.salad.bodies import GroupPatch, Prototype, parsed
from kelpie_celery.local.salad.effects import Effect, Kill, Launch
from kelpie_celery.local.salad.model import Group, Instance
from kelpie_celery.local.salad.states import GroupStatus, InstanceState
from kelpie_celery.local.salad.world import World

TIMINGS = Timings(
    prepare=fixed(20), acknowledge=fixed(0.4), allocate=fixed(30), download=fixed(100), create=fixed(10),
    stop_lag=fixed(40), act=fixed(5), relaunch=fixed(2), silence=fixed(30), reserved=fixed(180),
)  # fmt: skip
UP_S = 140.0  # allocate, download, create
GPU_CLASS = "0d3a7b1c-52f4-4f0e-9c11-7f2f1f0a9b21"
IMAGE = "docker.io/example/worker:1"
NAME = "demo-workers"
AUTOSCALER = {"desired_queue_length": 1, "max_replicas": 7, "min_replicas": 1, "polling_period": 15}


def prototype(name: str = NAME, **fields: Any) -> dict[str, Any]:
    """The body that creates a group."""
    resources = {"cpu": 4, "memory": 8192, "gpu_classes": [GPU_CLASS]}
    return {
        "name": name, "replicas": 3, "autostart_policy": False, "restart_policy": "always",
        "container": {"image": IMAGE, "resources": resources}, **fields,
    }  # fmt: skip


@dataclass
class Sim:
    """The world and the clock that moves it."""

    world: World
    clock: ManualClock
    done: list[Effect] = field(default_factory=list)

    def group(self, name: str = NAME) -> Group:
        return self.world.group(name)

    def patch(self, name: str = NAME, **body: Any) -> Group:
        self.world.tick()
        return self.world.patch(name, parsed(GroupPatch, body))

    def create(self, name: str = NAME, **fields: Any) -> Group:
        self.world.tick()
        return self.world.create(parsed(Prototype, prototype(name, **fields)))

    def in_status(self, status: GroupStatus, name: str = NAME, **fields: Any) -> Group:
        """A group that is in a status at once."""
        group = self.create(name, **fields)
        if status is not GroupStatus.PENDING:
            self.world.force_status(name, status)
        return group

    def after(self, seconds: float) -> None:
        """Let time pass, and note what was asked of the containers."""
        self.clock.advance(seconds)
        self.world.tick()
        self.done += self.world.fleet.drain()

    def up(self, replicas: int = 3, **fields: Any) -> Group:
        """A group whose instances all run."""
        group = self.in_status(GroupStatus.DEPLOYING, replicas=replicas, **fields)
        self.after(UP_S)
        assert len(group.in_state(InstanceState.RUNNING)) == replicas
        return group

    def exit(self, instance: Instance, code: int) -> None:
        """Its container ends by itself."""
        self.world.tick()
        self.world.fleet.exited(instance.id, code)

    def launched(self) -> list[Launch]:
        return [effect for effect in self.done if isinstance(effect, Launch)]

    def killed(self) -> list[str]:
        return [effect.instance_id for effect in self.done if isinstance(effect, Kill)]


def simulated(*, timings: Timings = TIMINGS, **behaviour: Any) -> Sim:
    """A new one; nothing is lost by chance unless asked for."""
    clock, numbers = ManualClock(), itertools.count(1)
    chosen = Behaviour(**{"seed": 1, "mean_run_s": 0.0, **behaviour}, timings=timings)
    world = World(chosen, clock, new_id=lambda: f"00000000-0000-4000-8000-{next(numbers):012d}")
    return Sim(world, clock)


def states(group: Group) -> list[str]:
    """The states of its instances, sorted."""
    return sorted(instance.state.value for instance in group.instances)
