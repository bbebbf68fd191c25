"""Retry rules: what is refused, what matches, and what then becomes of a failure."""

from __future__ import annotations

from typing import Any

import pytest

from kelpie_celery.definition import from_json, json_schema, parse_definition
from kelpie_celery.errors import DefinitionError
from kelpie_celery.ledger.types import Ending
from kelpie_celery.lifecycle import Outcome, Reason
from kelpie_celery.reasons import REASONS
from kelpie_celery.retry_rules import RetryRule, ruled


def rules(*given: dict[str, Any]) -> list[RetryRule]:
    base = {"command": "x", "container_group_id": "g", "sync": {}}
    return parse_definition({**base, "retry": list(given)}).retry


def failure(reason: Reason = Reason.EXIT_CODE, **facts: Any) -> Ending:
    return Ending(Outcome.FAILURE, reason, "it failed", facts=facts, delay_s=5)


@pytest.mark.parametrize(
    ("one", "field", "words"),
    [
        ({"on_exit_code": [1]}, "retry[0].action", "is required"),
        ({"action": "fail"}, "retry[0]", "must say what it is about"),
        ({"on_exit_code": [], "action": "fail"}, "retry[0]", "must say what it is about"),
        ({"on_exit_code": [1], "action": "ignore"}, "retry[0].action", "must be 'retry', 'fail' or 'free'"),
        ({"on_exit_code": [0], "action": "free"}, "retry[0].on_exit_code[0]", "0 is success"),
        ({"on_exit_code": [75], "action": "free"}, "retry[0].on_exit_code[0]", "run me again"),
        ({"on_exit_code": [256], "action": "free"}, "retry[0].on_exit_code[0]", "from 1 to 255"),
        ({"on_exit_code": [-9], "action": "free"}, "retry[0].on_exit_code[0]", "128 and the signal's number"),
        ({"on_exit_code": ["1"], "action": "free"}, "retry[0].on_exit_code[0]", "whole number"),
        ({"on_exit_code": [True], "action": "free"}, "retry[0].on_exit_code[0]", "whole number"),
        ({"on_exit_code": 1, "action": "free"}, "retry[0].on_exit_code", "must be a list"),
        ({"on_exit_codes": [1], "action": "free"}, "retry[0].on_exit_codes", "did you mean 'on_exit_code'?"),
        ({"on_reason": ["ooom"], "action": "free"}, "retry[0].on_reason[0]", "did you mean 'oom'?"),
        ({"on_reason": "disk-full", "action": "free"}, "retry[0].on_reason[0]", "did you mean 'disk_full'?"),
        ({"on_reason": "lease_expired", "action": "fail"}, "retry[0].on_reason[0]", "always retried"),
        ({"on_reason": "total_timeout", "action": "free"}, "retry[0].on_reason[0]", "no rule can change"),
        ({"on_reason": "no_progress", "action": "free"}, "retry[0].on_reason[0]", "no rule can change"),
        ({"on_reason": "canceled", "action": "free"}, "retry[0].on_reason[0]", "no rule can change"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_with_field_and_rule(one: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        rules(one)
    found = {name: text for name, _, text in refused.value.problems}
    assert field in found, found
    assert words in found[field]


def test_there_is_a_bound_on_rules() -> None:
    with pytest.raises(DefinitionError, match="at most 50"):
        rules(*[{"on_exit_code": [1], "action": "fail"}] * 51)


def test_the_first_rule_that_matches_counts() -> None:
    given = rules(
        {"on_exit_code": [3, 4], "action": "retry"},
        {"on_exit_code": [4, 5], "action": "fail"},
        {"on_reason": ["exit_code", "oom"], "action": "free"},
    )
    ends = [ruled(given, failure(exit_code=code)) for code in (3, 4, 5, 6)]
    assert [(end.outcome, end.final, end.facts["retry_rule"]) for end in ends] == [
        (Outcome.FAILURE, False, 0),
        (Outcome.FAILURE, False, 0),
        (Outcome.FAILURE, True, 1),
        (Outcome.FREE, False, 2),
    ]
    assert "retry[1] ends the job" in ends[2].message


def test_where_a_rule_names_both_both_must_match() -> None:
    given = rules({"on_exit_code": [137], "on_reason": "oom", "action": "free"})
    assert ruled(given, failure(Reason.OOM, exit_code=137)).outcome is Outcome.FREE
    assert ruled(given, failure(Reason.EXIT_CODE, exit_code=137)).outcome is Outcome.FAILURE
    assert ruled(given, failure(Reason.OOM, exit_code=1)).outcome is Outcome.FAILURE


def test_a_command_that_a_signal_ended_has_the_code_that_a_shell_would_show() -> None:
    given = rules({"on_exit_code": [139], "action": "free"})
    assert ruled(given, failure(Reason.SIGNAL, signal=11, exit_code=None)).outcome is Outcome.FREE


@pytest.mark.parametrize("reason", [Reason.TIMEOUT, Reason.STALLED])
def test_what_we_ended_ourselves_has_no_exit_code(reason: Reason) -> None:
    ours = failure(reason, signal=15)
    assert ruled(rules({"on_exit_code": [143], "action": "free"}), ours) == ours
    assert ruled(rules({"on_reason": [reason.value], "action": "free"}), ours).outcome is Outcome.FREE


@pytest.mark.parametrize("reason", [reason for reason, meaning in REASONS.items() if not meaning.ruled])
def test_other_ends_are_as_they_are(reason: Reason) -> None:
    given = rules({"on_exit_code": list(range(1, 75)), "action": "free"})
    ending = Ending(REASONS[reason].outcome, reason, facts={"exit_code": 1})
    assert ruled(given, ending) == ending


def test_a_rule_that_was_applied_is_not_applied_again() -> None:
    given = rules({"on_exit_code": [1], "action": "free"})
    once = ruled(given, failure(exit_code=1))
    assert ruled(given, once) == once


def test_rules_come_back_from_the_ledger_as_they_went() -> None:
    text = {"on_reason": "oom", "action": "free"}
    given = parse_definition({"command": "x", "container_group_id": "g", "sync": {}, "retry": [text]})
    back = from_json(given.to_json())
    assert back.retry == given.retry
    assert ruled(back.retry, failure(Reason.OOM)).outcome is Outcome.FREE


def test_the_schema_names_the_reasons_and_actions() -> None:
    rule = json_schema()["$defs"]["RetryRule"]["properties"]
    assert "oom" in rule["on_reason"]["items"]["enum"]
    assert "lease_expired" not in rule["on_reason"]["items"]["enum"]
    assert rule["action"]["enum"] == ["retry", "fail", "free"]
