"""The rules of leases hold in random histories, and each of them is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import pytest

from tests.models.lease_model import Outcome, Rules, Scenario, history

MESSAGES = Scenario(lose=0.1, double=0.1, freeze=0.004)
OUTAGE = Scenario(outage_s=100)
JUMP = Scenario(jump=True)
SUSPENDED = Scenario(suspend=True, freeze=0.008)
QUEUE = Scenario(jobs=60, runs_s=(5, 20))
EVERYTHING = Scenario(lose=0.1, double=0.1, freeze=0.004, suspend=True, outage_s=60, jump=True)


def disturbs_nobody(out: Outcome, scenario: Scenario) -> bool:
    """Nothing is computed twice, no message is sent twice: the holders only could not renew for a while."""
    return (out.interruptions, out.redone_s, out.published) == (0, 0, scenario.jobs)


def few_messages(out: Outcome, scenario: Scenario) -> bool:
    return out.published <= 3 * scenario.jobs


PROMISES: list[tuple[str, Scenario, Callable[[Outcome, Scenario], bool]]] = [
    ("lost and doubled messages, frozen nodes", MESSAGES, few_messages),
    ("Redis is away", OUTAGE, disturbs_nobody),
    ("Redis's clock jumps", JUMP, disturbs_nobody),
    ("nodes are suspended", SUSPENDED, few_messages),
    ("a long queue", QUEUE, disturbs_nobody),
    ("all at once", EVERYTHING, few_messages),
]


@pytest.mark.parametrize(("scenario", "promise"), [row[1:] for row in PROMISES], ids=[row[0] for row in PROMISES])
def test_every_job_ends_once_and_at_most_one_attempt_of_it_is_trusted(
    scenario: Scenario, promise: Callable[[Outcome, Scenario], bool]
) -> None:
    for seed in range(250):
        out = history(seed, Rules(), scenario)
        assert (out.stuck, out.overlaps, out.ended_twice) == (0, 0, 0), (seed, out)
        assert promise(out, scenario), (seed, out)


@dataclass(frozen=True)
class Needed:
    """What happens, and where, when a rule is not kept."""

    rule: str
    scenario: Scenario
    breaks: Callable[[Outcome], bool]


NEEDED = [
    Needed("fenced", MESSAGES, lambda out: out.ended_twice > 0),
    Needed("amnesty", OUTAGE, lambda out: out.interruptions > 0),
    Needed("amnesty", JUMP, lambda out: out.redone_s > 0),
    Needed("mute", OUTAGE, lambda out: out.redone_s > 0),
    Needed("late_renewal", OUTAGE, lambda out: out.redone_s > 0),
    Needed("boot_clock", SUSPENDED, lambda out: out.overlaps > 0),
    Needed("reconcile", MESSAGES, lambda out: out.stuck > 0),
    Needed("watermark", QUEUE, lambda out: out.published > 5 * QUEUE.jobs),
]


@pytest.mark.parametrize("needed", NEEDED, ids=lambda needed: needed.rule)
def test_without_any_one_rule_something_breaks(needed: Needed) -> None:
    without = replace(Rules(), **{needed.rule: False})
    assert any(needed.breaks(history(seed, without, needed.scenario)) for seed in range(250))


def test_no_rule_is_left_out() -> None:
    assert {needed.rule for needed in NEEDED} == {rule.name for rule in fields(Rules)}
