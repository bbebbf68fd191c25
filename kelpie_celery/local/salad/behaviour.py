"""How the simulated platform behaves: its timings, its limits, and what is left to chance.

All timings are seconds as the real platform takes them; ``Behaviour.time_factor`` divides them. What counts requests
(the rate limit, reallocations a minute) is by the real clock, for so are the clients that it limits.

Limits: nobody publishes distributions. The defaults give, over many instances of a 5.5 GB image, what the vendor
measured on 100 (first below 3 min, half by 10, 80 % by 20, 90 % by 40, all by 80), and stops as others measured them.
"""

from __future__ import annotations

import math
import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from kelpie_celery.local.errors import LocalStackError

HOUR_S: Final = 3600.0
MAX_TIME_FACTOR: Final = 100_000.0


@dataclass(frozen=True, slots=True)
class Span:
    """A duration between two bounds, in seconds, each as likely as the other."""

    low_s: float
    high_s: float

    def draw(self, rng: random.Random) -> float:
        """One of them."""
        return rng.uniform(self.low_s, self.high_s)


@dataclass(frozen=True, slots=True)
class LongTail:
    """A duration that is mostly short and sometimes very long (log-normal), in seconds.

    Attributes:
        median_s: Half are shorter.
        spread: Standard deviation of the logarithm.
        longest_s: None is longer.
    """

    median_s: float
    spread: float
    longest_s: float

    def draw(self, rng: random.Random) -> float:
        """One of them."""
        return min(self.longest_s, self.median_s * math.exp(rng.gauss(0.0, self.spread)))


Duration = Span | LongTail


def fixed(seconds: float) -> Span:
    """Always this long."""
    return Span(seconds, seconds)


@dataclass(frozen=True, slots=True)
class Timings:
    """What takes how long on the platform, seconds.

    Attributes:
        prepare: An image is brought into the vendor's cache, once an image.
        acknowledge: Until a start or stop shows in the group's status.
        allocate: Looking for a node.
        download: The image onto the node.
        create: Unpacking and starting.
        stop_lag: From a stop or a scale-in until the container is told or killed; it computes on meanwhile.
        act: From a reallocate, recreate or restart until the container is killed.
        relaunch: From a container's own end until it is started again on the node.
        silence: How long a lost node is frozen before its processes are killed: to its peers, a silent network.
        reserved: How long the name of a deleted group cannot be taken.
    """

    prepare: Duration = Span(20.0, 40.0)
    acknowledge: Duration = Span(0.3, 0.5)
    allocate: Duration = LongTail(180.0, 1.35, 4200.0)
    download: Duration = Span(80.0, 500.0)
    create: Duration = Span(5.0, 60.0)
    stop_lag: Duration = Span(4.0, 80.0)
    act: Duration = Span(1.0, 10.0)
    relaunch: Duration = Span(1.0, 3.0)
    silence: Duration = Span(30.0, 30.0)
    reserved: Duration = Span(180.0, 180.0)


def tiny_image() -> Timings:
    """A small image where nodes are free: 78 to 108 s from the creation to running."""
    return Timings(allocate=Span(25.0, 35.0), download=Span(15.0, 20.0), create=Span(10.0, 13.0))


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What the platform does, all in one.

    Attributes:
        strict: Refuse what the real one might refuse; else take what it might take (see ``refusals.py``).
        time_factor: How many times faster than the real platform; 1 to 100,000.
        timings: What takes how long, before the division.
        seed: Of everything that is left to chance; ``None`` for another one each time.
        mean_run_s: How long a node stays on average, before the division; 0: no interruption by chance.
        interrupt_every_s: Besides, this often one running instance is lost, whichever; real seconds, 0 for never.
        stop_signal: Sent to a container that is to stop; ``None``: it is killed without notice, as measured.
        stop_grace_s: From that signal to SIGKILL, real seconds.
        exits_before_move: So many non-zero exits in a row on a node, then another node.
        replicas_quota: Of all groups together, running or stopped.
        actions_per_minute: Reallocations, recreations and restarts, each, over the organization.
        requests_per_minute: With one API key; 0 for no limit.
        bad_images: Images whose preparation fails.
    """

    strict: bool = True
    time_factor: float = 1.0
    timings: Timings = field(default_factory=Timings)
    seed: int | None = None
    mean_run_s: float = 60 * HOUR_S
    interrupt_every_s: float = 0.0
    stop_signal: signal.Signals | None = None
    stop_grace_s: float = 10.0
    exits_before_move: int = 5
    replicas_quota: int = 100
    actions_per_minute: int = 10
    requests_per_minute: int = 240
    bad_images: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not 1.0 <= self.time_factor <= MAX_TIME_FACTOR:
            raise LocalStackError(f"a time factor of {self.time_factor:g} is not possible; choose 1 to 100,000")
        for name in ("mean_run_s", "interrupt_every_s", "stop_grace_s"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise LocalStackError(f"{name} is {getattr(self, name)}; choose seconds, 0 or more")

    def draw_s(self, duration: Duration, rng: random.Random) -> float:
        """How long something takes here, seconds."""
        return duration.draw(rng) / self.time_factor

    def run_s(self, rng: random.Random) -> float:
        """How long a node stays, seconds; ``inf`` when none is lost by chance."""
        return rng.expovariate(self.time_factor / self.mean_run_s) if self.mean_run_s else math.inf
