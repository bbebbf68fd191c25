"""``kelpie scaler``: why, history, plot."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from kelpie_celery.ledger.rules import Rules
from kelpie_celery.scaling.rule import ScalingRule
from tests.unit.cli_harness import Cli, cli

__all__ = ["cli"]  # a fixture


def keep(cli: Cli, action: str = "nothing", same: str = "", **more: Any) -> None:
    entry = {
        "kind": "decision", "action": action, "replicas": 3, "drain": 1, "reasons": ["2 jobs wait", "and so on"],
        "queue": {"pending": 2, "delayed": 0, "running": 1, "by_priority": {"4": 2}},
        "workers": {"workers": 1, "slots": 1, "busy": 1, "draining_idle": 0, "draining_busy": 0, "condemned": 0},
        "fleet": {"status": "running", "replicas": 1, "running": 1, "pending_change": False, "autoscaled_by": []},
    }  # fmt: skip
    cli.kelpie.app.ledger.keep_decision("g", entry | more, same=same)


def test_why_tells_the_last_decision_with_its_reasons_and_facts(cli: Cli) -> None:
    keep(cli, "stop")
    keep(cli, "start")
    answer = cli("scaler", "why", "g")
    assert answer.code == 0
    for words in ("start 3", "because", "2 jobs wait", "and so on", "pending 2", "4:2", "status running"):
        assert words in answer.out
    assert "stop" not in answer.out


def test_why_as_json_is_one_document(cli: Cli) -> None:
    for _ in range(3):
        keep(cli, same="s")
    document = cli("scaler", "why", "g", "--json").document
    assert (document["action"], document["count"], document["reasons"][0]) == ("nothing", 3, "2 jobs wait")
    assert document["at"].endswith("Z")
    assert "same" not in document


def test_history_lists_the_newest_first_and_counts_the_same_nothing(cli: Cli) -> None:
    keep(cli, "start")
    for _ in range(4):
        keep(cli, same="s")
    cli.kelpie.app.ledger.ask_to_move("g", "m1", "i1", "it is \x1b[31msilent", by="scaler", size=10)
    cli.kelpie.app.ledger.keep_decision("g", {"kind": "error", "reasons": ["no answer"]})
    answer = cli("scaler", "history", "g")
    rows = [row for row in answer.out.splitlines() if " 20" in f" {row}" and ":" in row]
    assert [next(w for w in ("error", "move", "nothing", "start") if w in row) for row in rows] == [
        "error", "move", "nothing", "start",
    ]  # fmt: skip
    assert "instance i1: it is" in rows[1]
    assert "\x1b" not in answer.out
    assert " 4 " in rows[2]
    assert [entry["kind"] for entry in cli("scaler", "history", "g", "--json").document][:2] == ["error", "move"]


def test_history_says_when_there_may_be_more(cli: Cli) -> None:
    for _ in range(3):
        keep(cli)
    answer = cli("scaler", "history", "g", "--limit", "2")
    assert "may be more" in answer.err


@pytest.mark.parametrize("command", ["why", "history", "plot"])
def test_a_group_without_a_rule_is_told_with_what_was_meant(cli: Cli, command: str) -> None:
    Rules(cli.kelpie.app.ledger.redis).put(ScalingRule(container_group_id="render-farm"))
    answer = cli("scaler", command, "render-frm")
    assert answer.code == 1
    assert "has no scaling rule" in answer.err
    assert "did you mean 'render-farm'" in answer.err


def test_a_group_that_was_not_looked_at_yet_says_what_may_be_missing(cli: Cli) -> None:
    Rules(cli.kelpie.app.ledger.redis).put(ScalingRule(container_group_id="g"))
    answer = cli("scaler", "why", "g")
    assert (answer.code, answer.out) == (1, "")
    assert "SALAD_API_KEY" in answer.err


def test_nothing_known_is_json_all_the_same(cli: Cli) -> None:
    assert cli("scaler", "why", "g", "--json").document is None
    assert cli("scaler", "history", "g", "--json").document == []


@pytest.mark.parametrize(("name", "begins"), [("s.png", b"\x89PNG"), ("s.svg", b"<?xml")])
def test_a_plot_is_written_in_the_format_of_its_ending(
    cli: Cli,
    tmp_path: Path,
    name: str,
    begins: bytes,
) -> None:
    for action in ("start", "nothing", "stop"):
        keep(cli, action)
    cli.kelpie.app.ledger.ask_to_move("g", "m1", "i1", "silent", by="scaler")
    answer = cli("scaler", "plot", "g", "-o", str(tmp_path / name))
    assert answer.code == 0, answer.err
    assert "3 decisions" in answer.out
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_without_matplotlib_the_message_says_how_to_get_it(
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep(cli)
    monkeypatch.setitem(sys.modules, "matplotlib.dates", None)
    answer = cli("scaler", "plot", "g", "-o", str(tmp_path / "s.png"))
    assert answer.code == 2
    assert "pip install 'kelpie-celery[plot]'" in answer.err


@pytest.mark.parametrize("name", ["s.doc", "no/such/folder/s.png"])
def test_a_plot_that_cannot_be_written_is_told(cli: Cli, tmp_path: Path, name: str) -> None:
    keep(cli)
    answer = cli("scaler", "plot", "g", "-o", str(tmp_path / name))
    assert answer.code == 2
    assert "cannot be written" in answer.err
