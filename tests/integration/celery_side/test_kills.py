"""A worker is killed at every step of a job's life in a workflow; no control worker and no beat is alive (P2, P11).

All workflows are under way at once; a worker has one slot, so that a kill hits one of them.
"""

from __future__ import annotations

import pytest

from tests.integration.celery_side.fleet import Fleet
from tests.integration.celery_side.workflows import Workflow, every_kill

STARTS = every_kill()


@pytest.fixture(scope="module")
def under_way(everlasting: Fleet) -> dict[str, Workflow]:
    """Every workflow of the matrix, just started."""
    return {name: start(everlasting) for name, start in STARTS.items()}


@pytest.mark.parametrize("name", STARTS)
def test_a_workflow_ends_whole_and_once_though_workers_are_killed(
    everlasting: Fleet, under_way: dict[str, Workflow], name: str
) -> None:
    value = under_way[name].expect_whole(everlasting)
    if name.startswith("chord-job"):
        assert len(value["parents"][0]) == 5
    if name.startswith("group"):
        assert len(value) == 5
