"""Time limits of an attempt."""

from __future__ import annotations

from typing import Any

from kelpie_celery.clock import ManualClock
from kelpie_celery.definition import JobDefinition, parse_definition
from kelpie_celery.lifecycle import Reason
from kelpie_worker.limits import Limits


def definition(**more: Any) -> JobDefinition:
    return parse_definition({"command": "true", "container_group_id": "g", "sync": {}, **more})


def test_without_limits_nothing_is_exceeded() -> None:
    clock = ManualClock()
    limits = Limits(definition(), 0, 1, clock)
    clock.advance(9 * 86400)
    assert limits.check() is None


def test_a_timeout_counts_from_the_launch_and_is_retried() -> None:
    clock = ManualClock()
    limits = Limits(definition(timeout=10), 1e6, 7, clock)
    clock.advance(100)
    limits.launched()
    clock.advance(10)
    assert limits.check() is None
    clock.advance(0.1)
    ending = limits.check()
    assert ending is not None
    assert (ending.reason, ending.final, ending.delay_s) == (Reason.TIMEOUT, False, 7)


def test_a_total_timeout_counts_earlier_attempts_and_is_final() -> None:
    clock = ManualClock()
    limits = Limits(definition(total_timeout=100), 95, 7, clock)
    clock.advance(5.1)
    ending = limits.check()
    assert ending is not None
    assert (ending.reason, ending.final) == (Reason.TOTAL_TIMEOUT, True)


def test_a_sign_of_life_puts_a_stall_off() -> None:
    clock = ManualClock()
    limits = Limits(definition(stall_timeout=10), 0, 7, clock)
    clock.advance(9)
    limits.sign_of_life()
    clock.advance(9)
    assert limits.check() is None
    clock.advance(2)
    ending = limits.check()
    assert ending is not None
    assert ending.reason == Reason.STALLED
