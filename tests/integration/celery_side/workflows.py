"""Workflows with one point at which a worker dies, and what has to be true of each of them in the end."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery import chain, chord, group
from celery.result import AsyncResult

from tests.integration.celery_side.fleet import Fleet, ids_of
from tests.integration.celery_side.played import definition

CHAIN_POINTS = ["none", "run", "after_complete", "pre_publish", "between", "post_publish", "pre_done"]
CHORD_POINTS = ["none", "run", "after_complete", "post_store", "pre_publish", "between", "post_publish", "pre_done"]
_number = itertools.count()


@dataclass
class Workflow:
    """One workflow under way.

    Attributes:
        result: Of its last step.
        jobs: Every id in it that is a job.
        plain_tag: Where its plain task notes its runs; empty without one.
    """

    result: AsyncResult[Any]
    jobs: list[str]
    plain_tag: str
    armed: tuple[str, ...]

    def expect_whole(self, fleet: Fleet) -> Any:
        """It has ended, everything once, and nothing is left to be told."""
        value = fleet.get(self.result, 60)
        fleet.wait_outbox(self.jobs)
        assert not set(self.armed) & set(fleet.armed()), "no worker passed the point"
        fleet.expect_once(self.jobs)
        assert {fleet.state(job_id) for job_id in self.jobs} == {"SUCCESS"}
        if self.plain_tag:
            assert fleet.notes.count(f"plain:{self.plain_tag}") == 1
        return value


def _arm(fleet: Fleet, point: str, *names: str) -> tuple[str, ...]:
    return () if point == "none" else tuple(fleet.arm(point, name) for name in names)


def start_chain(fleet: Fleet, point: str) -> Workflow:
    """Three jobs and a plain task; the second job's worker dies."""
    tag = f"chain{next(_number)}"
    armed, job = _arm(fleet, point, f"{tag}-2"), fleet.run_job
    steps = [job.s(definition(f"{tag}-1")), job.si(definition(f"{tag}-2")), job.s(definition(f"{tag}-3"))]
    result: Any = chain(*steps, fleet.plain(tag=tag)).apply_async()
    return Workflow(result, ids_of(result.parent), tag, armed)


def start_pair(fleet: Fleet, point: str) -> Workflow:
    """A job and a plain task; the job's worker dies."""
    tag = f"pair{next(_number)}"
    armed = _arm(fleet, point, tag)
    result: Any = chain(fleet.run_job.s(definition(tag)), fleet.plain(tag=tag)).apply_async()
    return Workflow(result, ids_of(result.parent), tag, armed)


def start_group(fleet: Fleet) -> Workflow:
    """Five jobs; the workers of two of them die while they run."""
    tag = f"group{next(_number)}"
    armed = _arm(fleet, "run", f"{tag}-1", f"{tag}-3")
    result: Any = group(fleet.run_job.s(definition(f"{tag}-{i}", 0.3)) for i in range(5)).apply_async()
    return Workflow(result, [r.id for r in result.results], "", armed)


def start_chord(fleet: Fleet, point: str, *, body_is_a_job: bool) -> Workflow:
    """Five jobs and what follows them all; the worker of the first of them to pass the point dies."""
    tag = f"chord{next(_number)}"
    armed = _arm(fleet, point, f"{tag}-part")
    body = fleet.run_job.s(definition(f"{tag}-body")) if body_is_a_job else fleet.plain(tag=tag)
    result: Any = chord([fleet.run_job.s(definition(f"{tag}-part", 0.02 * i)) for i in range(5)], body).apply_async()
    parts = [r.id for r in result.parent.results]
    return Workflow(result, [*parts, result.id] if body_is_a_job else parts, "" if body_is_a_job else tag, armed)


Start = Callable[[Fleet], Workflow]


def every_kill() -> dict[str, Start]:
    """The whole matrix, by name."""
    starts: dict[str, Start] = {}
    for point in CHORD_POINTS:
        starts[f"chord-job-{point}"] = lambda f, p=point: start_chord(f, p, body_is_a_job=True)  # type: ignore[misc]
        starts[f"chord-plain-{point}"] = lambda f, p=point: start_chord(f, p, body_is_a_job=False)  # type: ignore[misc]
    for point in CHAIN_POINTS:
        starts[f"chain-{point}"] = lambda f, p=point: start_chain(f, p)  # type: ignore[misc]
    for point in ("pre_publish", "between", "post_publish", "pre_done"):
        starts[f"pair-{point}"] = lambda f, p=point: start_pair(f, p)  # type: ignore[misc]
    starts["group-run"] = start_group
    return starts
