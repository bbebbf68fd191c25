"""``kelpie simulate-scaling``.

Limits: what it says of a rule holds for the trace and the platform that it was told; see ``docs/scaling.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import click
from rich import box
from rich.table import Table

from kelpie_celery.cli._documents import print_document
from kelpie_celery.cli._errors import say
from kelpie_celery.cli._options import duration, json_option
from kelpie_celery.cli._text import counted
from kelpie_celery.cli._text import duration as duration_words
from kelpie_celery.cli._view import console, words
from kelpie_celery.errors import RuleError
from kelpie_celery.scaling.rule import ScalingRule
from kelpie_celery.scaling.rules_file import read_single_rule
from kelpie_scaler.simulation.engine import simulate
from kelpie_scaler.simulation.outcome import Outcome
from kelpie_scaler.simulation.platform import INTERRUPTIONS_PER_HOUR, Platform
from kelpie_scaler.simulation.policies import SCALE_INTERVAL_S, KelpieRule, OurRule, Policy
from kelpie_scaler.simulation.trace import Arrival, read_trace
from kelpie_scaler.simulation.traces import TRACES

_GROUP = "simulated"
_MAX_SLOTS = 64


def _between(low: float, high: float) -> Callable[[str], float]:
    """A number, also none of those that compare with nothing."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise click.BadParameter(f"{text!r} is no number from {low:g} to {high:g}")
        return value

    return number


def _interval(text: str) -> float:
    value = duration(text)
    if not 1 <= value <= 3600:  # noqa: PLR2004 -- a second to an hour
        raise click.BadParameter(f"{text!r} is not between 1 s and 1 h")
    return value


@click.command("simulate-scaling", short_help="Try scaling rules on a trace of jobs, in virtual time.")
@click.argument("path", metavar="[TRACE.jsonl]", type=click.Path(path_type=Path), required=False)
@click.option("--trace", "name", type=click.Choice(list(TRACES)), help="A trace that is built in, of 10,000 jobs.")
@click.option(
    "--rule", "rule_paths", metavar="FILE", type=click.Path(path_type=Path), multiple=True,
    help="TOML file with the fields of one rule; may be given several times. Default: a rule with defaults.",
)  # fmt: skip
@click.option("--kelpie", "with_kelpie", is_flag=True, help="Run Kelpie's algorithm too, with the first rule's limits.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=1, show_default=True, help="Of the dice.")
@click.option(
    "--slots", type=click.IntRange(1, _MAX_SLOTS), default=1, show_default=True, help="Jobs at once, each node."
)
@click.option(
    "--every",
    "interval_s",
    type=_interval,
    default=f"{SCALE_INTERVAL_S:.0f}",
    show_default="60s",
    help="How often our rules are looked at.",
)
@click.option(
    "--start-factor",
    type=_between(0.01, 100),
    default="1",
    show_default=True,
    help="How long nodes take to start: 1 for an image of 5.5 GB, about 0.2 for a small one.",
)
@click.option(
    "--interruptions",
    "interruptions_per_hour",
    type=_between(0, 60),
    default=f"{INTERRUPTIONS_PER_HOUR:.4f}",
    show_default=True,
    help="How often a node vanishes, per hour.",
)
@click.option(
    "--checkpoint-every",
    "loss_s",
    type=duration,
    default="600",
    show_default="10m",
    help="What an interruption costs a job at most.",
)
@json_option
def simulate_scaling(
    path: Path | None, name: str | None, rule_paths: tuple[Path, ...], with_kelpie: bool, interval_s: float,
    as_json: bool, seed: int, slots: int, start_factor: float, interruptions_per_hour: float, loss_s: float,
) -> None:  # fmt: skip
    """Run a trace of jobs against scaling rules, and compare what they cost and how long jobs wait.

    A line of a trace is {"at_s": 31.5, "duration_s": 754.2}: when a job arrives and how long it computes; "priority"
    may be added. Nothing real is started, and no Redis is needed.
    """
    trace, label = _trace(path, name)
    rules = [(file.stem, read_single_rule(file, _GROUP)) for file in rule_paths]
    rules = rules or [("default", ScalingRule(container_group_id=_GROUP))]
    _check(rules)
    platform = Platform(
        start_factor=start_factor, interruptions_per_hour=interruptions_per_hour, loss_s=loss_s, slots=slots, seed=seed
    )
    outcomes = [simulate(trace, policy, platform) for policy in _policies(rules, interval_s, with_kelpie=with_kelpie)]
    if as_json:
        results = [outcome.document() for outcome in outcomes]
        print_document({"trace": label, "jobs": len(trace), "platform": asdict(platform), "results": results})
        return
    days, hours = (trace[-1].at_s - trace[0].at_s) / 86_400, sum(one.duration_s for one in trace) / 3600
    say(f"{label}: {counted(len(trace), 'job')} in {days:.1f} days, {hours:.0f} hours of computing")
    console().print(table(outcomes))


def table(outcomes: Sequence[Outcome]) -> Table:
    """One row a rule."""
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    drawn.add_column("RULE", overflow="fold")
    for heading in _HEADINGS:
        drawn.add_column(heading, justify="right")
    for outcome in outcomes:
        drawn.add_row(words(outcome.name), *_cells(outcome))
    return drawn


_HEADINGS = (
    "JOBS", "GPU HOURS", "IDLE HOURS", "LOST HOURS", "WAIT P50", "WAIT P95", "INTERRUPTED", "ENDED BY SCALING",
    "STARTS",
)  # fmt: skip


def _cells(outcome: Outcome) -> Iterator[str]:
    left = f" ({outcome.unfinished} did not end)" if outcome.unfinished else ""
    yield f"{outcome.jobs}{left}"
    yield from (f"{hours:,.1f}" for hours in (outcome.billed_h, outcome.idle_h, outcome.lost_h))
    yield from (duration_words(wait_s) for wait_s in (outcome.wait_p50_s, outcome.wait_p95_s))
    yield from (str(count) for count in (outcome.interrupted, outcome.ended_by_scaling, outcome.starts))


def _trace(path: Path | None, name: str | None) -> tuple[list[Arrival], str]:
    if path is not None and name is None:
        return read_trace(path), str(path)
    if name is not None and path is None:
        return TRACES[name](), name
    raise click.UsageError("name a file of JSON lines or a built-in --trace, one of them", click.get_current_context())


def _check(rules: Sequence[tuple[str, ScalingRule]]) -> None:
    for name, rule in rules:
        if rule.max_replicas == 0:
            raise RuleError([("max_replicas", "0", "must be at least 1 here: no job would ever run")], name)
        if rule.paused:
            raise RuleError([("paused", "True", "must be false here: nothing would ever happen")], name)


def _policies(rules: Sequence[tuple[str, ScalingRule]], interval_s: float, *, with_kelpie: bool) -> Iterator[Policy]:
    for name, rule in rules:
        yield OurRule(name, rule, interval_s)
    if with_kelpie:
        yield KelpieRule("kelpie", rules[0][1])
