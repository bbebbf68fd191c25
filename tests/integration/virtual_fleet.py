"""One container group through a load that changes, in virtual time: the real scaler, ledger and workers' parts.

Real: `decide`, the look and its order, turns, node care, the client down to its adapter, the ledger's Lua on a real
server, a worker's pulse, its standing and its metadata client, and the simulated SaladCloud with its API's refusals.
Played: Celery (a worker takes any pending job, also one whose message it had in hand when it was told to drain), the
job's command, and time. While the scaler asks the ledger or SaladCloud anything, the others go on: jobs arrive and are
claimed between its look and its act.
"""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

from pydantic import SecretStr
from redis import Redis

from kelpie_celery.app import KelpieApp
from kelpie_celery.clock import Instant, ManualClock
from kelpie_celery.errors import LeaseLost
from kelpie_celery.ledger.rules import Rules
from kelpie_celery.ledger.types import Ending, Granted, NewJob, Refused
from kelpie_celery.lifecycle import Outcome, Phase, Reason
from kelpie_celery.local.salad.behaviour import Behaviour, Span, Timings, fixed
from kelpie_celery.local.salad.bodies import Prototype, parsed
from kelpie_celery.local.salad.edits import default_prototype
from kelpie_celery.local.salad.effects import Effect, Freeze, Kill, Launch
from kelpie_celery.local.salad.faults import Fault
from kelpie_celery.local.salad.model import Group
from kelpie_celery.local.salad.states import GroupStatus
from kelpie_celery.messages import TAG
from kelpie_celery.pulse import Pulse
from kelpie_celery.running import RunningJob, RunningJobs
from kelpie_celery.scaling.rule import ScalingRule
from kelpie_celery.settings import load_settings
from kelpie_scaler.salad import SaladClient
from kelpie_scaler.salad.transport import Transport
from kelpie_scaler.scale import Scaler
from kelpie_worker.imds import Imds
from kelpie_worker.standing import Standing
from tests.histories.ledger_clock import HistoryLedger
from tests.integration.direct_cloud import HOST, KEY, DirectCloud

NAME, GROUP_ID = "workers", "6f1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d"
TICK_S = 10.0
HEARTBEAT_S = 15.0
LOAD_S = 480.0
GIVE_UP_S = 3 * 3600.0
TIMINGS = Timings(
    prepare=fixed(1), acknowledge=fixed(0.4), allocate=Span(2, 25), download=Span(2, 10), create=Span(1, 5),
    stop_lag=Span(4, 60), act=Span(1, 10), relaunch=fixed(2), silence=fixed(30), reserved=fixed(180),
)  # fmt: skip


class Ledger(HistoryLedger):
    """A ledger in virtual time; ``meanwhile`` is called before each operation."""

    def __init__(self, redis: Redis, clock: ManualClock, meanwhile: Callable[[str], None] = lambda _: None) -> None:
        super().__init__(redis, clock)
        # A pulse here is three seconds, not one.
        self.timings = replace(self.timings, machine_alive_s=45.0)
        self._meanwhile = meanwhile

    def _call(self, operation: str, doing: str, *args: Any, client: Any = None) -> Any:
        self._meanwhile(operation)
        return super()._call(operation, doing, *args, client=client)

    def uptime_s(self) -> float:
        return 1e6


@dataclass
class Task:
    """An attempt that a worker runs."""

    job: RunningJob
    ends_at: float
    beats_at: float


class Worker:
    """One container: the real pulse and standing of a worker, with a played Celery around them."""

    def __init__(self, run: Run, launch: Launch) -> None:
        self.run, self.id, self.machine = run, launch.instance_id, launch.machine_id
        self.tasks: list[Task] = []
        self.frozen = False
        self.slots = run.slots
        # A process needs a moment to come up.
        self.next_at = run.clock.now() + run.dice.uniform(0.5, 4)
        settings = load_settings({
            "KELPIE_REDIS_URL": "unix:///not/asked", "SALAD_MACHINE_ID": self.machine, "SALAD_INSTANCE_ID": self.id,
            "SALAD_METADATA_URI": f"{HOST}/imds/{self.id}",
        })  # fmt: skip
        self.running = RunningJobs()
        self.worker_id = f"{self.machine}.{self.id}"
        parts = {"settings": settings, "ledger": run.ledger, "running": self.running, "runner": self}
        app = cast("KelpieApp", SimpleNamespace(**parts, worker_id=self.worker_id))
        imds = Imds(settings.metadata_uri, run.clock)
        imds._session = run.cloud.session()
        imds._session.headers["Metadata"] = "true"
        self._standing = Standing(app, imds, run.clock)
        self._standing._start = lambda: None  # type: ignore[method-assign]  # its thread is played too
        self._pulse = Pulse(app, [GROUP_ID], self.id)
        self._pulse._maintainer = SimpleNamespace(tick=lambda _group: None)  # type: ignore[assignment]

    @property
    def untold(self) -> bool:
        return self._standing.untold

    def tend(self, group: str, *, draining: bool, streak: int) -> bool:
        return self._standing.tend(group, draining=draining, streak=streak)

    def step(self) -> None:
        """What a worker does every few seconds."""
        self.next_at = self.run.clock.now() + self.run.dice.uniform(1, 5)
        self._pulse.beat(GROUP_ID)
        self._pulse._count += 1
        for task in list(self.tasks):
            self._go_on(task)
        if self.run.dice.random() < 0.8:
            self._standing.work()
        if not self.running.held_back:
            self.claim()

    def _go_on(self, task: Task) -> None:
        now, ledger = self.run.clock.now(), self.run.ledger
        try:
            if now >= task.ends_at:
                ledger.end_attempt(task.job.token, Ending(Outcome.COMPLETED, Reason.DONE, result={}))
            elif now >= task.beats_at:
                ledger.renew(task.job.token, Phase.EXECUTING)
                task.beats_at = now + HEARTBEAT_S
                task.job.note(Phase.EXECUTING, task.job.beats + 1)
                return
            else:
                return
        except LeaseLost:
            self.run.seen["leases lost"] += 1
        self.tasks.remove(task)
        self.running.remove(task.job)

    def claim(self) -> bool:
        """Ask for the next job, as if its message were in hand: the gate may have closed since."""
        run, free = self.run, self.slots - len(self.tasks)
        for job_id in run.ledger.ids(GROUP_ID, "pending", 0, 0) if free > 0 else ():
            asked = Instant.now(run.clock)
            answer = run.ledger.claim(
                job_id, f"n{next(run.numbers)}", self.machine, self.id, None, may_run=True, holder=self.worker_id
            )
            if isinstance(answer, Granted):
                job = RunningJob(answer.token, asked, lambda: None)
                self.running.add(job)
                self.tasks.append(Task(job, asked.wall + run.durations[job_id], asked.wall + HEARTBEAT_S))
                self._standing.refresh()
                return True
            if isinstance(answer, Refused):
                run.seen[f"claims refused: {answer.why}"] += 1
        return False


class Run:
    """One history, from nothing to nothing; ``seen`` counts what happened, ``broken`` tells what must not."""

    def __init__(
        self, redis: Redis, app: KelpieApp, seed: int, *, timings: Timings = TIMINGS, calm: bool = False, **rule: Any
    ) -> None:
        """Nothing has happened yet.

        Args:
            redis: An empty database.
            app: Whose ledger becomes this history's.
            seed: Of the dice.
            timings: How long SaladCloud takes.
            calm: No fault, no interruption, nothing between the scaler's steps, no job but those that are submitted.
            rule: Fields of the rule that are not left to the dice.
        """
        random.seed(seed)  # the client's pauses
        self.dice, self.clock = random.Random(seed), ManualClock()
        self.seen: Counter[str] = Counter()
        self.broken: list[str] = []
        self.numbers = itertools.count(1)
        self.durations: dict[str, float] = {}
        self.workers: dict[str, Worker] = {}
        self.slots = self.dice.choice((1, 1, 2))
        self.calm = calm
        ordered = [] if calm else [Fault(kind, times=0, rate=0.02) for kind in ("429", "500", "lost")]
        mean_run_s = 0.0 if calm else self.dice.choice((0.0, 400.0))
        behaviour = Behaviour(strict=self.dice.random() < 0.7, timings=timings, seed=seed, mean_run_s=mean_run_s)
        self.cloud = DirectCloud(behaviour, self.clock, self.dice, ordered)
        self.cloud.on_call = self.meanwhile
        self.ledger = Ledger(redis, self.clock)
        self._busy = False
        self._looks: list[tuple[float, Callable[[], None]]] = []
        self.group = self._new_group()
        self.scaler = self._new_scaler(redis, app, rule)
        self._load_ends = self.clock.now() + LOAD_S
        self._arrivals = [] if calm else self._load()

    def _new_group(self) -> Group:
        body = parsed(Prototype, default_prototype(NAME, 0, {}, {}))
        group = self.cloud.world.create(body, group_id=GROUP_ID)
        self.cloud.world.force_status(NAME, GroupStatus.STOPPED)
        return group

    def _new_scaler(self, redis: Redis, app: KelpieApp, fields: dict[str, Any]) -> Scaler:
        dice = self.dice
        app.__dict__["ledger"] = Ledger(redis, self.clock, self.meanwhile)
        transport = Transport(f"{HOST}/api/public", SecretStr(KEY), app.ledger, clock=self.clock)
        transport._session.mount(HOST, self.cloud)
        rule = ScalingRule(
            container_group_id=GROUP_ID, min_replicas=dice.choice((0, 0, 1)), max_replicas=dice.randint(2, 6),
            idle_threshold_seconds=dice.uniform(0, 40), scale_in_cooldown_s=dice.uniform(0, 40),
            jobs_per_replica=dice.choice((None, 1, 2)), max_step_up=dice.choice((None, 2)),
        )  # fmt: skip
        self.rule = rule.changed(**fields)
        Rules(redis).put(self.rule)
        later = lambda delay_s, act: self._looks.append((self.clock.now() + delay_s, act))  # noqa: E731
        return Scaler(app, SaladClient(transport), clock=self.clock, later=later)

    def _load(self) -> list[float]:
        """When jobs arrive: bursts, some of them right when the group is about to shrink."""
        bursts = [self.dice.uniform(0, LOAD_S) for _ in range(self.dice.randint(3, 6))]
        begin = self.clock.now()
        return sorted(begin + at + self.dice.uniform(0, 5) for at in bursts for _ in range(self.dice.randint(1, 7)))

    # -- what happens -------------------------------------------------------------------------------------------------

    def play(self) -> None:
        """Until every job has ended and the group is at rest."""
        tick_at = maintain_at = begin = self.clock.now()
        try:
            while not self._over():
                if self.clock.now() - begin > GIVE_UP_S:
                    counts, status = self.ledger.counts(GROUP_ID), self.group.status
                    self.broken.append(f"no end: {counts}, {status}, {self._decisions()}")
                    return
                now = self.clock.now()
                if now >= tick_at:
                    tick_at = now + TICK_S
                    self.scaler.tick()
                for look in [look for look in self._looks if look[0] <= now]:
                    self._looks.remove(look)
                    look[1]()
                    self.scaler._under_way[GROUP_ID].result(30)
                if now >= maintain_at:
                    maintain_at = now + 5
                    self.ledger.tick(GROUP_ID, uptime_s=1e6, saw_outage=False, fresh=False, limit=100)
                self._live()
                self._pass_time(min(tick_at, maintain_at))
        finally:
            self.scaler.close()

    def _pass_time(self, till: float) -> None:
        moments = [till, self.clock.now() + self.cloud.world.agenda.wait_s]
        moments += [worker.next_at for worker in self.workers.values() if not worker.frozen]
        moments += [at for at, _ in self._looks] + self._arrivals[:1]
        self.clock.advance(max(0.01, min(moments) - self.clock.now()))

    def _live(self) -> None:
        """Everything but the scaler does what is due."""
        for effect in self.cloud.effects():
            self._perform(effect)
        now = self.clock.now()
        while self._arrivals and self._arrivals[0] <= now:
            self._arrivals.pop(0)
            self.submit()
        for worker in list(self.workers.values()):
            if worker.next_at <= now and not worker.frozen:
                worker.step()

    def submit(self) -> None:
        job_id = f"j{next(self.numbers)}"
        self.durations[job_id] = self.dice.uniform(2, 60)
        message = json.dumps({"properties": {"delivery_tag": TAG}, "body": ""})
        definition = json.dumps({"command": "true"})
        self.ledger.submit(NewJob(job_id, GROUP_ID, definition, message, 4, HEARTBEAT_S, 3))

    def meanwhile(self, what: str) -> None:
        """The scaler is between two of its steps, and the world does not stand still."""
        if self._busy or self.calm:
            return
        self._busy = True
        # Above all between the last look and what cannot be taken back.
        fatal = what in ("condemn", "before update_container_group", "before stop_container_group")
        try:
            if self.dice.random() < 0.5:
                self.clock.advance(self.dice.uniform(0, 0.6))
            if self.dice.random() < (0.3 if fatal else 0.03) and self.clock.now() < self._load_ends:
                self.submit()
                self.seen["jobs in between"] += 1
            self._live()
            for worker in self.workers.values():
                if not worker.frozen and self.dice.random() < (0.8 if fatal else 0.3) and worker.claim():
                    self.seen["claims in between"] += 1
        finally:
            self._busy = False

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Launch():
                self.workers[effect.instance_id] = Worker(self, effect)
            case Freeze():
                self.workers[effect.instance_id].frozen = True
                self.seen["interruptions"] += 1
            case Kill():
                self._kill(self.workers.pop(effect.instance_id))

    def _kill(self, worker: Worker) -> None:
        if worker.frozen:
            return
        self.seen["nodes given back"] += 1
        for task in worker.tasks:
            record = self.ledger.get(task.job.token.job_id)
            if record.attempt == task.job.token.attempt and not record.status.ended:
                claimed_s = self.clock.now() - record.attempts[-1].started
                self.broken.append(
                    f"job {record.id}, claimed {claimed_s:.1f} s before, was ended with its node; "
                    f"the group is {self.group.status} with {self.group.replicas}; {self._decisions()}"
                )

    # -- the end ------------------------------------------------------------------------------------------------------

    def _over(self) -> bool:
        if self._arrivals or not self.durations:
            return False
        least = self.rule.min_replicas
        if not len(self.group.instances) == least == len(self.group.kept):
            return False
        if least == 0 and self.group.status is not GroupStatus.STOPPED:
            return False
        counts = self.ledger.counts(GROUP_ID)
        return counts.completed + counts.canceled == len(self.durations)

    def _decisions(self) -> list[str]:
        found = self.ledger.decisions(GROUP_ID, 8)
        return [f"{e['at'] % 10000:.1f} {e.get('action', e['kind'])} {e.get('replicas')} {e['reasons']}" for e in found]

    def check(self, seed: int) -> None:
        """Judge the end, and count what the scaler did."""
        assert self.broken == [], f"seed {seed}: " + "\n".join(self.broken)
        records = self.ledger.get_many(list(self.durations))
        assert {(r.status.value, r.completions, r.num_failures) for r in records} == {("completed", 1, 0)}
        for entry in self.ledger.decisions(GROUP_ID):
            self.seen[f"decided: {entry.get('action', entry['kind'])}"] += int(entry["count"])
        self.seen["jobs"] += len(self.durations)
        self.seen["jobs interrupted"] += sum(record.num_interruptions for record in records)
