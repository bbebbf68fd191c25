"""The simulated organization: its container groups, its quotas, and every operation of the API on them.

Pure, as ``fleet.py`` is. Whoever calls an operation, or reads anything, calls ``tick`` before. Limits: one organization
with one project. The queue autoscaler knows an empty queue, so it goes to its minimum; scheduled scaling is kept and
shown, and does nothing.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from kelpie_celery.clock import Clock
from kelpie_celery.local.errors import LocalStackError
from kelpie_celery.local.salad import refusals
from kelpie_celery.local.salad.agenda import Agenda
from kelpie_celery.local.salad.behaviour import Behaviour
from kelpie_celery.local.salad.bodies import NAME, GroupPatch, InstancePatch, Prototype
from kelpie_celery.local.salad.edits import changed_container, new_container, set_common
from kelpie_celery.local.salad.errors import Refusal
from kelpie_celery.local.salad.fleet import BY_IMDS, BY_USER, Fleet
from kelpie_celery.local.salad.model import NO_MACHINE, Event, Group, Instance
from kelpie_celery.local.salad.states import GROUP_TRANSITIONS, GroupStatus, InstanceState

MINUTE_S: Final = 60.0
DEFAULT_POLLING_S: Final = 15.0

log = logging.getLogger(__name__)


class World:
    """See the module.

    Attributes:
        organization: Its name; the path of every operation begins with it.
        project: The name of its project.
        fleet: The instances.
        agenda: What is planned, and the present.
        behaviour: How the platform behaves.
    """

    def __init__(
        self,
        behaviour: Behaviour,
        clock: Clock,
        *,
        organization: str = "local",
        project: str = "default",
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
        on_event: Callable[[str, Event], None] = lambda _group, _event: None,
    ) -> None:
        """An organization without a group.

        Args:
            behaviour: How the platform behaves.
            clock: Where time comes from.
            organization: Its name.
            project: The name of its project.
            new_id: Makes an id that nothing had before.
            on_event: Told of every event with the name of its group.

        Raises:
            LocalStackError: A name that the platform would not take.
        """
        for what, name in (("an organization", organization), ("a project", project)):
            if re.fullmatch(NAME, name) is None:
                rule = "2 to 63 lower-case letters, digits and '-', a letter first and no '-' last"
                raise LocalStackError(f"{name!r} is no name of {what}; use {rule}")
        self.behaviour, self.organization, self.project = behaviour, organization, project
        self.agenda = Agenda(clock)
        self.fleet = Fleet(behaviour, self.agenda, new_id, on_event)
        self.created_at = self.agenda.wall_s
        self.replicas_quota = behaviour.replicas_quota
        self._new_id = new_id
        self._chance = self.fleet.draw_s
        self._groups: dict[str, Group] = {}
        self._reserved_until: dict[str, float] = {}
        self._acted: defaultdict[str, deque[float]] = defaultdict(deque)

    def tick(self) -> None:
        """Let happen what is due."""
        self.agenda.run_due()
        self.fleet.forget_gone()

    # -- looking ------------------------------------------------------------------------------------------------------

    @property
    def groups(self) -> list[Group]:
        """All groups, the oldest first."""
        return list(self._groups.values())

    def group(self, name: str) -> Group:
        """One group.

        Raises:
            Refusal: 404.
        """
        if name not in self._groups:
            raise Refusal(404, f"No container group named '{name}' in this project.")
        return self._groups[name]

    def instance(self, group: Group, instance_id: str) -> Instance:
        """One instance of a group, by its id or, as older clients have it, by the id of its machine.

        Raises:
            Refusal: 404.
        """
        for instance in group.instances:
            if instance.id == instance_id:
                return instance
        for instance in group.instances:
            if instance.machine_id == instance_id != NO_MACHINE:
                log.info(
                    "an instance was named by its machine id",
                    extra={"action": "salad_sim_machine_id", "machine_id": instance_id},
                )
                return instance
        raise Refusal(404, f"No instance '{instance_id}' in container group '{group.name}'.")

    def container(self, instance_id: str) -> tuple[Group, Instance]:
        """The instance whose container was started with this id, also of a deleted group.

        Raises:
            Refusal: 404; it is gone.
        """
        for group, instance in self.fleet.everything():
            if instance.id == instance_id:
                return group, instance
        raise Refusal(404, "There is no such container instance.", code="not-found")

    @property
    def replicas_used(self) -> int:
        """What all groups, running or stopped, take of the quota."""
        return sum(group.counted_replicas for group in self.groups)

    def shown_status(self, group: Group) -> GroupStatus:
        """The status that the API shows."""
        return group.shown_status if self.agenda.now_s < group.shown_until_s else group.status

    # -- groups -------------------------------------------------------------------------------------------------------

    def create(self, body: Prototype, *, group_id: str | None = None, command: Sequence[str] = ()) -> Group:
        """Create a group; it is ``pending`` until its image is prepared.

        Args:
            body: What the API takes.
            group_id: Its id; a new one by default.
            command: What its containers run; empty for the simulator's own choice.

        Raises:
            Refusal: 400, the name is taken; 403, the quota does not suffice.
        """
        self._check_name(body.name)
        self._check_quota(body.queue_autoscaler.max_replicas if body.queue_autoscaler else body.replicas)
        now = self.agenda.wall_s
        group = Group(
            organization=self.organization, project=self.project, id=group_id or self._new_id(), name=body.name,
            display_name=body.display_name or body.name, container=new_container(body), created_at=now,
            autostart_policy=body.autostart_policy, restart_policy=body.restart_policy,
            priority=body.container.priority or "high", command=tuple(command), replicas=body.replicas,
            start_when_prepared=body.autostart_policy, updated_at=now, started_at=now, finished_at=now,
        )  # fmt: skip
        set_common(group, body)
        self._groups[group.name] = group
        self.fleet.adopt(group)
        self._follow_queue(group)
        self._prepare(group)
        return group

    def _check_name(self, name: str) -> None:
        if name in self._groups:
            raise Refusal(400, f"A container group named '{name}' exists already.")
        if self.behaviour.strict and self.agenda.now_s < self._reserved_until.get(name, 0.0):
            raise Refusal(400, f"The container group '{name}' is being deleted; its name is free in some minutes.")

    def _check_quota(self, more: int) -> None:
        if more > 0 and self.replicas_used + more > self.replicas_quota:
            raise Refusal(
                403,
                f"The quota of {self.replicas_quota} replicas is exceeded: {self.replicas_used} are in use by all"
                f" container groups, running or stopped, and {more} more were asked for.",
            )

    def patch(self, name: str, body: GroupPatch) -> Group:
        """Change a group.

        Raises:
            Refusal: 404; 400, its state does not allow it; 403, the quota does not suffice.
        """
        group = self.group(name)
        refusals.check_patch(group, strict=self.behaviour.strict)
        scaler = (
            body.queue_autoscaler.model_dump(exclude_none=True) if body.queue_autoscaler else group.queue_autoscaler
        )
        replicas = group.replicas if body.replicas is None else body.replicas
        self._check_quota((scaler["max_replicas"] if scaler else replicas) - group.counted_replicas)
        if replicas != group.replicas:
            self._log(group, f"Container Group Desired Replica Count Updated from {group.replicas} to {replicas}")
        group.replicas, group.queue_autoscaler, group.updated_at = replicas, scaler, self.agenda.wall_s
        restarts = set_common(group, body)
        self._change_container(group, body, restarts)
        self._follow_queue(group)
        self.fleet.reconcile(group)
        return group

    def _change_container(self, group: Group, body: GroupPatch, restarts: bool) -> None:
        changed = changed_container(group.edit or group.container, body)
        if changed["image"] != group.container["image"]:
            group.edit = changed
            self._prepare(group)
            return
        keys = ("command", "environment_variables")
        restarts |= any(changed.get(key) != group.container.get(key) for key in keys)
        group.container, group.edit = changed, None
        if restarts:
            self._new_version(group, image=False)

    def _new_version(self, group: Group, *, image: bool) -> None:
        group.version += 1
        self._log(group, f"Container Group Updated (Version {group.version})")
        self.fleet.roll_out(group, image=image)

    def start(self, name: str) -> None:
        """Start a group.

        Raises:
            Refusal: 404; 400, its status does not allow it.
        """
        group = self.group(name)
        if not refusals.may_start(group, strict=self.behaviour.strict):
            return
        if group.status is GroupStatus.PENDING:
            group.start_when_prepared = True
            return
        self._deploy(group)

    def stop(self, name: str) -> None:
        """Stop a group; its containers go on for a while.

        Raises:
            Refusal: 404; 400, its status does not allow it.
        """
        group = self.group(name)
        if not refusals.may_stop(group, strict=self.behaviour.strict):
            return
        group.start_when_prepared = False
        if group.status is not GroupStatus.PENDING:
            self._order(group, GroupStatus.STOPPED, "Container Group Stopped")
            group.finished_at = self.agenda.wall_s
            self.fleet.reconcile(group)

    def delete(self, name: str) -> None:
        """Delete a group; its containers go on for a while.

        Raises:
            Refusal: 404.
        """
        group = self.group(name)
        del self._groups[name]
        group.deleted = True
        reserved_s = self._chance(self.behaviour.timings.reserved)
        self._reserved_until[name] = self.agenda.now_s + reserved_s
        self.fleet.reconcile(group)

    def force_status(self, name: str, status: GroupStatus) -> None:
        """Put a new group into a status without waiting, for tests and demos.

        Raises:
            Refusal: 400; the status cannot be reached.
        """
        group = self.group(name)
        group.preparation += 1
        group.edit, group.start_when_prepared = None, False
        if status is GroupStatus.SUCCEEDED:
            raise Refusal(400, "No container group becomes 'succeeded'.")
        group.status = group.shown_status = status
        self.fleet.reconcile(group)
        if status is GroupStatus.PENDING:
            self._prepare(group)

    def _deploy(self, group: Group) -> None:
        self._order(group, GroupStatus.DEPLOYING, "Container Group Started")
        group.started_at = self.agenda.wall_s
        self.fleet.reconcile(group)

    def _order(self, group: Group, status: GroupStatus, event: str) -> None:
        group.shown_status = self.shown_status(group)
        self._become(group, status)
        group.shown_until_s = self.agenda.now_s + self._chance(self.behaviour.timings.acknowledge)
        group.description = ""
        self._log(group, event)

    def _become(self, group: Group, status: GroupStatus) -> None:
        if status not in GROUP_TRANSITIONS[group.status]:
            raise AssertionError(f"a group cannot go from {group.status} to {status}")
        group.status = status

    def _prepare(self, group: Group) -> None:
        group.preparation += 1
        if group.status is GroupStatus.FAILED:
            group.start_when_prepared = group.autostart_policy
        if group.status in {GroupStatus.FAILED, GroupStatus.STOPPED}:
            self._become(group, GroupStatus.PENDING)
        delay_s = self._chance(self.behaviour.timings.prepare)
        self.agenda.after(delay_s, partial(self._prepared, group, group.preparation))

    def _prepared(self, group: Group, preparation: int) -> None:
        if group.preparation != preparation or group.deleted:
            return
        edit, group.edit = group.edit, None
        image = (edit or group.container)["image"]
        failed = image in self.behaviour.bad_images
        group.description = f"The image '{image}' cannot be pulled."[:1000] if failed else ""
        if edit is not None and not failed:
            group.container = edit
            self._new_version(group, image=True)
        if group.status is GroupStatus.PENDING:
            self._become(group, GroupStatus.FAILED if failed else GroupStatus.STOPPED)
            if group.start_when_prepared and not failed:
                self._deploy(group)

    def _follow_queue(self, group: Group) -> None:
        """The vendor's autoscaler, with an empty queue: what was patched is overridden a little later."""
        if group.queue_autoscaler is None:
            return
        scaler = group.queue_autoscaler

        def poll() -> None:
            if group.queue_autoscaler is scaler and group.replicas != scaler["min_replicas"] and not group.deleted:
                group.replicas = scaler["min_replicas"]
                self.fleet.reconcile(group)

        self.agenda.after(scaler.get("polling_period", DEFAULT_POLLING_S) / self.behaviour.time_factor, poll)

    # -- instances ----------------------------------------------------------------------------------------------------

    def patch_instance(self, instance: Instance, body: InstancePatch) -> None:
        """Set its deletion cost."""
        if "deletion_cost" in body.model_fields_set:
            instance.deletion_cost = body.deletion_cost or 0

    def reallocate(self, group: Group, instance: Instance, *, by_imds: bool = False) -> None:
        """Move an instance to another node, a moment later.

        Raises:
            Refusal: 429; too many in this minute by the API (IMDS has no such answer).
        """
        if not by_imds:
            self._limit("reallocate")
        self.fleet.move(group, instance, BY_IMDS if by_imds else BY_USER)

    def start_over(self, group: Group, instance: Instance, *, keep: bool, by_imds: bool = False) -> None:
        """Restart (``keep`` its files) or recreate an instance, a moment later.

        Raises:
            Refusal: 429; too many in this minute. 400; it does not run, and the mode is strict.
        """
        if self.behaviour.strict and instance.state is not InstanceState.RUNNING:
            raise Refusal(400, f"The instance is {instance.state}; only a running one can be restarted or recreated.")
        if not by_imds:
            self._limit("restart" if keep else "recreate")
        self.fleet.start_over(group, instance, keep=keep)

    def _limit(self, action: str) -> None:
        times, now_s = self._acted[action], self.agenda.now_s
        while times and times[0] <= now_s - MINUTE_S:
            times.popleft()
        if len(times) >= self.behaviour.actions_per_minute:
            raise Refusal(429, f"The organization may {action} {self.behaviour.actions_per_minute} instances a minute.")
        times.append(now_s)

    def interrupt(self, instance_id: str) -> None:
        """Let the node of an instance vanish.

        Raises:
            Refusal: 404.
        """
        group, instance = self.container(instance_id)
        self.fleet.lose(group, instance)

    def _log(self, group: Group, event: str) -> None:
        self.fleet.note(group, event)
