"""The whole loop: jobs, scaler, SaladCloud's API, instances, workers, interruptions, and back to nothing.

Only the cloud is simulated: its instances are real workers, and the scaler is the real control worker with beat.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from kelpie_celery.definition import parse_definition
from kelpie_celery.ledger.rules import Rules
from kelpie_celery.local.salad.behaviour import Behaviour, tiny_image
from kelpie_celery.local.salad.sim import SaladSim
from kelpie_celery.local.salad.snapshot import GroupView
from kelpie_celery.scaling.rule import ScalingRule
from kelpie_celery.submission import plain_job
from tests.harness.isolation import descendants
from tests.harness.stack import Stack, StackFactory

JOBS, NODES = 60, 3
NAME, GROUP_ID = "workers", "6f1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d"
BEHAVIOUR = Behaviour(time_factor=40.0, timings=tiny_image(), seed=5, mean_run_s=0.0, interrupt_every_s=3.0)
RULE = ScalingRule(
    container_group_id=GROUP_ID, max_replicas=NODES, idle_threshold_seconds=2.0, scale_in_cooldown_s=300.0
)
# A worker that a busy machine holds up for seconds must not lose its lease: its node has not vanished.
SETTINGS = {"KELPIE_SCALE_INTERVAL_S": "1", "KELPIE_MIN_LEASE_S": "8"}
IN_TIME_S = 240.0
AT_REST = "the group is stopped, and there is no work"


class Loop:
    """A stack without workers, and a SaladCloud whose instances are its workers."""

    def __init__(self, stack: Stack, directory: Path) -> None:
        self.stack, self.record = stack, directory / "salad.jsonl"
        stack.group = GROUP_ID
        stack.local.start_servers()
        # What a user puts into the variables of a container group; the group itself SaladCloud tells.
        variables = {name: value for name, value in stack.env().items() if not name.startswith("SALAD_")}
        self.sim = SaladSim(directory / "salad", BEHAVIOUR, env=variables, record=self.record)

    def start(self) -> None:
        """Serve; the control worker alone is told where, and the key."""
        self.sim.start()
        self.sim.create_group(NAME, group_id=GROUP_ID)
        where = {"SALAD_ORGANIZATION_NAME": self.sim.organization, "SALAD_PROJECT_NAME": self.sim.project}
        self.stack.local.start_helper("control", env={**self.sim.env(), **where})
        self.stack.local.start_helper("beat")
        self.stack.local.wait_ready()

    @property
    def group(self) -> GroupView:
        """The container group, as it is now."""
        return self.sim.group(NAME)

    def submit(self, number: int) -> list[str]:
        """So many short jobs; the rule comes after them, so that the first look sees them all."""
        definition = parse_definition(self.stack.shell("sleep 0.4"))
        jobs = [plain_job(self.stack.app, definition) for _ in range(number)]
        self.stack.ledger.submit_many(jobs)
        Rules(self.stack.ledger.redis).put(RULE)
        return [job.job_id for job in jobs]

    def history(self) -> list[dict[str, Any]]:
        """What the scaler decided, the oldest first, as a person asks for it."""
        told = subprocess.run(
            [sys.executable, "-m", "kelpie_celery", "scaler", "history", GROUP_ID, "--limit", "500", "--json"],
            env={**os.environ, **self.stack.env()}, stdout=subprocess.PIPE, text=True, check=True, timeout=IN_TIME_S,
        )  # fmt: skip
        entries: list[dict[str, Any]] = json.loads(told.stdout)
        return entries[::-1]

    def changes(self) -> list[tuple[str, Any]]:
        """The last part of the path, and the body, of each call that changed something."""
        calls = [json.loads(line) for line in self.record.read_text().splitlines()]
        changing = [call for call in calls if call["service"] == "api" and call["method"] != "GET"]
        return [(call["url"].rsplit("/", 1)[-1], call["body"]) for call in changing]

    def explain(self) -> str:
        """How things stand."""
        said = [f"{e['at']} x{e['count']} {e.get('action')}: {e['reasons']}" for e in self.history()[-20:]]
        return "\n".join([str(self.stack.ledger.counts(GROUP_ID)), str(self.group), *said, self.stack.dump()])


def container_processes() -> list[psutil.Process]:
    """Processes of instances, and of whatever they started."""
    found = []
    for process in descendants():
        try:
            if "SALAD_INSTANCE_ID" in process.environ():
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def loop(make_stack: StackFactory, tmp_path: Path) -> Iterator[Loop]:
    stack = make_stack(workers=0, control=False, beat=False, start=False, **SETTINGS)  # type: ignore[arg-type]  # no flags
    made = Loop(stack, tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.sim.stop()


@pytest.mark.timeout(3 * IN_TIME_S)
def test_jobs_bring_nodes_up_survive_their_interruptions_and_leave_none_behind(loop: Loop) -> None:
    stack, sim = loop.stack, loop.sim
    others = {process.pid for process in container_processes()}  # of other tests' stacks, which are still up
    assert (loop.group.status, loop.group.replicas, loop.group.instances) == ("stopped", 0, ())

    jobs = loop.submit(JOBS)
    try:
        sim.wait_until(lambda _: stack.ledger.counts(GROUP_ID).completed == JOBS, IN_TIME_S)
        sim.wait_until(lambda _: loop.group.status == "stopped" and not loop.group.instances, IN_TIME_S)
        stack.wait(
            "no process of an instance is left", lambda: {p.pid for p in container_processes()} <= others, IN_TIME_S
        )
        stack.wait("the scaler has seen it", lambda: loop.history()[-1]["reasons"][0] == AT_REST, IN_TIME_S)
    except Exception:
        print(loop.explain())
        raise

    records = stack.ledger.get_many(jobs)
    assert Counter(record.status.value for record in records) == {"completed": JOBS}
    assert {(record.completions, record.num_failures) for record in records} == {(1, 0)}
    interrupted = sum(record.num_interruptions for record in records)
    assert interrupted <= loop.group.interruptions, "a job was ended by something else than a node that vanished"
    assert loop.group.interruptions >= 2
    print(f"{loop.group.interruptions} nodes vanished, {interrupted} attempts with them; {loop.group.running_s:.0f} s")
    history = loop.history()
    print("\n".join(f"{e['at'][14:23]} x{e['count']} {e['action']}: {e['reasons'][0]}" for e in history))
    says_why_at_each_step(history)
    assert loop.changes()[:2] == [(NAME, {"replicas": NODES}), ("start", None)], "the count first, and nothing else"
    assert loop.changes()[-1] == ("stop", None)


def says_why_at_each_step(history: list[dict[str, Any]]) -> None:
    assert all(entry["reasons"] for entry in history)
    assert {entry["kind"] for entry in history} == {"decision"}
    deeds = [(entry["action"], entry["reasons"]) for entry in history if entry["action"] != "nothing"]
    (began, start), (drained, drain), (ended, stop) = deeds[0], deeds[1], deeds[-1]
    assert (began, drained, ended) == ("start", "drain", "stop")
    assert start[0] == f"the group is stopped: {JOBS} pending jobs need {JOBS} nodes at 1 a node"
    assert f"{JOBS} nodes would be needed, max_replicas is {NODES}" in start
    assert "nodes are too many: there is no work" in drain[0]
    assert "idle workers stop taking jobs, so that their nodes can go" in drain[0]
    assert "hold no job and take none" in stop[0]
    coming = [entry for entry in history if entry["fleet"]["allocating"] + entry["fleet"]["creating"]]
    assert coming, "nodes come up a dozen times, and are seen to at least once"
    for entry in coming:
        told = any("are on their way" in reason for reason in entry["reasons"])
        assert told, f"while nodes come up, that is why no more are asked for: {entry}"
    assert history[-1]["reasons"][0] == AT_REST
