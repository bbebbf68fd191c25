"""How long one round of maintenance keeps Redis busy, with 10,000 jobs running.

A worker looks at ten entries a step, the control worker at a hundred; so it is measured with nothing to do, with ten
leases run out, and with a hundred. Limits: leases are made to run out by writing their times; nothing else is touched.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from benchmarks import stage
from benchmarks.figures import Figure, Target
from kelpie_celery.client import Kelpie
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.types import Tick

RUNNING, SPARE, MACHINES = 10_000, 2_000, 1_000
TICKS = 15
EXPIRED = (0, 10, 100)
LIMIT_MS = 200.0
_UP_FOR_LONG_S = 1e6  # a server that has just started reaps nothing yet
_LEASE_S = 3600.0


def measure(directory: Path) -> Iterator[Figure]:
    """Run the part."""
    with stage.redis(directory) as server, stage.client(server) as kelpie:
        shared = kelpie.app.ledger
        # As shipped, but that no lease runs out by itself and that ticks need not keep a distance.
        timings = dataclasses.replace(shared.timings, min_lease_s=_LEASE_S, tick_interval_s=0.0)
        ledger = Ledger(shared.redis, timings)
        with stage.without_fsync(ledger):
            ids = run_jobs(kelpie, ledger, RUNNING + SPARE)
        for expired in EXPIRED:
            limit = max(10, expired)
            took = [_tick(ledger, _take(ids, expired), limit) for _ in range(TICKS)]
            against = f"{RUNNING:,} running, {expired} leases run out; median of {TICKS}, appendfsync always"
            yield Figure(f"tick.expired_{expired}", 1000 * median(took), "ms", Target(LIMIT_MS), against)


def run_jobs(kelpie: Kelpie, ledger: Ledger, count: int) -> list[str]:
    """Jobs that run, on many machines."""
    ids = stage.fill(kelpie, stage.GROUP, count)
    for number, job_id in enumerate(ids):
        machine = f"machine-{number % MACHINES}"
        ledger.claim(job_id, str(uuid.uuid4()), machine, f"kelpie@{machine}", ledger.server_time(), may_run=True)
    for number in range(MACHINES):
        ledger.pulse(stage.GROUP, f"machine-{number}", [], alive=True)
    return ids


def _take(ids: list[str], count: int) -> list[str]:
    taken, ids[:] = ids[:count], ids[count:]
    return taken


def _tick(ledger: Ledger, expired: Sequence[str], limit: int) -> float:
    if expired:
        past = ledger.server_time() - 1
        ledger.redis.zadd(keys.index(stage.GROUP, "running"), dict.fromkeys(expired, past), xx=True)
    ticks: list[Tick | None] = []

    def work() -> None:
        ticks.append(ledger.tick(stage.GROUP, uptime_s=_UP_FOR_LONG_S, saw_outage=False, fresh=False, limit=limit))

    took_s = stage.seconds(work)
    if ticks[0] is None or ticks[0].reaped != len(expired):
        raise RuntimeError(f"{len(expired)} leases had run out, and the tick answered {ticks[0]}")
    return took_s
