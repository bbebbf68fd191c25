"""``SaladSim``: a SaladCloud on this machine, for tests, for demos and for trying one's own rules.

Two threads: one serves HTTP (``server.py``), one drives (this module): it lets happen what is due, does to the
containers what that asks for, and notices those that end. The state machine is shared under one lock.

Limits: one organization with one project. What the real platform does and nobody has described is assumed; see
``docs/salad-sim.md``.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from kelpie_celery.clock import Clock, SystemClock
from kelpie_celery.local.errors import LocalStackError
from kelpie_celery.local.machine import inherited
from kelpie_celery.local.ports import LOOPBACK
from kelpie_celery.local.salad import api, control, imds, snapshot
from kelpie_celery.local.salad.behaviour import Behaviour
from kelpie_celery.local.salad.bodies import Prototype, parsed
from kelpie_celery.local.salad.containers import Containers, program
from kelpie_celery.local.salad.edits import default_prototype
from kelpie_celery.local.salad.exchange import Answer, Exchanges
from kelpie_celery.local.salad.faults import Fault, Faults
from kelpie_celery.local.salad.model import Event
from kelpie_celery.local.salad.recording import Recording
from kelpie_celery.local.salad.server import Server
from kelpie_celery.local.salad.snapshot import GroupView
from kelpie_celery.local.salad.states import GroupStatus
from kelpie_celery.local.salad.world import World

POLL_S: Final = 0.05  # how soon a container's own end is noticed

T = TypeVar("T")
R = TypeVar("R")
log = logging.getLogger(__name__)


class SaladSim:
    """See the module. All methods may be called from any thread.

    Attributes:
        directory: Where files and logs of the containers are.
        organization: The name of its organization.
        project: The name of its project.
        api_key: What clients send as ``Salad-Api-Key``.
    """

    def __init__(
        self,
        directory: Path,
        behaviour: Behaviour | None = None,
        *,
        command: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        slots: int = 1,
        organization: str = "local",
        project: str = "default",
        api_key: str | None = None,
        port: int = 0,
        record: Path | None = None,
        faults: Iterable[Fault] = (),
        clock: Clock | None = None,
        on_event: Callable[[str, Event], None] = lambda _group, _event: None,
    ) -> None:
        """A simulator that is not started yet.

        Args:
            directory: Where to keep everything.
            behaviour: How the platform behaves; strict and at real speed by default.
            command: What a container runs; ``kelpie-worker`` by default.
            env: More environment for every container, over the surrounding one: Redis, storage.
            slots: ``KELPIE_SLOTS`` of every container.
            organization: The name of its organization.
            project: The name of its project.
            api_key: The key that it takes; a random one by default.
            port: Where to listen on loopback; 0 for a free port.
            record: A file that gets every exchange; appended to.
            faults: Faults that are ordered from the start.
            clock: Where time comes from.
            on_event: Told of every event with the name of its group, under the lock: it may not wait.

        Raises:
            LocalStackError: The command is no program that can be run.
        """
        self.directory, self.organization, self.project = directory.resolve(), organization, project
        self.api_key = api_key or secrets.token_urlsafe(24)
        self._behaviour, self._clock = behaviour or Behaviour(), clock or SystemClock()
        self._command = program(command)
        self._env, self._slots, self._port, self._record = dict(env or {}), slots, port, record
        self._faults = Faults(faults, self._behaviour.seed)
        self._changed = threading.Condition(threading.RLock())
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._failure: BaseException | None = None
        self._driver: threading.Thread | None = None
        self._server: Server | None = None
        self._recording = Recording(None)
        self._turn = 0
        self._world = World(
            self._behaviour, self._clock, organization=organization, project=project, on_event=on_event
        )  # fmt: skip
        self._containers = self._new_containers()

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Serve and drive.

        Raises:
            LocalStackError: It runs already, was stopped before, or cannot listen or write.
        """
        if self._server is not None or self._stopping.is_set():
            raise LocalStackError("this simulator was started before; make another one")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._recording = Recording(self._record)
        server = self._new_server()
        server.start()
        self._server = server
        self._driver = threading.Thread(target=self._drive, name="salad-sim", daemon=True)
        self._driver.start()

    def stop(self) -> None:
        """Kill every container and stop serving; harmless when done twice.

        Raises:
            LocalStackError: The simulator failed while it ran, or something is left; the rest is stopped nevertheless.
        """
        self._stopping.set()
        self._wake.set()
        if self._driver is not None:
            self._driver.join()
        try:
            self._containers.kill_all()
        finally:
            if self._server is not None:
                self._server.stop()
            self._recording.close()
        self.check()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- where it is --------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The root of everything that it serves.

        Raises:
            LocalStackError: It was never started.
        """
        if self._server is None:
            raise LocalStackError("the simulator has no address before it is started")
        return f"http://{self._server.host}:{self._server.port}"

    @property
    def api_url(self) -> str:
        """The API's base URL, in place of ``https://api.salad.com/api/public``."""
        return self.url + api.PREFIX

    def metadata_url(self, instance_id: str) -> str:
        """The base URL of one instance's metadata service: what its container has as ``SALAD_METADATA_URI``."""
        return f"{self.url}{imds.PREFIX}/{instance_id}"

    def env(self) -> dict[str, str]:
        """What a scaler needs in its environment; it holds a secret."""
        return {"KELPIE_SALAD_API_URL": self.api_url, "SALAD_API_KEY": self.api_key}

    # -- looking ------------------------------------------------------------------------------------------------------

    @property
    def groups(self) -> dict[str, GroupView]:
        """All groups as they are now, by name."""
        with self._changed:
            self._world.tick()
            return {group.name: self._view(group.name) for group in self._world.groups}

    def group(self, name: str) -> GroupView:
        """One group as it is now.

        Raises:
            Refusal: 404; there is none.
        """
        with self._changed:
            self._world.tick()
            return self._view(name)

    @property
    def interruptions(self) -> int:
        """Nodes that were lost so far, over all groups."""
        with self._changed:
            return self._world.fleet.interruptions

    def wait_until(self, predicate: Callable[[SaladSim], T | None], timeout_s: float) -> T:
        """Wait until something is so.

        Args:
            predicate: Asked with the simulator after whatever happens; true-like ends the waiting.
            timeout_s: How long, real seconds.

        Returns:
            What the predicate gave.

        Raises:
            LocalStackError: It was not so in time, or the simulator failed; the message shows the groups.
        """
        deadline = self._clock.boottime() + timeout_s
        while True:
            turn = self._turn
            self.check()
            # Without the lock: it may well ask the simulator over HTTP.
            if found := predicate(self):
                return found
            left_s = deadline - self._clock.boottime()
            if left_s <= 0:
                raise LocalStackError(f"not within {timeout_s:g} s; the groups are {list(self.groups.values())}")
            self._await_turn(turn, left_s)
            self._clock.sleep(POLL_S)  # what the predicate itself asks over HTTP counts as a change, too

    # -- acting -------------------------------------------------------------------------------------------------------

    def create_group(
        self,
        name: str,
        *,
        group_id: str | None = None,
        replicas: int = 0,
        status: GroupStatus | str = GroupStatus.STOPPED,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] = (),
        **more: Any,
    ) -> GroupView:
        """Create a group that is in a status at once.

        Args:
            name: Its name.
            group_id: Its id, a UUID; a new one by default.
            replicas: The desired count.
            status: ``stopped`` by default; ``pending`` waits for its image, as one made through the API does.
            env: Its own variables.
            command: What its containers run, instead of the simulator's choice; here, not in the API, where the
                command is one of the image.
            more: More fields of the API's body.

        Raises:
            Refusal: The API would refuse it.
        """
        body = parsed(Prototype, default_prototype(name, replicas, env, more))
        wanted, argv = GroupStatus(status), program(command) if command else ()

        def create(world: World) -> GroupView:
            world.create(body, group_id=group_id, command=argv)
            if wanted is not GroupStatus.PENDING:
                world.force_status(name, wanted)
            return self._view(name)

        return self._do(create)

    def interrupt(self, instance_id: str) -> None:
        """Let the node of an instance vanish, now.

        Raises:
            Refusal: 404; there is no such instance.
        """
        self._do(lambda world: world.interrupt(instance_id))

    def fail(self, kind: int | str, **options: Any) -> Fault:
        """Order a fault.

        Args:
            kind: A status from 400 on, or ``html``, ``quota``, ``slow``, ``drop``, ``lost``.
            options: ``times``, ``operation``, ``retry_after_s``, ``delay_s``, ``rate``, ``service``: see ``Fault``.

        Returns:
            The fault; its ``done`` says how often it has struck.

        Raises:
            LocalStackError: There is no such fault.
        """
        fault = Fault(str(kind), **options)
        with self._changed:
            self._faults.order(fault)
        return fault

    def clear_faults(self) -> None:
        """Take back all faults."""
        with self._changed:
            self._faults.clear()

    def set_quota(self, replicas: int) -> None:
        """Change the organization's quota of replicas."""

        def change(world: World) -> None:
            world.replicas_quota = replicas

        self._do(change)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _do(self, act: Callable[[World], R]) -> R:
        """Act on the world, with everything done that was due, and wake whoever waits."""
        with self._changed:
            self._world.tick()
            try:
                return act(self._world)
            finally:
                self._tell()
                self._wake.set()

    def _view(self, name: str) -> GroupView:
        group = self._world.group(name)
        pids = {instance.id: self._containers.pid(instance.id) for instance in group.instances}
        return snapshot.of_group(self._world, group, pids)

    def _drive(self) -> None:
        try:
            while not self._stopping.is_set():
                self._wake.wait(min(POLL_S, self._step()))
                self._wake.clear()
        except BaseException as error:
            log.exception("the simulator failed", extra={"action": "salad_sim_failed"})
            with self._changed:
                self._failure = error
                self._tell()

    def _step(self) -> float:
        """One round; seconds until the next is due."""
        with self._changed:
            self._world.tick()
            effects = self._world.fleet.drain()
        # Without the lock: starting and killing processes takes time.
        for effect in effects:
            self._containers.perform(effect)
        ended = self._containers.ended()
        with self._changed:
            for instance_id, code in ended:
                self._world.fleet.exited(instance_id, code)
            self._tell()
            return self._world.agenda.wait_s

    def _await_turn(self, seen: int, timeout_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._turn != seen, timeout_s)

    def _tell(self) -> None:
        """Something may have changed: whoever waits looks again."""
        self._turn += 1
        self._changed.notify_all()

    def check(self) -> None:
        """See that nothing went wrong inside.

        Raises:
            LocalStackError: Something did; it drives nothing any more.
        """
        if self._failure is not None:
            raise LocalStackError("the simulator failed; its log says why") from self._failure

    def _new_containers(self) -> Containers:
        own_storage = any(name.startswith("AWS_") for name in self._env)
        env = {**inherited(os.environ, own_storage=own_storage), "PYTHONUNBUFFERED": "1", **self._env}
        return Containers(
            self.directory, self._command, env, slots=self._slots, clock=self._clock, metadata_url=self.metadata_url
        )

    def _new_server(self) -> Server:
        def exchanges(service: str, gate: Callable[..., None]) -> Exchanges:
            return Exchanges(
                service, run=self._answer, gate=gate, faults=self._faults, recording=self._recording,
                clock=self._clock,
            )  # fmt: skip

        key_gate = api.ApiGate(self.api_key, self._behaviour.requests_per_minute, self._clock)
        services = [
            (api.PREFIX, exchanges("api", key_gate), api.operations()),
            (imds.PREFIX, exchanges("imds", imds.gate), imds.Imds().operations()),
        ]
        return Server(LOOPBACK, self._port, services, lambda application: control.routes(self, application))

    def _answer(self, act: Callable[[World], Answer]) -> Answer:
        return self._do(act)
