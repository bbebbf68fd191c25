"""The instances of all groups: how they come up, move, and go.

Pure: it plans on an ``Agenda`` and asks for effects; it starts no process and reads no clock of its own. One slot goes
allocating -> downloading -> creating -> running, and when its node is lost or it is moved, a new instance begins.

Rules with a source: scale-in takes what does not run yet first, then the lowest deletion cost; an interruption comes
without a signal; whatever ends by itself is started again on its node, with another file system, and is ``running`` and
billed all the while; about five non-zero exits in a row, and it moves. Assumed: the id is new at each start of the
container, and with it the deletion cost is 0 again; among equals, chance decides who goes.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from kelpie_celery.local.salad.agenda import Agenda
from kelpie_celery.local.salad.behaviour import Behaviour, Duration
from kelpie_celery.local.salad.effects import Effect, Freeze, Kill, Launch, Notify, Wipe
from kelpie_celery.local.salad.model import NO_MACHINE, Event, Group, Instance
from kelpie_celery.local.salad.states import INSTANCE_TRANSITIONS, GroupStatus, InstanceState

RELAUNCH_FLOOR_S: Final = 0.2  # real: a container that ends at once must not keep this machine busy

NODE_OFFLINE: Final = "Instance Interrupted (Node Offline)"
BY_USER: Final = "Instance Reallocated by User"
BY_IMDS: Final = "Instance Reallocated by IMDS Request"
BY_PLATFORM: Final = "Instance Reallocated by Platform"

# What is nearest to running is kept longest.
_GOES_FIRST: Final = (
    InstanceState.ALLOCATING, InstanceState.DOWNLOADING, InstanceState.CREATING, InstanceState.RUNNING,
)  # fmt: skip


class Fleet:
    """See the module.

    Attributes:
        effects: What is to be done to containers, in order; whoever does it empties the list.
        interruptions: Nodes that were lost, over all groups.
    """

    def __init__(
        self, behaviour: Behaviour, agenda: Agenda, new_id: Callable[[], str], on_event: Callable[[str, Event], None]
    ) -> None:
        """No group yet.

        Args:
            behaviour: How the platform behaves.
            agenda: What is planned, and the present.
            new_id: Makes an id that nothing had before.
            on_event: Told of every event with the name of its group.
        """
        self.effects: list[Effect] = []
        self.interruptions = 0
        self._behaviour, self._agenda, self._new_id, self._on_event = behaviour, agenda, new_id, on_event
        self._rng = random.Random(behaviour.seed)  # noqa: S311 -- chance that can be repeated, nothing secret
        self._groups: list[Group] = []
        if behaviour.interrupt_every_s:
            agenda.after(behaviour.interrupt_every_s, self._interrupt_somebody)

    # -- groups -------------------------------------------------------------------------------------------------------

    def adopt(self, group: Group) -> None:
        """Look after one more group."""
        self._groups.append(group)

    def reconcile(self, group: Group) -> None:
        """Begin what is missing, end what is too many."""
        wanted, kept = group.replicas if group.active else 0, group.kept
        for _ in range(wanted - len(kept)):
            self._begin(group)
        for instance in self._surplus(kept, len(kept) - wanted):
            self._end(group, instance)

    def _surplus(self, kept: list[Instance], number: int) -> list[Instance]:
        if number <= 0:
            return []
        mixed = self._rng.sample(kept, len(kept))
        return sorted(mixed, key=lambda one: (_GOES_FIRST.index(one.state), one.deletion_cost))[:number]

    def roll_out(self, group: Group, *, image: bool) -> None:
        """Bring every instance to the group's version, all at once.

        Args:
            group: Its version has risen.
            image: The image is another one, so it is downloaded again.
        """
        state = InstanceState.DOWNLOADING if image else InstanceState.CREATING
        for instance in group.kept:
            if instance.state is InstanceState.RUNNING or (image and instance.state is InstanceState.CREATING):
                self._start_over(group, instance, state, keep=False)
            else:
                instance.version = group.version

    # -- the way up ---------------------------------------------------------------------------------------------------

    def _begin(self, group: Group) -> None:
        place = self._new_id()
        instance = Instance(self._new_id(), group.version, place, self._agenda.wall_s)
        group.instances.append(instance)
        timings = self._behaviour.timings
        self._in_phase(instance, timings.allocate, partial(self._allocated, group, instance))

    def _allocated(self, group: Group, instance: Instance) -> None:
        instance.machine_id = self._new_id()
        self.note(group, "Instance Allocated", instance)
        self._download(group, instance)

    def _download(self, group: Group, instance: Instance) -> None:
        self._move_to(group, instance, InstanceState.DOWNLOADING)
        self._in_phase(instance, self._behaviour.timings.download, partial(self._create, group, instance))

    def _create(self, group: Group, instance: Instance) -> None:
        self._move_to(group, instance, InstanceState.CREATING)
        self._in_phase(instance, self._behaviour.timings.create, partial(self._run, group, instance))

    def _run(self, group: Group, instance: Instance) -> None:
        self._move_to(group, instance, InstanceState.RUNNING)
        instance.billed_from_s, instance.version = self._agenda.now_s, group.version
        if group.status is GroupStatus.DEPLOYING:
            group.status = GroupStatus.RUNNING
            group.started_at = self._agenda.wall_s
        self._launch(group, instance)
        lost = partial(self.lose, group, instance)
        self._later(instance, self._behaviour.run_s(self._rng), lost)

    def _launch(self, group: Group, instance: Instance) -> None:
        if instance.launched:
            instance.id, instance.deletion_cost = self._new_id(), 0
        instance.launched = instance.alive = True
        variables = group.container.get("environment_variables") or {}
        env = {**variables, **_platform_variables(group, instance)}
        env["HOSTNAME"] = variables.get("HOSTNAME", instance.id)
        launch = Launch(instance.id, group.name, instance.machine_id, instance.place, env, group.command)
        self.effects.append(launch)

    # -- the way down -------------------------------------------------------------------------------------------------

    def _end(self, group: Group, instance: Instance) -> None:
        if instance.state is not InstanceState.RUNNING:
            self._remove(group, instance)
            return
        self._move_to(group, instance, InstanceState.STOPPING)
        self._in_phase(instance, self._behaviour.timings.stop_lag, partial(self._stop, group, instance))

    def _stop(self, group: Group, instance: Instance) -> None:
        signum = self._behaviour.stop_signal
        if signum is None or not instance.alive:
            self._remove(group, instance)
            return
        self.effects.append(Notify(instance.id, signum))
        self._later(instance, self._behaviour.stop_grace_s, partial(self._remove, group, instance))

    def _remove(self, group: Group, instance: Instance) -> None:
        self._settle(group, instance)
        self._kill(instance)
        self._wipe(instance)
        instance.phase += 1
        group.instances.remove(instance)

    def lose(self, group: Group, instance: Instance, event: str = NODE_OFFLINE) -> None:
        """The node vanishes: it is silent at once, its processes are killed a little later."""
        self._settle(group, instance)
        self.note(group, event, instance)
        group.interruptions += 1
        self.interruptions += 1
        if instance.alive:
            self.effects.append(Freeze(instance.id))
            ends: list[Effect] = [Kill(instance.id), Wipe(instance.machine_id, instance.place)]
            silence_s = self.draw_s(self._behaviour.timings.silence)
            self._agenda.after(silence_s, partial(self.effects.extend, ends))
        instance.alive = False
        instance.phase += 1
        group.instances.remove(instance)
        self.reconcile(group)

    def _interrupt_somebody(self) -> None:
        self._agenda.after(self._behaviour.interrupt_every_s, self._interrupt_somebody)
        running = [(g, i) for g in self._groups for i in g.in_state(InstanceState.RUNNING) if i.alive]
        if running:
            self.lose(*self._rng.choice(running))

    # -- moves, restarts and exits ------------------------------------------------------------------------------------

    def move(self, group: Group, instance: Instance, event: str) -> None:
        """Reallocate it: a moment later its container is killed, and its slot begins on another node."""
        if instance.state is not InstanceState.STOPPING:
            self._act(instance, partial(self._move, group, instance, event))

    def _move(self, group: Group, instance: Instance, event: str) -> None:
        self.note(group, event, instance)
        group.moves += 1
        self._remove(group, instance)
        self.reconcile(group)

    def start_over(self, group: Group, instance: Instance, *, keep: bool) -> None:
        """Kill its container a moment later and start one on the same node.

        Args:
            group: Its group.
            instance: A running one; nothing happens to others.
            keep: With the same file system (restart), or a new one (recreate).
        """
        if instance.state is InstanceState.RUNNING:
            again = partial(self._start_over, group, instance, InstanceState.CREATING, keep=keep)
            self._act(instance, again)

    def _start_over(self, group: Group, instance: Instance, state: InstanceState, *, keep: bool) -> None:
        self.note(group, "Instance Restarted" if keep else "Instance Recreated", instance)
        self._settle(group, instance)
        self._kill(instance)
        if not keep:
            self._renew_place(instance)
        if state is InstanceState.DOWNLOADING:
            self._download(group, instance)
        else:
            self._create(group, instance)

    def exited(self, instance_id: str, code: int) -> None:
        """A container has ended by itself, or by somebody's hand outside of the platform.

        Args:
            instance_id: The one that it was started with.
            code: Its exit code; 128 + n for signal n.
        """
        for group, instance in self.everything():
            if instance.id == instance_id and instance.alive:
                instance.alive = False
                self._after_exit(group, instance, code)
                return

    def _after_exit(self, group: Group, instance: Instance, code: int) -> None:
        if instance.state is InstanceState.STOPPING:
            self._remove(group, instance)
            return
        self.note(group, f"Instance Exited:{code}", instance)
        instance.failures = instance.failures + 1 if code else 0
        if instance.failures > self._behaviour.exits_before_move:
            self._move(group, instance, BY_PLATFORM)
            return
        pause_s = self.draw_s(self._behaviour.timings.relaunch)
        self._later(instance, max(RELAUNCH_FLOOR_S, pause_s), partial(self._relaunch, group, instance))

    def _relaunch(self, group: Group, instance: Instance) -> None:
        self._renew_place(instance)
        self._launch(group, instance)

    # -- tools --------------------------------------------------------------------------------------------------------

    def draw_s(self, duration: Duration) -> float:
        """How long something takes this time, seconds."""
        return self._behaviour.draw_s(duration, self._rng)

    def drain(self) -> list[Effect]:
        """What is to be done to containers since the last call."""
        effects = list(self.effects)
        self.effects.clear()
        return effects

    def forget_gone(self) -> None:
        """Let go of deleted groups that have no instance any more."""
        self._groups = [group for group in self._groups if group.instances or not group.deleted]

    def everything(self) -> Iterator[tuple[Group, Instance]]:
        """Every instance with its group, those of deleted groups included."""
        return ((group, instance) for group in self._groups for instance in list(group.instances))

    def note(self, group: Group, name: str, instance: Instance | None = None) -> None:
        """Write into the group's system log."""
        machine = instance.machine_id if instance and instance.machine_id != NO_MACHINE else ""
        event = Event(name, self._agenda.wall_s, group.version, instance.id if instance else "", machine)
        group.events.append(event)
        self._on_event(group.name, event)

    def _move_to(self, group: Group, instance: Instance, state: InstanceState) -> None:
        if state is not instance.state and state not in INSTANCE_TRANSITIONS[instance.state]:
            raise AssertionError(f"an instance cannot go from {instance.state} to {state}")
        self._settle(group, instance)
        instance.state, instance.changed_at = state, self._agenda.wall_s
        if state is not InstanceState.STOPPING:
            self.note(group, f"Instance {state.value.capitalize()}", instance)

    def _settle(self, group: Group, instance: Instance) -> None:
        if instance.billed_from_s is not None:
            group.billed_s += self._agenda.now_s - instance.billed_from_s
            instance.billed_from_s = None

    def _in_phase(self, instance: Instance, duration: Duration, then: Callable[[], None]) -> None:
        delay_s = self.draw_s(duration)
        instance.phase += 1
        instance.phase_began_s, instance.phase_ends_s = self._agenda.now_s, self._agenda.now_s + delay_s
        self._later(instance, delay_s, then)

    def _later(self, instance: Instance, delay_s: float, then: Callable[[], None]) -> None:
        phase = instance.phase

        def act() -> None:
            if instance.phase == phase:
                then()

        self._agenda.after(delay_s, act)

    def _act(self, instance: Instance, then: Callable[[], None]) -> None:
        self._later(instance, self.draw_s(self._behaviour.timings.act), then)

    def _kill(self, instance: Instance) -> None:
        if instance.alive:
            self.effects.append(Kill(instance.id))
        instance.alive = False

    def _wipe(self, instance: Instance) -> None:
        if instance.launched:
            self.effects.append(Wipe(instance.machine_id, instance.place))

    def _renew_place(self, instance: Instance) -> None:
        self._wipe(instance)
        instance.place = self._new_id()


def _platform_variables(group: Group, instance: Instance) -> dict[str, str]:
    organization_id = str(uuid.uuid5(uuid.NAMESPACE_DNS, group.organization))
    project_id = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{group.project}.{group.organization}"))
    return {
        "SALAD_ORGANIZATION_NAME": group.organization,
        "SALAD_ORGANIZATION_ID": organization_id,
        "SALAD_PROJECT_NAME": group.project,
        "SALAD_PROJECT_ID": project_id,
        "SALAD_CONTAINER_GROUP_NAME": group.name,
        "SALAD_CONTAINER_GROUP_ID": group.id,
        "SALAD_INSTANCE_ID": instance.id,
        "SALAD_MACHINE_ID": instance.machine_id,
    }
