"""How SaladCloud behaves in a simulation: how long nodes take to start and to end, and how often they vanish.

Sources, SaladCloud's documentation: of 100 instances with an image of 5.5 GB the first ran within 3 minutes, half of
them within 10, 80 % within 20, 90 % within 40, all within about 80; 182 interruptions of 100 instances in a week.
Measured by others: an instance looks for a node for about 30 s, and ends 4 to 80 s after a stop.

Limits: nodes are independent of each other, and there is always one to be had.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

_START_QUANTILES = ((0.0, 150.0), (0.5, 600.0), (0.8, 1200.0), (0.9, 2400.0), (1.0, 4800.0))
_ALLOCATING_S = 30.0
_ENDING_S = (4.0, 80.0)
INTERRUPTIONS_PER_HOUR = 182 / 7 / 24 / 100


@dataclass(frozen=True, slots=True)
class Platform:
    """What can be varied.

    Attributes:
        start_factor: Times as long as the documented starts; a small image starts in a fifth of that.
        interruptions_per_hour: Of one running node.
        loss_s: The most that an interruption costs a job: the time between two checkpoints.
        lease_s: The longest that the job of a node that vanished waits to be given to another one.
        slots: Jobs that a node runs at once.
        seed: Of all the dice.
    """

    start_factor: float = 1.0
    interruptions_per_hour: float = INTERRUPTIONS_PER_HOUR
    loss_s: float = 600.0
    lease_s: float = 60.0
    slots: int = 1
    seed: int = 1


class Dice:
    """The chances of one run; one sequence for each kind, so that policies meet the same luck as far as can be."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._starts, self._lives, self._ends, self._losses = (
            random.Random(f"{platform.seed}-{kind}")  # noqa: S311 -- a simulation, not a secret
            for kind in ("start", "life", "end", "loss")
        )

    def start_s(self) -> tuple[float, float]:
        """How long a node is looked for, and how long it takes in all until its container runs."""
        at = self._starts.random()
        points = itertools.pairwise(_START_QUANTILES)
        (low, low_s), (high, high_s) = next((a, b) for a, b in points if at <= b[0])
        whole_s = self._platform.start_factor * (low_s + (high_s - low_s) * (at - low) / (high - low))
        return min(_ALLOCATING_S, whole_s), whole_s

    def life_s(self) -> float | None:
        """How long a node runs before it vanishes; None: for good."""
        rate = self._platform.interruptions_per_hour
        return self._lives.expovariate(rate / 3600) if rate else None

    def ending_s(self) -> float:
        """How long a node goes on after it was told to end."""
        return self._ends.uniform(*_ENDING_S)

    def loss_s(self) -> float:
        """How much computing is lost since the last checkpoint."""
        return self._losses.uniform(0, self._platform.loss_s)

    def lease_left_s(self) -> float:
        """How long the lease of a node that vanished goes on; it was renewed half a lease ago at most."""
        return self._losses.uniform(self._platform.lease_s / 2, self._platform.lease_s)
