"""The ledger's contract: scaling rules."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from kelpie_celery.errors import LedgerUnavailable, RuleError, RuleNotFound
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.rules import Rules
from kelpie_celery.scaling.rule import ScalingRule
from tests.contract.ledger_fixtures import any_redis, ledger_valkey, real_redis  # noqa: F401


@pytest.fixture
def rules(any_redis: Redis) -> Rules:
    return Rules(any_redis)


def rule(group: str = "g", max_replicas: int = 10) -> ScalingRule:
    return ScalingRule(container_group_id=group, max_replicas=max_replicas)


def test_a_rule_is_kept_read_replaced_and_deleted(rules: Rules) -> None:
    assert (rules.get("g"), rules.all(), rules.delete("g")) == (None, [], False)

    rules.put(rule("g", 3))
    rules.put(rule("a"))
    assert rules.get("g") == rule("g", 3)
    assert rules.all() == [rule("a"), rule("g", 3)]

    rules.put(rule("g", 4))
    assert rules.require("g") == rule("g", 4)
    assert rules.delete("g") is True
    assert rules.all() == [rule("a")]


def test_a_pause_keeps_all_other_fields(rules: Rules) -> None:
    rules.put(rule("g", 3))

    assert rules.pause("g") == rule("g", 3).changed(paused=True) == rules.get("g")
    assert rules.resume("g") == rule("g", 3) == rules.get("g")


def test_a_group_without_a_rule_is_told_with_the_one_that_was_meant(rules: Rules) -> None:
    rules.put(rule("training-a"))

    for call in (rules.require, rules.pause, rules.resume):
        with pytest.raises(RuleNotFound, match=r"container group 'training-b'; did you mean 'training-a'\?"):
            call("training-b")
    with pytest.raises(RuleNotFound, match="'kelpie rules list' shows those that there are"):
        rules.change("zzz", {"paused": True})
    assert rules.all() == [rule("training-a")]


def test_fields_are_merged_into_rules_all_of_them_or_none(rules: Rules) -> None:
    rules.put(rule("g", 3).changed(paused=True))

    rules.merge({"g": {"min_replicas": 2}, "new": {"max_replicas": 1}})
    assert rules.get("g") == rule("g", 3).changed(paused=True, min_replicas=2)
    assert rules.get("new") == rule("new", 1)

    with pytest.raises(RuleError, match="max_replicas"):
        rules.merge({"new": {"max_replicas": 2}, "g": {"max_replicas": 501}})
    assert rules.get("new") == rule("new", 1)
    assert rules.merge({}) == []


def test_a_rule_of_a_newer_version_is_read(rules: Rules, any_redis: Redis) -> None:
    any_redis.hset(keys.RULES, "g", '{"container_group_id": "g", "max_replicas": 3, "tomorrow": [1]}')

    assert rules.all() == [rule("g", 3)]
    assert rules.pause("g").max_replicas == 3


def test_changes_of_different_fields_at_the_same_time_are_all_kept(real_redis: Redis) -> None:
    """A read and a write without compare-and-set would lose some of them: a pause above all."""
    rules = Rules(real_redis)
    rules.put(rule("g", 500))
    fields = ("paused", "min_replicas", "jobs_per_replica", "max_step_up")

    def change(field: str) -> None:
        for value in range(1, 26):
            rules.change("g", {field: True if field == "paused" else value})

    with ThreadPoolExecutor(len(fields)) as pool:
        list(pool.map(change, fields))
    kept = rules.require("g")
    assert [getattr(kept, field) for field in fields] == [True, 25, 25, 25]


def test_a_redis_that_is_away_is_the_ledgers_error() -> None:
    away = Rules(Redis(port=1, retry=Retry(NoBackoff(), 0)))

    for call in (away.all, lambda: away.get("g"), lambda: away.pause("g"), lambda: away.put(rule())):
        with pytest.raises(LedgerUnavailable):
            call()
