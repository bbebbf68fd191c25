"""A long queue is reconciled without flooding it: hours of a busy group on a clock that the test holds."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from redis import Redis

from kelpie_celery.ledger.types import FencingToken, Granted
from kelpie_celery.lifecycle import Phase
from tests.contract.ledger_cases import GROUP, World, completed
from tests.contract.ledger_fixtures import ledger_valkey, real_redis  # noqa: F401

JOBS, WORKERS = 400, 4


@dataclass
class Slot:
    token: FencingToken | None = None
    done_at: float = 0.0
    beat_at: float = 0.0


def serve(w: World, slot: Slot, rng: random.Random, lose: float) -> int:
    """What one worker does in two seconds; returns the messages that it took."""
    if slot.token is None:
        got = w.pop()
        if got is None:
            return 0
        if rng.random() >= lose:
            answer = w.ask(got[0], f"m{id(slot)}", received_at=got[1])
            if isinstance(answer, Granted):
                slot.token, slot.done_at, slot.beat_at = (
                    answer.token,
                    w.clock.now + rng.randint(5, 40),
                    w.clock.now + 15,
                )
        return 1
    if w.clock.now >= slot.done_at:
        w.ledger.end_attempt(slot.token, completed())
        w.ledger.celery_done(slot.token.job_id)
        slot.token = None
    elif w.clock.now >= slot.beat_at:
        w.ledger.renew(slot.token, Phase.EXECUTING)
        slot.beat_at = w.clock.now + 15
    return 0


@pytest.mark.parametrize(("lose", "most"), [(0.0, JOBS), (0.1, round(1.4 * JOBS))], ids=["no-loss", "every-tenth-lost"])
def test_each_of_400_pending_jobs_is_published_about_once(real_redis: Redis, lose: float, most: int) -> None:
    w, rng = World(real_redis), random.Random(7)
    w.ledger.watching = False
    w.ledger.submit_many([w.new(f"j{n}") for n in range(JOBS)])
    slots = [Slot() for _ in range(WORKERS)]
    received = republished = 0
    for turn in range(20 * JOBS):
        w.clock.advance(2)
        received += sum(serve(w, slot, rng, lose) for slot in slots)
        if turn % 2 == 0:
            republished += w.tick().republished
        if turn % 50 == 0 and w.ledger.counts(GROUP).completed == JOBS:
            break
    assert w.ledger.counts(GROUP).completed == JOBS
    assert JOBS + republished <= most
    assert received <= most
