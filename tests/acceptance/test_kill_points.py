"""A worker is killed at every step of an attempt, alone and inside workflows; nobody notices (P1, P2, P4)."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from celery import chain, chord, group
from celery.result import AsyncResult

from kelpie_celery.ledger.records import JobRecord
from tests.harness.looking import outputs_under, put_objects
from tests.harness.stack import Stack

INPUTS = {"a.txt": b"alpha\n", "b.txt": b"beta\n" * 1000, "deep/c.txt": b"gamma\n"}
# The last two: everything is stored, and the ledger does not know; the ledger knows, and Celery does not.
POINTS = ["after_claim", "in_restore", "running", "in_upload", "after_upload", "before_report", "after_completed"]
SCRIPT = """
    echo step > $CHECKPOINT_DIR/step
    echo here
    cp -r $INPUT_DIR/. $OUTPUT_DIR/
    cd $INPUT_DIR && find . -type f | sort | xargs sha256sum > $OUTPUT_DIR/sums
    cp $KELPIE_PARENTS $OUTPUT_DIR/parents
"""
_number = itertools.count(1)


@dataclass
class Step:
    """One job of a workflow."""

    name: str
    signature: Any
    dies: bool

    @property
    def id(self) -> str:
        return str(self.signature.options["task_id"])


@dataclass
class Workflow:
    """One workflow under way: its jobs, the one whose worker dies, and what gives its end's result."""

    kind: str
    steps: list[Step]
    result: AsyncResult[Any]


class Field:
    """Makes jobs of one test, with inputs and prefixes of its own, and judges them."""

    def __init__(self, stack: Stack, prefix: str, point: str) -> None:
        self._stack, self._prefix, self._point = stack, prefix, point
        put_objects(stack.s3, stack.bucket, f"{prefix}in/", INPUTS)

    def step(self, name: str, *, dies: bool = False) -> Step:
        """A job; ``dies`` arms the point for it."""
        name = f"{name}-{next(_number)}"
        places = {
            f"{role}_{what}": value
            for role in ("input", "checkpoint", "output")
            for what, value in (("bucket", self._stack.bucket), ("prefix", self._where(role, name)))
        }
        definition = self._stack.shell(SCRIPT, tags={"name": name}, **places)
        signature = self._stack.run_job.s(definition).set(task_id=f"{name}-{self._prefix.strip('/')}")
        if dies:
            self._stack.arm(self._point, job=name)
        self._stack.submitted.append(signature.options["task_id"])
        return Step(name, signature, dies)

    def _where(self, role: str, name: str) -> str:
        return f"{self._prefix}in/" if role == "input" else f"{self._prefix}{role}-{name}/"

    def expect_right(self, step: Step) -> JobRecord:
        """Completed once, without a failure, with the bytes that an undisturbed run makes; Celery knows."""
        record = self._stack.wait_status(step.id, "completed", timeout_s=60)
        assert (record.completions, record.num_failures) == (1, 0), self._stack.dump()
        assert not self._stack.armed(self._point, step.name), "no worker passed the point"
        outputs = outputs_under(self._stack.s3, self._stack.bucket, self._where("output", step.name))
        assert outputs.pop("parents")
        assert outputs == {**INPUTS, "sums": sums(INPUTS)}
        checkpoint = outputs_under(self._stack.s3, self._stack.bucket, self._where("checkpoint", step.name))
        assert checkpoint == {"step": b"step\n"}
        self._expect_attempts(step, record)
        self._stack.wait(f"Celery knows of {step.name}", lambda: self._stack.get(step.id).celery_done)
        return record

    def _expect_attempts(self, step: Step, record: JobRecord) -> None:
        *died, last = [(str(a.outcome), str(a.reason)) for a in record.attempts]
        # A worker that dies takes two jobs along when one of them uploads while the next one runs.
        assert set(died) <= {("interruption", "lease_expired")}, self._stack.dump()
        assert record.num_interruptions == len(died), self._stack.dump()
        assert last in {("completed", "done"), ("completed", "adopted")}, self._stack.dump()
        if step.dies:
            assert died or self._point == "after_completed", self._stack.dump()
            # What was finished is not done again.
            assert self._point != "before_report" or last[1] == "adopted", self._stack.dump()

    def parents_of(self, step: Step) -> list[Any]:
        """The jobs whose results a job was given."""
        outputs = outputs_under(self._stack.s3, self._stack.bucket, self._where("output", step.name))
        parents = json.loads(outputs["parents"])
        return [[p["job_id"] for p in given] if isinstance(given, list) else given["job_id"] for given in parents]


def sums(objects: dict[str, bytes]) -> bytes:
    lines = [f"{hashlib.sha256(body).hexdigest()}  ./{name}\n" for name, body in objects.items()]
    return "".join(sorted(lines, key=lambda line: line.split()[1])).encode()


def alone(field: Field) -> Workflow:
    step = field.step("alone", dies=True)
    return Workflow("job alone", [step], step.signature.apply_async())


def in_a_group(field: Field) -> Workflow:
    steps = [field.step(f"group-{n}", dies=n == 1) for n in range(2)]
    return Workflow("group", steps, group(s.signature for s in steps).apply_async())


def in_a_chord_in_a_chain(field: Field) -> Workflow:
    """A chain through a chord; a worker dies in the chord's header, and one in its body: the middle of the chain."""
    first, last, body = field.step("first"), field.step("last"), field.step("body", dies=True)
    header = [field.step(f"header-{n}", dies=n == 1) for n in range(2)]
    steps = [first.signature, chord([s.signature for s in header], body.signature), last.signature]
    return Workflow("chain", [first, *header, body, last], chain(*steps).apply_async())


KINDS: list[Callable[[Field], Workflow]] = [in_a_chord_in_a_chain, in_a_group, alone]


def revive(stack: Stack) -> None:
    """Start every worker that has died."""
    for number in stack.local.machines:
        if number not in stack.local.workers:
            stack.local.start_worker(number)


def ended(stack: Stack, result: AsyncResult[Any]) -> bool:
    revive(stack)
    return bool(result.ready())


@pytest.mark.timeout(180)
@pytest.mark.parametrize("point", POINTS)
def test_a_workers_death_changes_nothing_for_a_job_alone_in_a_group_a_chord_and_a_chain(
    stack: Stack, prefix: str, point: str, record_property: Callable[[str, object], None]
) -> None:
    began = time.monotonic()
    field = Field(stack, prefix, point)
    workflows = [start(field) for start in KINDS]
    for workflow in workflows:
        stack.wait(f"the {workflow.kind} ends", lambda w=workflow: ended(stack, w.result), timeout_s=90)  # type: ignore[misc]
    for workflow in workflows:
        workflow.result.get(timeout=10)
        for step in workflow.steps:
            field.expect_right(step)
    first, *header, body, last = workflows[0].steps
    assert [field.parents_of(step) for step in header] == [[first.id]] * 2
    assert field.parents_of(body) == [[step.id for step in header]]
    assert field.parents_of(last) == [body.id]
    seconds = time.monotonic() - began
    record_property("seconds", seconds)
    print(f"killed {point}: 8 jobs, 4 kills, {seconds:.1f} s")
