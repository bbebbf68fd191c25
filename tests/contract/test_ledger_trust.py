"""What a group's workers write into its keys, which they may, gives whoever maintains it no power over other groups."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import pytest

from kelpie_celery.ledger import keys
from tests.contract.ledger_cases import GROUP, World
from tests.contract.ledger_fixtures import any_redis, ledger_valkey, w  # noqa: F401


@pytest.mark.parametrize("foreign", [keys.CONTROL_QUEUE, "kelpie.other"])
def test_a_message_is_published_to_no_queue_but_the_groups_own(w: World, foreign: str) -> None:
    w.submit("j1")
    assert w.pop() is not None, "it is lost, so that it is published anew"
    w.redis.hset(keys.job(GROUP, "j1"), "queue", foreign)
    w.wait(60)
    w.tick()
    assert w.redis.llen(foreign) == 0
    assert len(w.messages()) == 1


def test_an_index_that_names_a_job_of_another_group_does_not_lose_it(w: World) -> None:
    w.redis.set(keys.where("theirs"), "other")
    w.redis.zadd(keys.index(GROUP, "ended"), {"theirs": 1.0})
    w.tick()
    assert w.redis.zcard(keys.index(GROUP, "ended")) == 0
    assert w.redis.get(keys.where("theirs")) in ("other", b"other")
