"""``kelpie rules`` and ``kelpie simulate-scaling``, and the same from Python."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from kelpie_celery import ScalingRule
from kelpie_celery.cli.rules import RuleCommands
from kelpie_celery.errors import RuleError, RuleNotFound
from tests.unit.cli_harness import Cli, cli

__all__ = ["cli"]  # a fixture

DEFAULTS = ScalingRule(container_group_id="g").model_dump()


# -- rules ---------------------------------------------------------------------------------------------------------


def test_set_makes_a_rule_and_later_changes_what_is_given_alone(cli: Cli) -> None:
    made = cli("rules", "set", "g", "--max", "20", "--organization", "example-org", "--json")
    assert (made.code, made.document) == (0, DEFAULTS | {"max_replicas": 20, "organization": "example-org"})

    changed = cli(
        "rules", "set", "g", "--min", "1", "--jobs-per-replica", "4", "--max-step-up", "5", "--idle-threshold", "10m",
        "--scale-in-cooldown", "90", "--json",
    )  # fmt: skip
    expected = {
        "min_replicas": 1, "jobs_per_replica": 4, "max_step_up": 5, "idle_threshold_seconds": 600,
        "scale_in_cooldown_s": 90,
    }  # fmt: skip
    assert changed.document == made.document | expected

    back = cli("rules", "set", "g", "--jobs-per-replica", "default", "--max-step-up", "default", "--json")
    assert (back.document["jobs_per_replica"], back.document["max_step_up"]) == (None, None)
    assert back.document["max_replicas"] == 20


def test_a_rule_is_shown_listed_paused_resumed_and_deleted(cli: Cli) -> None:
    cli("rules", "set", "g", "--max", "7", "--organization", "org", "--project", "default", "--name", "workers")
    cli("rules", "set", "a")

    shown = cli("rules", "get", "g")
    assert shown.code == 0
    for words in ("g", "0 to 7", "its slots", "5 min", "org/default/workers", "active"):
        assert words in shown.out
    assert [rule["container_group_id"] for rule in cli("rules", "list", "--json").document] == ["a", "g"]
    assert "paused" in cli("rules", "pause", "g").out
    assert cli("rules", "get", "g", "--json").document["paused"] is True
    assert cli("rules", "resume", "g", "--json").document["paused"] is False

    gone = cli("rules", "delete", "g", "--json")
    assert gone.document == {"container_group_id": "g", "deleted": True}
    assert "stays as it is, and costs what it costs" in gone.err
    assert "0 to 10" in cli("rules", "list").out


def test_no_rules_are_told(cli: Cli) -> None:
    answer = cli("rules", "list")

    assert (answer.code, answer.out) == (0, "")
    assert "there are no scaling rules; 'kelpie rules set GROUP' makes one" in answer.err
    assert cli("rules", "list", "--json").document == []


@pytest.mark.parametrize("command", ["get", "delete", "pause", "resume"])
def test_an_unknown_group_is_told_with_the_one_that_was_meant(cli: Cli, command: str) -> None:
    cli("rules", "set", "training")
    answer = cli("rules", command, "trainnig")

    assert answer.code == 2
    assert answer.err == (
        "kelpie: error: no scaling rule is kept for the container group 'trainnig'; did you mean 'training'?\n"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max", "501"], "max_replicas: must be at most 500 (got 501)"),
        (["--min", "11"], "min_replicas: must be at most max_replicas, which is 10 (got 11)"),
        (["--idle-threshold", "2h"], "idle_threshold_seconds: must be at most 3600"),
        (["--jobs-per-replica", "many"], "'many' is neither a whole number nor 'default'"),
        (["--max-step-up", "0"], "max_step_up: must be at least 1"),
        (["--organization", "Example Org"], "organization: must be a name on SaladCloud"),
    ],
)
def test_a_wrong_value_changes_nothing_and_is_told(cli: Cli, arguments: list[str], words: str) -> None:
    answer = cli("rules", "set", "g", *arguments)

    assert answer.code == 2
    assert words in answer.err
    assert cli("rules", "list", "--json").document == []


def test_a_group_that_is_no_id_is_refused(cli: Cli) -> None:
    answer = cli("rules", "set", "a b")

    assert answer.code == 2
    assert "container_group_id: must be 1 to 128 letters" in answer.err


def test_the_group_of_commands_lists_them_with_their_own_words(cli: Cli) -> None:
    answer = cli("rules")
    group = RuleCommands("rules")

    assert answer.out == cli("rules", "--help").out
    for name, (_, words) in RuleCommands.table.items():
        command = group.get_command(click.Context(click.Command("x")), name)
        assert command is not None
        assert (command.name, command.get_short_help_str(100)) == (name, words)
        assert words in answer.out


def test_python_has_the_same_words_for_rules(cli: Cli) -> None:
    kelpie = cli.kelpie
    rule = kelpie.set_scaling_rule({"container_group_id": "g", "max_replicas": 3})

    assert kelpie.scaling_rule("g") == rule == ScalingRule(container_group_id="g", max_replicas=3)
    assert kelpie.change_scaling_rule("g", min_replicas=2).max_replicas == 3
    assert kelpie.pause_scaling("g").paused
    assert not kelpie.resume_scaling("g").paused
    assert kelpie.set_scaling_rule(rule) == rule
    assert kelpie.scaling_rules() == [rule]
    kelpie.delete_scaling_rule("g")
    for call in (kelpie.scaling_rule, kelpie.delete_scaling_rule, kelpie.pause_scaling, kelpie.resume_scaling):
        with pytest.raises(RuleNotFound):
            call("g")
    with pytest.raises(RuleError):
        kelpie.set_scaling_rule({"container_group_id": "g", "max_replicas": "3"})


# -- simulate-scaling ----------------------------------------------------------------------------------------------


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.jsonl"
    lines = [{"at_s": 400.0 * n, "duration_s": 300.0, "priority": n % 10} for n in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def rule_file(tmp_path: Path, name: str, text: str) -> str:
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def test_rules_are_compared_on_a_trace(cli: Cli, trace: str, tmp_path: Path) -> None:
    few, many = (rule_file(tmp_path, f"{name}.toml", f"max_replicas = {n}") for name, n in (("few", 1), ("many", 20)))
    answer = cli("simulate-scaling", trace, "--rule", few, "--rule", many, "--kelpie")

    assert answer.code == 0
    assert answer.err.endswith("trace.jsonl: 40 jobs in 0.2 days, 3 hours of computing\n")
    rows = [line.split() for line in answer.out.splitlines() if line.strip()]
    assert [row[:2] for row in rows[2:]] == [["few", "40"], ["many", "40"], ["kelpie", "40"]]
    for heading in ("GPU HOURS", "IDLE HOURS", "LOST HOURS", "WAIT P50", "WAIT P95", "ENDED BY SCALING"):
        assert heading in answer.out


def test_the_document_of_a_simulation_has_the_documented_fields(cli: Cli, trace: str) -> None:
    document = cli(
        "simulate-scaling", trace, "--json", "--seed", "3", "--slots", "2", "--start-factor", "0.2",
        "--interruptions", "1.5", "--checkpoint-every", "5m", "--every", "30s",
    ).document  # fmt: skip

    assert (document["jobs"], document["trace"]) == (40, trace)
    assert document["platform"] == {
        "start_factor": 0.2, "interruptions_per_hour": 1.5, "loss_s": 300, "lease_s": 60, "slots": 2, "seed": 3,
    }  # fmt: skip
    (result,) = document["results"]
    assert set(result) == {
        "name", "jobs", "unfinished", "billed_h", "idle_h", "lost_h", "wait_p50_s", "wait_p95_s", "interrupted",
        "ended_by_scaling", "starts", "changes", "took_s",
    }  # fmt: skip
    assert (result["name"], result["jobs"], result["unfinished"]) == ("default", 40, 0)


def test_a_wrong_line_of_a_trace_is_told_with_its_number(cli: Cli, tmp_path: Path) -> None:
    path = rule_file(tmp_path, "t.jsonl", '{"at_s": 0, "duration_s": 1}\n{"at_s": 1}\n')
    answer = cli("simulate-scaling", path)

    assert answer.code == 2
    assert "line 2: duration_s: is required" in answer.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a file of JSON lines or a built-in --trace"),
        (["x.jsonl", "--trace", "steady"], "one of them"),
        (["--trace", "daily"], "'daily' is not one of"),
        (["/nope.jsonl"], "cannot read the trace /nope.jsonl"),
        (["--trace", "steady", "--rule", "/nope.toml"], "the rules in /nope.toml are refused"),
        (["--trace", "steady", "--start-factor", "nan"], "'nan' is no number from 0.01 to 100"),
        (["--trace", "steady", "--interruptions", "-1"], "'-1' is no number from 0 to 60"),
        (["--trace", "steady", "--every", "0"], "'0' is not between 1 s and 1 h"),
    ],
)
def test_wrong_arguments_are_told(cli: Cli, arguments: list[str], words: str) -> None:
    answer = cli("simulate-scaling", *arguments)

    assert answer.code == 2
    assert words in answer.err


@pytest.mark.parametrize(
    ("text", "words"),
    [("max_replicas = 0", "no job would ever run"), ("paused = true", "nothing would ever happen")],
)
def test_a_rule_that_runs_no_job_is_refused(cli: Cli, trace: str, tmp_path: Path, text: str, words: str) -> None:
    answer = cli("simulate-scaling", trace, "--rule", rule_file(tmp_path, "r.toml", text))

    assert answer.code == 2
    assert words in answer.err
