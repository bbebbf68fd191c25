"""What a simulation came to: what it cost, how long jobs waited.

Limits: hours of nodes, not money; a node of several slots is busy while one of them is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run.

    Attributes:
        name: The rule or the algorithm.
        jobs: That completed.
        unfinished: That did not before the simulation gave up.
        billed_h: Hours that nodes ran.
        idle_h: Of these, hours in which a node had no job.
        lost_h: Hours of computing that had to be done again.
        wait_p50_s: The middle of how long jobs were pending, all their tries together.
        wait_p95_s: What 95 of 100 jobs did not exceed.
        interrupted: Attempts that ended since their node vanished.
        ended_by_scaling: Attempts that ended since their node was given back.
        starts: How often the group was started.
        changes: How often the count was set.
        took_s: From the first arrival to the last end, virtual.
    """

    name: str
    jobs: int
    unfinished: int
    billed_h: float
    idle_h: float
    lost_h: float
    wait_p50_s: float
    wait_p95_s: float
    interrupted: int
    ended_by_scaling: int
    starts: int
    changes: int
    took_s: float

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}


def percentile(values: Sequence[float], share: float) -> float:
    """The value that so many do not exceed; 0 of none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else 0.0
