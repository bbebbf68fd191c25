"""Jobs a second: one by one and many at once, beside plain Celery's ``send_task`` on the same Redis.

A job of ours is a record, its indexes and a message, written atomically; plain Celery's is a message alone. To be fair
to it, ``send_task`` asks for no result, which spares it a subscription. The ways take turns, three rounds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from celery import Celery

from benchmarks import stage
from benchmarks.figures import Figure, Target
from kelpie_celery.client import Kelpie

ROUNDS = 3
ONE_BY_ONE, MANY, BATCHED = 600, 10_000, 2500
TIMES_SEND_TASK = 2.0
_PAYLOAD_BYTES = 600  # makes a message of about 1.8 kB on the list


@contextmanager
def plain_celery(url: str) -> Iterator[Celery]:
    """An app with Celery's defaults."""
    app = Celery("plain", broker=url, set_as_current=False)
    yield app
    app.close()


def send_task(app: Celery) -> int:
    """Plain Celery, one by one."""
    for _ in range(ONE_BY_ONE):
        app.send_task("work", (json.dumps({"x": "y" * _PAYLOAD_BYTES}),), ignore_result=True)
    return ONE_BY_ONE


def send_task_batched(app: Celery) -> int:
    """Plain Celery's fastest way: one producer, 500 messages a pipeline."""
    with app.producer_pool.acquire() as producer, producer.batch(max_size=500):  # type: ignore[attr-defined]  # new in kombu 5.7
        for _ in range(BATCHED):
            payload = (json.dumps({"x": "y" * _PAYLOAD_BYTES}),)
            app.send_task("work", payload, producer=producer, ignore_result=True, retry=False)
    return BATCHED


def submit(kelpie: Kelpie) -> int:
    """Ours, one by one."""
    definition = stage.definition()
    for _ in range(ONE_BY_ONE):
        kelpie.submit(definition)
    return ONE_BY_ONE


def submit_many(kelpie: Kelpie) -> int:
    """Ours, many at once: validation, record and message."""
    kelpie.submit_many([stage.definition() for _ in range(MANY)])
    return MANY


def measure(directory: Path) -> Iterator[Figure]:
    """Run the part."""
    with stage.redis(directory) as server, stage.client(server) as kelpie, plain_celery(server.url) as plain:
        ways: dict[str, Callable[[], int]] = {
            "send_task": lambda: send_task(plain),
            "send_task_batched": lambda: send_task_batched(plain),
            "submit": lambda: submit(kelpie),
            "submit_many": lambda: submit_many(kelpie),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        kelpie.app.ledger.redis.config_set("auto-aof-rewrite-percentage", 0)
        for _ in range(ROUNDS):
            for name, way in ways.items():
                rates[name].append(_rate(way))
                kelpie.app.ledger.redis.flushdb()
    yield from figures({name: median(values) for name, values in rates.items()})


def _rate(way: Callable[[], int]) -> float:
    done = 0

    def work() -> None:
        nonlocal done
        done = way()

    took_s = stage.seconds(work)
    return done / took_s


def figures(rates: dict[str, float]) -> Iterator[Figure]:
    """The figures from the medians, in jobs a second."""
    beside = f"medians of {ROUNDS} interleaved rounds, appendfsync always"
    yield Figure("submit.send_task", rates["send_task"], "messages/s", against=f"plain Celery; {beside}")
    yield Figure(
        "submit.send_task_batched", rates["send_task_batched"], "messages/s", against="plain Celery, 500 a batch"
    )
    yield Figure("submit.one_by_one", rates["submit"], "jobs/s", against="record and message, Kelpie.submit")
    yield Figure("submit.many", rates["submit_many"], "jobs/s", against=f"record and message, {MANY:,} by submit_many")
    ratio = rates["submit_many"] / rates["send_task"]
    target = Target(TIMES_SEND_TASK, at_least=True)
    yield Figure("submit.many_to_send_task", ratio, "x", target, "submit_many to plain Celery's send_task")
