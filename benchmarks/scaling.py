"""Our default rule against Kelpie's algorithm on the three built-in traces, and how fast a simulation is.

The traces and the dice are always the same, so that the hours and the waits are too; means over a few seeds of the
dice, since some nodes that start late weigh on a percentile. Limits: no server, one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean

from benchmarks import stage
from benchmarks.figures import Figure, Target
from kelpie_celery.scaling.rule import ScalingRule
from kelpie_scaler.simulation.engine import simulate
from kelpie_scaler.simulation.outcome import Outcome
from kelpie_scaler.simulation.platform import Platform
from kelpie_scaler.simulation.policies import KelpieRule, OurRule, Policy
from kelpie_scaler.simulation.trace import Arrival
from kelpie_scaler.simulation.traces import TRACES, steady

RULE = ScalingRule(container_group_id="bench")
SEEDS = range(1, 11)
DRAW = 1.03
"""The dice alone make so much of a difference in a percentile."""

MANY = 100_000
LIMIT_S = 30.0


def measure(_directory: Path) -> Iterator[Figure]:
    """Run the part."""
    for name, make in TRACES.items():
        trace = make()
        ours = _runs(trace, lambda: OurRule("ours", RULE))
        kelpie = _runs(trace, lambda: KelpieRule("kelpie", RULE))
        yield from figures(name, ours, kelpie)
    many = steady(MANY)
    took_s = stage.seconds(lambda: simulate(many, OurRule("ours", RULE), Platform()))
    yield Figure("scaling.simulate_100000", took_s, "s", Target(LIMIT_S), "steady, our default rule")


def figures(name: str, ours: Sequence[Outcome], kelpie: Sequence[Outcome]) -> Iterator[Figure]:
    """What both came to on one trace, ours to be below Kelpie's."""
    for what, unit, value in (
        ("billed", "h", lambda one: one.billed_h),
        ("idle", "h", lambda one: one.idle_h),
        ("wait_p50", "s", lambda one: one.wait_p50_s),
        ("wait_p95", "s", lambda one: one.wait_p95_s),
        ("ended_by_scaling", "jobs", lambda one: one.ended_by_scaling),
    ):
        bound = mean(map(value, kelpie))
        target = {"idle": Target(bound), "wait_p95": Target(DRAW * bound)}.get(what)
        yield Figure(
            f"scaling.{name}.{what}", mean(map(value, ours)), unit, target, f"Kelpie's algorithm: {bound:,.1f}"
        )


def _runs(trace: Sequence[Arrival], policy: Callable[[], Policy]) -> list[Outcome]:
    return [simulate(trace, policy(), Platform(seed=seed)) for seed in SEEDS]
