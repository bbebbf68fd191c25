"""The ledger under a Redis user that may touch one group: what it leaves to others is done, and nothing is half done.

On a real server only: fakeredis knows no users.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from kelpie_celery.errors import LedgerRefused, PrefixHeld
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.scripts import OPERATIONS, source
from kelpie_celery.ledger.types import Ending, FencingToken, Granted, NewJob
from kelpie_celery.lifecycle import Outcome, Reason
from kelpie_celery.local.servers import ValkeyServer
from tests.contract.ledger_cases import CLOCK_KEY, GROUP, SERVER_TIME, TEST_TIME, TIMINGS, World, completed, new_commit
from tests.contract.ledger_fixtures import ledger_valkey, real_redis
from tests.harness.acl import make_user

__all__ = ["ledger_valkey", "real_redis"]

HOUR_S = 3600
DAY_S = 86400
OTHER = "other"


@pytest.fixture
def w(real_redis: Redis) -> World:
    """What the client and the control worker do, with all rights."""
    world = World(real_redis)
    world.ledger.watching = False  # a bookkeeping that was handed over is in an index of its own
    return world


@pytest.fixture
def limited(w: World, ledger_valkey: ValkeyServer) -> Iterator[Ledger]:
    """What a worker of ``GROUP`` does, with the rights of its user, by the test's clock."""
    url = make_user(ledger_valkey.url, GROUP)
    w.redis.execute_command("ACL", "SETUSER", f"worker-{GROUP}", f"%R~{CLOCK_KEY}")  # type: ignore[no-untyped-call]
    with Redis.from_url(url, decode_responses=True) as client:
        ledger = Ledger(client, TIMINGS)
        for operation in OPERATIONS:
            ledger._scripts[operation] = client.register_script(source(operation).replace(SERVER_TIME, TEST_TIME))
        yield ledger


def run(ledger: Ledger, job_id: str) -> None:
    """Take a job and complete it."""
    granted = ledger.claim(job_id, f"nonce-{job_id}", "m1", "w@m1", None, may_run=True)
    assert isinstance(granted, Granted)
    ledger.end_attempt(granted.token, completed())


def tick(ledger: Ledger) -> tuple[str, ...]:
    done = ledger.tick(GROUP, uptime_s=1e6, saw_outage=False, fresh=False)
    assert done is not None
    return done.outbox


def taken(ledger: Ledger, job_id: str) -> FencingToken:
    granted = ledger.claim(job_id, f"nonce-{job_id}", "m1", "w@m1", None, may_run=True)
    assert isinstance(granted, Granted)
    return granted.token


def test_the_place_of_a_record_that_a_worker_forgot_is_forgotten_by_who_may(w: World, limited: Ledger) -> None:
    w.submit("j1")
    run(limited, "j1")
    limited.celery_done("j1")
    w.clock.advance(TIMINGS.job_retention_s + 1)
    tick(limited)
    assert not w.redis.exists(keys.job(GROUP, "j1"))
    assert w.redis.get(keys.where("j1")) == GROUP
    w.clock.advance(HOUR_S + 1)
    tick(limited)
    assert w.redis.exists(keys.where("j1"))
    w.tick()
    assert not w.redis.exists(keys.where("j1"), f"{keys.group_prefix(GROUP)}leftover")


def test_a_place_whose_record_is_there_outlives_a_leftover_that_somebody_made_up(w: World, limited: Ledger) -> None:
    w.submit("theirs", group=OTHER)
    w.ledger.draft("their-draft", OTHER, "{}")
    w.submit("holder", group=OTHER, drafts=(keys.job(OTHER, "their-draft"),))
    made_up = ("where:theirs", "where:", "nonsense", f"draft:x:{keys.job(OTHER, 'theirs')}", "draft:x:kelpie:rules")
    w.redis.hset(keys.RULES, "g", "{}")
    limited.redis.zadd(f"{keys.group_prefix(GROUP)}leftover", dict.fromkeys(made_up, 0))
    w.tick()
    assert w.redis.get(keys.where("theirs")) == OTHER
    assert w.redis.ttl(keys.where("theirs")) == w.redis.ttl(keys.job(OTHER, "theirs")) == w.redis.ttl(keys.RULES) == -1
    assert w.redis.zcard(f"{keys.group_prefix(GROUP)}leftover") == 0


def test_the_next_step_in_the_same_group_is_submitted_by_its_worker(w: World, limited: Ledger) -> None:
    w.ledger.draft("step2", GROUP, '{"command":"two"}')
    w.submit("j1", drafts=(keys.job(GROUP, "step2"),))
    run(limited, "j1")
    assert limited.submit(w.new("step2", definition="")).what == "created"
    assert w.ledger.get("step2").status == "pending"
    w.clock.advance(HOUR_S + 1)
    w.tick()
    assert w.redis.ttl(keys.where("step2")) == w.redis.ttl(keys.job(GROUP, "step2")) == -1


def test_a_draft_of_another_group_is_let_go_by_who_may(w: World, limited: Ledger) -> None:
    draft = keys.job(OTHER, "theirs")
    w.ledger.draft("theirs", OTHER, "{}")
    w.submit("j1", drafts=(draft,))
    run(limited, "j1")
    assert w.redis.hget(draft, "refs") == "1"
    w.clock.advance(HOUR_S + 1)
    tick(limited)
    assert w.redis.ttl(draft) == -1
    w.tick()
    assert 0 < w.redis.ttl(draft) <= TIMINGS.job_retention_s
    assert w.redis.ttl(keys.where("theirs")) > 0


def test_a_canceled_draft_goes_with_its_place(w: World, limited: Ledger) -> None:
    w.ledger.draft("step2", GROUP, "{}")
    w.submit("j1", drafts=(keys.job(GROUP, "step2"),))
    assert limited.cancel("step2") == "canceled"
    w.clock.advance(HOUR_S + 1)
    w.tick()
    assert w.redis.ttl(keys.where("step2")) > 0


@pytest.mark.parametrize("refused", [
    NewJob("new", OTHER, "{}", "m", 5, 1.0, 1), NewJob("new", GROUP, "{}", "m", 5, 1.0, 1),
    NewJob("step2", GROUP, "", "m", 5, 1.0, 1, drafts=(keys.job(OTHER, "theirs"),), idempotency_key="k"),
])  # fmt: skip
def test_what_a_worker_may_not_submit_leaves_nothing_behind(w: World, limited: Ledger, refused: NewJob) -> None:
    w.ledger.draft("step2", GROUP, "{}")
    w.ledger.draft("theirs", OTHER, "{}")
    w.submit("j1", drafts=(keys.job(GROUP, "step2"), keys.job(OTHER, "theirs")))
    before = {key: w.redis.dump(key) for key in w.redis.scan_iter()}
    with pytest.raises(LedgerRefused):
        limited.submit(refused)
    assert {key: w.redis.dump(key) for key in w.redis.scan_iter()} == before


def test_bookkeeping_that_was_handed_over_is_given_to_nobody_without_the_rights(w: World, limited: Ledger) -> None:
    w.submit("j1")
    run(limited, "j1")
    assert limited.hand_over("j1")
    w.clock.advance(TIMINGS.outbox_lease_s + 1)
    assert tick(limited) == ()
    assert w.tick().outbox == ("j1",)
    assert w.tick().outbox == ()
    w.clock.advance(TIMINGS.outbox_lease_s + 1)
    assert w.tick().outbox == ("j1",)
    assert w.ledger.celery_done("j1")
    w.clock.advance(TIMINGS.outbox_lease_s + 1)
    assert w.tick().outbox == ()
    assert not limited.hand_over("j1")


def test_a_prefix_is_free_for_another_group_once_its_holder_has_ended(w: World, limited: Ledger) -> None:
    w.submit("theirs", group=OTHER)
    token = taken(w.ledger, "theirs")
    w.ledger.commit(token, [new_commit(token, 1)], {})
    w.submit("j1")
    mine = taken(limited, "j1")
    later = new_commit(mine, 2, base=new_commit(token, 1).id)
    with pytest.raises(PrefixHeld):
        limited.commit(mine, [later], {})
    w.ledger.end_attempt(token, Ending(Outcome.COMPLETED, Reason.DONE))
    assert limited.commit(mine, [later], {})[0].head is not None


def test_a_prefix_that_a_user_has_rolled_back_after_the_end_is_free_as_well(w: World, limited: Ledger) -> None:
    w.submit("theirs", group=OTHER)
    token = taken(w.ledger, "theirs")
    w.ledger.commit(token, [new_commit(token, 1)], {})
    w.ledger.end_attempt(token, Ending(Outcome.COMPLETED, Reason.DONE))
    back = new_commit(token, 2)
    w.ledger.rollback("theirs", new_commit(token, 1).id, [back])
    w.submit("j1")
    mine = taken(limited, "j1")
    assert limited.commit(mine, [new_commit(mine, 3, base=back.id)], {})[0].generation == 3
