"""Three traces that are always the same: a steady stream of jobs, bursts, and a batch every night.

Limits: made by a seeded generator, so that they need no files; jobs of minutes to hours, no more than ten nodes can do.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from kelpie_scaler.simulation.trace import Arrival

JOBS = 10_000

_HOUR_S, _DAY_S = 3600.0, 86_400.0
_STEADY_MEAN_S = 2965.0  # of 2400 s with a spread of 0.65
_SHORTEST_S, _LONGEST_S = 20.0, 6 * _HOUR_S


def steady(jobs: int = JOBS) -> list[Arrival]:
    """Jobs of about 40 minutes at random moments, so many that six nodes are busy on the average."""
    dice = _dice("steady")
    at_s, found = 0.0, []
    for _ in range(jobs):
        at_s += dice.expovariate(6 / _STEADY_MEAN_S)
        found.append(Arrival(at_s, _duration_s(dice, 2400, 0.65)))
    return found


def bursts(jobs: int = JOBS) -> list[Arrival]:
    """Between 5 and 60 jobs of about 15 minutes within a minute, then nothing for hours."""
    dice = _dice("bursts")

    def times() -> Iterator[float]:
        at_s = 0.0
        while True:
            at_s += dice.expovariate(1 / (4 * _HOUR_S))
            yield from sorted(at_s + dice.uniform(0, 60) for _ in range(dice.randint(5, 60)))
            at_s += 60

    return [Arrival(at_s, _duration_s(dice, 900, 0.8)) for at_s, _ in zip(times(), range(jobs), strict=False)]


def nightly(jobs: int = JOBS) -> list[Arrival]:
    """Each night 150 jobs of about 25 minutes within ten minutes, and ten shorter ones by day."""
    dice = _dice("nightly")
    found: list[Arrival] = []
    night = 0
    while len(found) < jobs:
        begin_s = night * _DAY_S
        found += [Arrival(begin_s + dice.uniform(0, 600), _duration_s(dice, 1500, 0.5)) for _ in range(150)]
        day_s = (begin_s + dice.uniform(10 * _HOUR_S, 20 * _HOUR_S) for _ in range(10))
        found += [Arrival(at_s, _duration_s(dice, 600, 0.5), priority=3) for at_s in day_s]
        night += 1
    return sorted(found, key=lambda one: one.at_s)[:jobs]


TRACES: dict[str, Callable[[], list[Arrival]]] = {"steady": steady, "bursts": bursts, "nightly": nightly}


def _dice(name: str) -> random.Random:
    return random.Random(f"kelpie-{name}")  # noqa: S311 -- a trace, not a secret


def _duration_s(dice: random.Random, median_s: float, spread: float) -> float:
    """Log-normal: most jobs are near the median, a few take much longer."""
    return min(max(median_s * dice.lognormvariate(0, spread), _SHORTEST_S), _LONGEST_S)
