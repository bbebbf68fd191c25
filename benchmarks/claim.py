"""How long a claim takes, with 1,000 and with 100,000 jobs pending; the two take turns, job by job.

Each claim is one round trip with a flush to the disk (``appendfsync always``). A job is submitted for each one that is
claimed, outside of the measurement, so that the sizes stay. Beside each pair a plain ``SET`` is timed: what a write
costs at that moment whatever is written, so that a busy disk or a busy core is not taken for a slow claim.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks import stage
from benchmarks.figures import Figure, Target
from kelpie_celery.client import Kelpie
from kelpie_celery.ledger.types import Granted

SIZES = (1_000, 100_000)
SHARES = (0.5, 0.99)
PLAIN = 0  # stands for the plain SET among the sizes
ROUNDS, CLAIMS = 3, 500
P99_MS = 5.0
_SET_BYTES = 500
SAME_WITHIN = 1.25
"""Medians count as the same below this ratio: rounds of one size differ by as much on a shared disk."""


def measure(directory: Path) -> Iterator[Figure]:
    """Run the part."""
    with stage.redis(directory) as server, stage.client(server) as kelpie:
        with stage.without_fsync(kelpie.app.ledger):
            pending = {size: stage.fill(kelpie, group(size), size) for size in SIZES}
        rounds = [_round(kelpie, pending) for _ in range(ROUNDS)]
    middle = {
        (size, share): median(stage.percentile(r[size], share) for r in rounds) for size in SIZES for share in SHARES
    }
    yield from figures(middle, median(stage.percentile(r[PLAIN], 0.99) for r in rounds))


def group(size: int) -> str:
    """The container group with that many jobs."""
    return f"bench-{size}"


def _round(kelpie: Kelpie, pending: dict[int, list[str]]) -> dict[int, list[float]]:
    taken: dict[int, list[float]] = {size: [] for size in (*SIZES, PLAIN)}
    redis = kelpie.app.ledger.redis
    for _ in range(CLAIMS):
        for size, ids in pending.items():
            taken[size].append(1000 * _claim(kelpie, ids.pop(0)))
            ids.extend(stage.fill(kelpie, group(size), 1))
        taken[PLAIN].append(1000 * stage.seconds(lambda: redis.set("bench:plain", "x" * _SET_BYTES)))
    return taken


def _claim(kelpie: Kelpie, job_id: str) -> float:
    ledger = kelpie.app.ledger
    nonce, received = str(uuid.uuid4()), ledger.server_time()
    claims = []

    def work() -> None:
        claims.append(ledger.claim(job_id, nonce, "machine", "worker", received, may_run=True))

    took_s = stage.seconds(work)
    if not isinstance(claims[0], Granted):
        raise TypeError(f"the claim of a pending job was answered with {claims[0]}")
    return took_s


def figures(middle: dict[tuple[int, float], float], plain_p99_ms: float) -> Iterator[Figure]:
    """The figures from the medians of the rounds' percentiles, in ms."""
    for size in SIZES:
        against = f"{size:,} pending; median of {ROUNDS} rounds of {CLAIMS} claims, appendfsync always"
        yield Figure(f"claim.p50_{size}", middle[size, 0.5], "ms", against=against)
        yield Figure(f"claim.p99_{size}", middle[size, 0.99], "ms", Target(P99_MS), against)
    yield Figure("claim.p99_plain_set", plain_p99_ms, "ms", against="p99 of a plain SET, in turn with the claims")
    small, large = SIZES
    ratio = middle[large, 0.5] / middle[small, 0.5]
    yield Figure(
        "claim.p50_ratio", ratio, "x", Target(SAME_WITHIN), f"p50 with {large:,} to p50 with {small:,} pending"
    )
