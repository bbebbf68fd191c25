"""The page about the simulated SaladCloud: its tables are those of the code."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

import click

from kelpie_celery.cli.salad_sim import salad_sim
from kelpie_celery.local.salad.faults import KINDS
from kelpie_celery.local.salad.refusals import START, STOP, Verdict

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "salad-sim.md").read_text()


def documented(call: str) -> dict[str, tuple[bool, bool]]:
    """By status: whether a call is taken, strictly and leniently."""
    found = {}
    for row in re.findall(rf"^\| {call} \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE):
        for status in row[0].split(", "):
            found[status.strip()] = (row[1].startswith("2"), row[2].startswith("2"))
    return found


def test_the_page_says_which_start_and_stop_are_refused() -> None:
    for call, table in (("start", START), ("stop", STOP)):
        taken = {status.value: tuple(one is not Verdict.REFUSE for one in row) for status, row in table.items()}
        del taken["succeeded"]  # never reached
        assert documented(call) == taken


def test_the_page_names_every_option_and_every_fault() -> None:
    options = [name for one in salad_sim.params if isinstance(one, click.Option) for name in one.opts]
    assert [name for name in options if f"`{name}" not in PAGE] == []
    assert [kind for kind in KINDS if f"| `{kind}` |" not in PAGE] == []


def test_the_group_of_the_walk_through_has_the_id_that_the_simulator_gives_it() -> None:
    page = (DOCS / "scaling.md").read_text()
    assert f"GROUP={uuid.uuid5(uuid.NAMESPACE_DNS, 'demo.default.local')}\n" in page
