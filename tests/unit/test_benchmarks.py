"""How the benchmarks judge, round and keep their figures."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import claim, figures, scaling, stage, submit, transfer
from benchmarks.__main__ import PARTS
from benchmarks.figures import Figure, Target
from benchmarks.transfer_tools import Spent
from kelpie_celery.definition import parse_definition
from kelpie_scaler.simulation.outcome import Outcome


def test_a_target_is_a_bound_from_above_or_from_below() -> None:
    assert Figure("a", 4.9, "ms", Target(5)).met is True
    assert Figure("a", 5.0, "ms", Target(5)).met is False
    assert Figure("a", 2.0, "x", Target(2, at_least=True)).met is True
    assert Figure("a", 1.9, "x", Target(2, at_least=True)).met is False
    assert Figure("a", 1.9, "x").met is None


def test_bench_json_is_a_list_of_figures_with_their_targets(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    figures.write([Figure("claim.p99", 1.23456789, "ms", Target(5), "1,000 pending"), Figure("b", 3, "jobs/s")], path)
    assert json.loads(path.read_text()) == [
        {"name": "claim.p99", "value": 1.23457, "unit": "ms", "target": "< 5", "met": True, "against": "1,000 pending"},
        {"name": "b", "value": 3.0, "unit": "jobs/s", "target": None, "met": None, "against": ""},
    ]


def test_a_missed_target_is_plain_in_the_table() -> None:
    found = [Figure("worker.rss", 140, "MB", Target(120)), Figure("worker.cpu", 0.5, "%", Target(1))]
    console = Console(file=io.StringIO(), width=120, record=True)
    console.print(figures.table(found))
    rows = console.export_text().splitlines()
    assert any("worker.rss" in row and "NO" in row for row in rows)
    assert figures.missed(found) == found[:1]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0123, "0.0123"), (1.234, "1.23"), (12.34, "12.3"), (3961.4, "3,961"), (0.702, "0.702")],
)
def test_numbers_are_shown_with_three_digits(value: float, text: str) -> None:
    assert figures.rounded(value) == text


def test_the_percentile_is_the_value_that_so_many_do_not_exceed() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (stage.percentile(values, 0.5), stage.percentile(values, 0.99)) == (50.0, 99.0)
    assert stage.percentile([7.0], 0.99) == 7.0


def test_the_typical_definition_is_valid_and_of_about_700_bytes() -> None:
    assert 650 <= len(parse_definition(stage.definition()).to_json()) <= 750


def test_the_ratio_to_send_task_carries_the_target() -> None:
    rates = {"send_task": 1000.0, "send_task_batched": 3000.0, "submit": 900.0, "submit_many": 2500.0}
    judged = [figure for figure in submit.figures(rates) if figure.target]
    assert [(figure.value, figure.met) for figure in judged] == [(2.5, True)]


def test_claims_are_judged_at_both_sizes_and_by_their_ratio() -> None:
    middle = {(size, share): 1.0 + size / 1e6 for size in claim.SIZES for share in claim.SHARES}
    judged = {figure.name: figure.met for figure in claim.figures(middle, plain_p99_ms=1.0) if figure.target}
    assert judged == {"claim.p99_1000": True, "claim.p99_100000": True, "claim.p50_ratio": True}


def test_transfers_are_judged_against_s5cmd() -> None:
    way, null = transfer.Way("a", "down", "tls"), transfer.Way("b", "up", "null")
    found = {
        (way, "s5cmd"): [Spent(2.0, 1.0, 20.0), Spent(2.0, 1.0, 20.0), Spent(9.0, 9.0, 20.0)],
        (way, "ours"): [Spent(2.4, 1.5, 60.0), Spent(2.5, 1.5, 90.0), Spent(2.6, 1.5, 60.0)],
        (null, "s5cmd"): [Spent(1.0, 1.0, 500.0)],
        (null, "ours"): [Spent(1.0, 0.4, 60.0)],
    }
    judged = {figure.name: (figure.value, figure.met) for figure in transfer.figures(found, 3) if figure.target}
    assert judged == {
        "transfer.a_down_tls.wall": (1.25, True), "transfer.a_down_tls.cpu": (1.5, False),
        "transfer.b_up_null.wall": (1.0, True), "transfer.b_up_null.cpu": (0.4, True), "transfer.rss": (90.0, True),
    }  # fmt: skip


def test_our_scaling_is_judged_by_idle_hours_and_long_waits() -> None:
    def outcome(idle_h: float, wait_p95_s: float) -> Outcome:
        return Outcome("x", 10, 0, 100.0, idle_h, 1.0, 5.0, wait_p95_s, 3, 0, 1, 1, 1e5)

    found = scaling.figures("steady", [outcome(3, 101), outcome(5, 103)], [outcome(4, 100), outcome(6, 100)])
    judged = {figure.name: (figure.value, figure.met) for figure in found if figure.target}
    assert judged == {"scaling.steady.idle": (4, True), "scaling.steady.wait_p95": (102, True)}
    missed = scaling.figures("steady", [outcome(6, 104)], [outcome(5, 100)])
    assert [figure.met for figure in missed if figure.target] == [False, False]


def test_every_part_that_is_promised_is_there() -> None:
    assert list(PARTS) == ["submit", "claim", "memory", "tick", "worker", "transfer", "commit", "cache", "scaling"]
