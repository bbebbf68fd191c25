"""The states of the simulated SaladCloud: what the page says is what the tables say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum

import pytest

from kelpie_celery.local.salad import refusals, states
from kelpie_celery.local.salad.states import GROUP_TRANSITIONS, INSTANCE_TRANSITIONS, GroupStatus, InstanceState


def diagrams() -> list[dict[str, set[str]]]:
    found: list[dict[str, set[str]]] = []
    for block in re.findall(r"::\n\n((?:    .*\n)+)", states.__doc__ or ""):
        lines = [line.split("->") for line in block.strip().splitlines()]
        found.append({a.strip(): {word.strip() for word in b.split("|") if word.strip()} for a, b in lines})
    return found


@pytest.mark.parametrize(("number", "table"), [(0, GROUP_TRANSITIONS), (1, INSTANCE_TRANSITIONS)])
def test_the_diagram_in_the_docstring_is_the_table(number: int, table: Mapping[StrEnum, frozenset[StrEnum]]) -> None:
    assert diagrams()[number] == {state.value: {one.value for one in after} for state, after in table.items()}


def test_every_state_has_its_transitions_and_its_refusals() -> None:
    assert set(GROUP_TRANSITIONS) == set(refusals.START) == set(refusals.STOP) == set(GroupStatus)
    assert set(INSTANCE_TRANSITIONS) == set(InstanceState)
