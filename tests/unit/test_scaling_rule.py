"""Scaling rules and files of them: what is taken, and what is refused in which words."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import fakeredis
import pytest

from kelpie_celery.errors import RuleError
from kelpie_celery.ledger.rules import Rules
from kelpie_celery.scaling.rule import ScalingRule, parse_rule, stored_rule
from kelpie_celery.scaling.rules_file import load_rules, read_rules, read_single_rule

GROUP = "6f1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d"


def refusal(**fields: Any) -> str:
    with pytest.raises(RuleError) as caught:
        parse_rule({"container_group_id": GROUP, **fields})
    assert caught.value.__context__ is None  # pydantic's error, which holds the input
    return str(caught.value)


# -- one rule ------------------------------------------------------------------------------------------------------


def test_a_rule_has_kelpies_limits_and_ours_with_defaults() -> None:
    rule = parse_rule({"container_group_id": GROUP})

    assert rule == ScalingRule(container_group_id=GROUP)
    assert rule.model_dump() == {
        "container_group_id": GROUP, "organization": "", "project": "", "group_name": "", "min_replicas": 0,
        "max_replicas": 10, "idle_threshold_seconds": 300, "jobs_per_replica": None, "scale_in_cooldown_s": 300,
        "max_step_up": None, "paused": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        (
            "max_replica",
            3,
            "max_replica: is not a field of a scaling rule; did you mean 'max_replicas'? (got a number)",
        ),
        ("idleThresholdSeconds", 3, "did you mean 'idle_threshold_seconds'?"),
        ("max_replicas", 501, "max_replicas: must be at most 500 (got 501)"),
        ("min_replicas", -1, "min_replicas: must be at least 0 (got -1)"),
        ("min_replicas", "2", "min_replicas: must be a whole number (got '2')"),
        ("min_replicas", True, "min_replicas: must be a whole number (got True)"),
        ("min_replicas", 11, "min_replicas: must be at most max_replicas, which is 10 (got 11)"),
        ("idle_threshold_seconds", 3601, "idle_threshold_seconds: must be at most 3600 (got 3601)"),
        ("idle_threshold_seconds", float("nan"), "idle_threshold_seconds: must be a finite number (got nan)"),
        ("scale_in_cooldown_s", -1, "scale_in_cooldown_s: must be at least 0 (got -1)"),
        ("jobs_per_replica", 0, "jobs_per_replica: must be at least 1 (got 0)"),
        ("max_step_up", 0, "max_step_up: must be at least 1 (got 0)"),
        ("paused", "no", "paused: must be true or false (got 'no')"),
        ("organization", "Example Org", "organization: must be a name on SaladCloud: 2 to 63 lower-case letters"),
        ("container_group_id", "a b", "container_group_id: must be 1 to 128 letters, digits, '.', '_' or '-'"),
    ],
)
def test_a_wrong_field_is_told_with_its_value_and_its_rule(field: str, value: Any, words: str) -> None:
    said = refusal(**{field: value})

    assert said.startswith("the scaling rule is refused: ")
    assert words in said


def test_all_faults_are_told_at_once() -> None:
    said = refusal(max_replicas=501, paused=3, nonsense=1)

    assert [field in said for field in ("max_replicas", "paused", "nonsense")] == [True] * 3


def test_what_is_no_object_and_what_names_no_group_is_refused() -> None:
    with pytest.raises(RuleError, match="must be an object with the fields of a scaling rule"):
        parse_rule([])  # type: ignore[arg-type]  # what a caller without types may do
    with pytest.raises(RuleError, match="container_group_id: is required"):
        ScalingRule()  # type: ignore[call-arg]


def test_a_changed_rule_is_checked_again() -> None:
    rule = ScalingRule(container_group_id=GROUP)

    assert rule.changed(max_replicas=20).max_replicas == 20
    with pytest.raises(RuleError, match="min_replicas"):
        rule.changed(min_replicas=20)


def test_a_stored_rule_of_a_newer_version_is_read() -> None:
    assert stored_rule({"container_group_id": GROUP, "max_replicas": 3, "from_the_future": 1}).max_replicas == 3


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rules.toml"


@pytest.fixture
def rules() -> Rules:
    return Rules(fakeredis.FakeRedis())


def refused_file(file: Path, text: str) -> str:
    file.write_text(text)
    with pytest.raises(RuleError) as caught:
        read_rules(file)
    assert str(caught.value).startswith(f"the rules in {file} are refused: ")
    return str(caught.value)


def test_a_file_holds_a_rule_for_each_container_group_and_what_they_share(file: Path, rules: Rules) -> None:
    file.write_text(
        f"""
        [defaults]
        organization = "example-org"
        max_replicas = 3

        [[rules]]
        container_group_id = "{GROUP}"
        idle_threshold_seconds = 60

        [[rules]]
        container_group_id = "other"
        max_replicas = 20
        """
    )
    kept = load_rules(file, rules)

    assert kept == [
        ScalingRule(container_group_id=GROUP, organization="example-org", max_replicas=3, idle_threshold_seconds=60),
        ScalingRule(container_group_id="other", organization="example-org", max_replicas=20),
    ]
    assert rules.all() == kept


def test_loading_a_file_again_undoes_changes_but_neither_a_pause_nor_what_was_looked_up(
    file: Path, rules: Rules
) -> None:
    file.write_text('[[rules]]\ncontainer_group_id = "g"\nmax_replicas = 4')
    load_rules(file, rules)
    rules.change("g", {"paused": True, "group_name": "workers", "max_replicas": 9, "min_replicas": 2})
    rules.put(ScalingRule(container_group_id="by-hand"))
    load_rules(file, rules)

    assert rules.get("g") == ScalingRule(container_group_id="g", max_replicas=4, paused=True, group_name="workers")
    assert rules.get("by-hand") is not None

    file.write_text('[[rules]]\ncontainer_group_id = "g"\npaused = false\ngroup_name = ""')
    load_rules(file, rules)
    assert rules.get("g") == ScalingRule(container_group_id="g")


def test_nothing_is_kept_of_a_file_with_one_wrong_rule(file: Path, rules: Rules) -> None:
    file.write_text('[[rules]]\ncontainer_group_id = "g"\n[[rules]]\ncontainer_group_id = "h"\nmax_replicas = 501')

    with pytest.raises(RuleError, match=r"rules\[1\]\.max_replicas: must be at most 500 \(got 501\)"):
        load_rules(file, rules)
    assert rules.all() == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_replicas = 3", "max_replicas: is not a table of a rules file; write [[rules]] above"),
        ('[[rule]]\ncontainer_group_id = "g"', "rule: is not a table of a rules file; did you mean 'rules'?"),
        ('[rules]\ncontainer_group_id = "g"', "rules: must be tables: [[rules]], one for each container group"),
        ("[[rules]]\nmax_replicas = 3", "rules[0].container_group_id: is required"),
        ('[[rules]]\ncontainer_group_id = "g"\nmaxreplicas = 3', "rules[0].maxreplicas: is not a field of a scaling"),
        ('[defaults]\ncontainer_group_id = "g"', "defaults.container_group_id: belongs into each of [[rules]]"),
        ("defaults = 1", "defaults: must be a table: [defaults]"),
        (
            '[[rules]]\ncontainer_group_id = "g"\n' * 2,
            "rules: must be one for each container group (got 2 rules for g)",
        ),
        ("[[rules]]\ncontainer_group_id = g", "file: must be TOML; values that are text stand in quotes (got Invalid"),
    ],
)
def test_a_wrong_file_is_told_with_the_place_and_what_to_do(file: Path, text: str, words: str) -> None:
    assert words in refused_file(file, text)


def test_a_file_that_cannot_be_read_is_told_by_its_name(file: Path) -> None:
    with pytest.raises(RuleError, match=r"rules\.toml are refused: file: must be a file that can be read") as caught:
        read_rules(file)
    assert caught.value.__context__ is None
    file.write_bytes(b"\xff")
    with pytest.raises(RuleError, match="must be TOML in UTF-8"):
        read_rules(file)
    file.write_bytes(b"#" * (1 << 20) + b"#")
    with pytest.raises(RuleError, match="must have at most 1048576 bytes"):
        read_rules(file)


def test_a_group_that_never_had_a_job_is_warned_of_with_the_one_that_was_meant(
    file: Path, rules: Rules, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text('[[rules]]\ncontainer_group_id = "trainnig"\n[[rules]]\ncontainer_group_id = "known"')
    with caplog.at_level(logging.WARNING):
        load_rules(file, rules, known_groups={"training", "known"})

    (record,) = caplog.records
    assert (vars(record)["action"], vars(record)["container_group"]) == ("rule_without_jobs", "trainnig")
    assert vars(record)["near"] == "training"
    assert rules.get("trainnig") is not None


def test_a_single_rule_may_stand_alone_or_be_the_one_of_a_file(file: Path) -> None:
    file.write_text("max_replicas = 3")
    assert read_single_rule(file, "g") == ScalingRule(container_group_id="g", max_replicas=3)

    file.write_text('[[rules]]\ncontainer_group_id = "h"\nmax_replicas = 3')
    assert read_single_rule(file, "g") == ScalingRule(container_group_id="h", max_replicas=3)

    file.write_text("[[rules]]\ncontainer_group_id = 'a'\n[[rules]]\ncontainer_group_id = 'b'")
    with pytest.raises(RuleError, match="must be one rule: give each a file of its own"):
        read_single_rule(file, "g")
    file.write_text("max_replica = 3")
    with pytest.raises(RuleError, match="did you mean 'max_replicas'"):
        read_single_rule(file, "g")
