"""The demo's second act: nodes that come when there is work, and go when there is none, on a simulated SaladCloud.

Nobody starts a machine here: the control worker of the stack, with its scaler, does it all through SaladCloud's API.
Limits: the cloud is played by this process; its instances are real workers, started and killed by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from kelpie_celery.client import Kelpie
from kelpie_celery.clock import Clock
from kelpie_celery.demo import plan
from kelpie_celery.demo.table import Display
from kelpie_celery.ledger.records import JobRecord
from kelpie_celery.ledger.types import GroupCounts
from kelpie_celery.local.salad.behaviour import Behaviour, tiny_image
from kelpie_celery.local.salad.fleet import NODE_OFFLINE
from kelpie_celery.local.salad.model import Event
from kelpie_celery.local.salad.sim import SaladSim
from kelpie_celery.local.salad.snapshot import GroupView

LOOK_EVERY_S = 0.2
LINE_EVERY_S = 3.0

Entry = Mapping[str, Any]

_ON_THEIR_WAY = ("allocating", "downloading", "creating")
_DEEDS = {
    "start": "starts the group, with {nodes}",
    "set_replicas": "asks for {nodes}",
    "drain": "tells idle workers to take no more jobs",
    "undrain": "lets workers take jobs again",
    "stop": "stops the group",
}


@dataclass(frozen=True)
class Ended:
    """How the act ended.

    Attributes:
        records: The jobs.
        group: The container group, as SaladCloud has it.
        deeds: What the scaler did, in order, without the looks at which there was nothing to do.
    """

    records: Sequence[JobRecord]
    group: GroupView
    deeds: Sequence[str]

    @property
    def summary(self) -> str:
        """The numbers, in one line."""
        return (
            f"then {len(self.records)} more on a simulated SaladCloud, from 0 to {plan.CLOUD_NODES} nodes and back to 0"
            f" by the scaler: {self.deeds.count('start')} start, {self.deeds.count('stop')} stop, "
            f"{self.group.interruptions} nodes vanished, {self.group.gpu_hours:.3f} GPU hours billed"
        )


class Cloud:
    """The simulated SaladCloud, and what is shown of it."""

    def __init__(self, directory: Path, variables: Mapping[str, str], display: Display, clock: Clock) -> None:
        """A cloud that is not there yet.

        Args:
            directory: Where to keep files and logs of its instances.
            variables: What a user puts into the variables of a container group: where Redis and the storage are.
            display: Where to tell.
            clock: Where time comes from.
        """
        self._display, self._clock = display, clock
        self._seen = 0
        behaviour = Behaviour(
            time_factor=plan.CLOUD_FASTER, timings=tiny_image(), mean_run_s=0.0, interrupt_every_s=plan.CLOUD_LOSS_S
        )
        self._sim = SaladSim(directory, behaviour, env=variables, clock=clock, on_event=self._on_event)
        self._lost: list[Event] = []

    def start(self) -> None:
        """Serve, with one container group that is stopped.

        Raises:
            LocalStackError: It cannot listen.
        """
        self._sim.start()
        self._sim.create_group(plan.CLOUD_NAME, group_id=plan.CLOUD_GROUP)

    def stop(self) -> None:
        """Kill every instance; harmless when done twice."""
        self._sim.stop()

    def env(self) -> dict[str, str]:
        """What the control worker is told: where SaladCloud's API is, the key, and where the groups are."""
        return {
            **self._sim.env(), "SALAD_ORGANIZATION_NAME": self._sim.organization,
            "SALAD_PROJECT_NAME": self._sim.project,
        }  # fmt: skip

    def play(self, kelpie: Kelpie, limit_s: float) -> Ended:
        """Submit jobs, set the rule, and watch until all have ended and the group is stopped, or time is up."""
        jobs = kelpie.submit_many([plan.cloud_job(number) for number in range(plan.CLOUD_JOBS)])
        kelpie.set_scaling_rule(plan.CLOUD_RULE)
        self._display.say(
            f"second act: {len(jobs)} more jobs, and no machine to run them. Their container group on a simulated "
            f"SaladCloud has 0 nodes; a rule allows {plan.CLOUD_NODES}. From here on the scaler acts by itself"
        )
        deadline, line_at = self._clock.boottime() + limit_s, self._clock.boottime() + LINE_EVERY_S
        while True:
            self._tell(kelpie)
            group, counts = self._sim.group(plan.CLOUD_NAME), kelpie.counts(plan.CLOUD_GROUP)
            if self._clock.boottime() >= line_at:
                line_at = self._clock.boottime() + LINE_EVERY_S
                self._display.say(line(group, counts))
            if over(group, counts, len(jobs)) or self._clock.boottime() > deadline:
                self._tell(kelpie)
                records = [kelpie.get(job.id) for job in jobs]
                return Ended(records, group, [deed(entry) for entry in self._decisions(kelpie)])
            self._clock.sleep(LOOK_EVERY_S)

    def _tell(self, kelpie: Kelpie) -> None:
        self._sim.check()
        while self._lost:
            event = self._lost.pop(0)
            self._display.say(f"[red]a node vanished[/red] (machine {event.machine_id[:8]}); another one is looked for")
        deeds = self._decisions(kelpie)
        for entry in deeds[self._seen :]:
            self._display.say(f"[cyan]scaler[/cyan]: {told(entry)}")
        self._seen = len(deeds)

    def _decisions(self, kelpie: Kelpie) -> list[Entry]:
        """What the scaler did, the oldest first."""
        found = kelpie.app.ledger.decisions(plan.CLOUD_GROUP)
        return [entry for entry in reversed(found) if deed(entry) != "nothing"]

    def _on_event(self, _group: str, event: Event) -> None:
        if event.name == NODE_OFFLINE:
            self._lost.append(event)


def over(group: GroupView, counts: GroupCounts, jobs: int) -> bool:
    """Whether every job has ended, and no node is left."""
    return (
        counts.completed + counts.failed + counts.canceled >= jobs and group.status == "stopped" and not group.instances
    )


def deed(entry: Entry) -> str:
    """What an entry of the scaler's history is about: ``start``, ``drain``, ``nothing``, ``error`` ..."""
    return str(entry.get("action") or entry["kind"])


def told(entry: Entry) -> str:
    """A decision and why, in words for somebody who never heard of it."""
    count = entry.get("replicas", 0)
    nodes = f"{count} node{'' if count == 1 else 's'}"
    what = _DEEDS.get(deed(entry), deed(entry)).format(nodes=nodes)
    because = str(entry["reasons"][0]).split(";", 1)[0]
    return f"{what}, because: {escape(because)}"


def line(group: GroupView, counts: GroupCounts) -> str:
    """How it stands, in one line."""
    coming = sum(group.count(state) for state in _ON_THEIR_WAY)
    return (
        f"jobs: {counts.pending} pending, {counts.running} running, {counts.completed} completed | "
        f"nodes: {coming} on their way, {group.count('running')} running | {group.gpu_hours:.3f} GPU hours billed"
    )
