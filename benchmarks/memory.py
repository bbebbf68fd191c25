"""Bytes of Redis memory a pending job, with a definition of about 700 bytes.

Measured twice: what the server says that it uses, before and after; and the sum of ``MEMORY USAGE`` over all keys,
which leaves out the server's own tables. The hint on the broker's list comes on top until it is fetched.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

from benchmarks import stage
from benchmarks.figures import Figure, Target
from kelpie_celery.definition import parse_definition
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.ledger import Ledger

JOBS = 10_000
LIMIT_BYTES = 4000.0


def measure(directory: Path) -> Iterator[Figure]:
    """Run the part."""
    size = len(parse_definition(stage.definition()).to_json())
    with stage.redis(directory) as server, stage.client(server) as kelpie:
        ledger = kelpie.app.ledger
        stage.fill(kelpie, "warm-up", 1)  # loads the scripts, makes the buffers
        ledger.redis.flushdb()
        with stage.without_fsync(ledger):
            empty = used(ledger)
            stage.fill(kelpie, stage.GROUP, JOBS)
            whole, keys_whole = used(ledger), usage(ledger)
            ledger.redis.delete(keys.queue_list(stage.GROUP, parse_definition(stage.definition()).priority))
            without, keys_without = used(ledger), usage(ledger)
    against = f"{JOBS:,} pending jobs, definition of {size} B"
    yield Figure("memory.job", (whole - empty) / JOBS, "B/job", Target(LIMIT_BYTES), f"{against}; record and message")
    yield Figure(
        "memory.record", (without - empty) / JOBS, "B/job", Target(LIMIT_BYTES), "without the broker's message"
    )
    yield Figure("memory.job_keys", keys_whole / JOBS, "B/job", against="sum of MEMORY USAGE; record and message")
    yield Figure("memory.record_keys", keys_without / JOBS, "B/job", against="sum of MEMORY USAGE; without the message")


def used(ledger: Ledger) -> int:
    """What the server says that it uses, in bytes."""
    gc.collect()  # a pipeline of ours that waits to be freed holds buffers there
    return int(ledger.redis.info("memory")["used_memory"])


def usage(ledger: Ledger) -> int:
    """The sum over all keys, in bytes."""
    names = list(ledger.redis.scan_iter(count=1000))
    total = 0
    for at in range(0, len(names), stage.BATCH):
        with ledger.redis.pipeline(transaction=False) as pipe:
            for name in names[at : at + stage.BATCH]:
                pipe.memory_usage(name, samples=0)
            total += sum(pipe.execute())
    return total
