"""The table of transitions, the drawing of it in the docstring, and what follows from it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import pytest

from kelpie_celery import lifecycle
from kelpie_celery.lifecycle import TRANSITIONS, Status, may_follow

NAMES = "|".join(Status)
NOT_DRAWN = {("draft", "canceled")}  # a workflow that is given up before it comes to this step


def drawn_transitions() -> set[tuple[str, str]]:
    """The arrows of the docstring's drawing: along its first line, out to the right, and back up to a ``^``."""
    drawing = [line for line in (lifecycle.__doc__ or "").splitlines() if line.startswith("  ")]
    along = set(itertools.pairwise(re.findall(NAMES, drawing[0])))
    return along | set(arrows_to_the_right(drawing)) | {arrow_back(drawing)}


def arrows_to_the_right(drawing: list[str]) -> Iterator[tuple[str, str]]:
    for row, line in enumerate(drawing[1:], 1):
        if match := re.search(rf"(\\[-|]*)> ({NAMES})", line):
            yield state_above(drawing, row, match.start(1)), match[2]


def arrow_back(drawing: list[str]) -> tuple[str, str]:
    row, match = next((row, found) for row, line in enumerate(drawing) if (found := re.search(r"\\-+/", line)))
    return state_above(drawing, row, match.end() - 1), state_above(drawing, row, match.start())


def state_above(drawing: list[str], row: int, column: int) -> str:
    """Follow a stroke up to the first line: straight, or to the left where it is slanted."""
    while row > 1:
        row -= 1
        column -= drawing[row][column : column + 1] not in {"|", "\\", "^"}
        assert drawing[row][column] in "|\\^", f"the drawing has a loose end in line {row}, column {column}"
    words = list(re.finditer(NAMES, drawing[0]))
    return min(words, key=lambda word: max(word.start() - column, column - word.end(), 0))[0]


def test_the_drawing_shows_the_table_and_nothing_else() -> None:
    table = {(before.value, after.value) for before, follow in TRANSITIONS.items() for after in follow}

    assert drawn_transitions() == table - NOT_DRAWN


def test_every_status_has_a_row() -> None:
    assert set(TRANSITIONS) == set(Status)


def test_completed_failed_and_canceled_are_the_ends() -> None:
    assert {status for status in Status if status.ended} == {Status.COMPLETED, Status.FAILED, Status.CANCELED}


@pytest.mark.parametrize("end", [Status.COMPLETED, Status.FAILED, Status.CANCELED])
def test_nothing_follows_an_end(end: Status) -> None:
    assert not any(may_follow(end, status) for status in Status)


def test_every_status_can_be_reached_and_every_one_can_end() -> None:
    reached = {Status.DRAFT}
    for _ in Status:
        reached |= {after for before in reached for after in TRANSITIONS[before]}

    assert reached == set(Status)
    assert all(status.ended or any(may_follow(status, end) for end in Status) for status in Status)


def test_only_a_running_job_completes_or_fails() -> None:
    for end in (Status.COMPLETED, Status.FAILED):
        assert [status for status in Status if may_follow(status, end)] == [Status.RUNNING]
