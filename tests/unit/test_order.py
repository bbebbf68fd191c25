from __future__ import annotations

import pytest

from kelpie_worker.sync.order import CHANGED, SAID, UNKNOWN, Order, nothing_between


@pytest.mark.parametrize(
    ("happened", "expected"),
    [
        ("S", True), ("SS", True), ("CS", True), ("SC", True), ("CCSSCC", True),
        ("", False), ("C", False), ("SCS", False), ("CSCCSC", False), ("S?", False), ("?S", False),
    ],
)  # fmt: skip
def test_words_between_which_something_changed_are_told_from_others(happened: str, expected: bool) -> None:
    assert nothing_between(happened) is expected


def test_what_repeats_is_kept_once() -> None:
    order = Order()
    for what in (CHANGED, CHANGED, SAID, SAID, CHANGED):
        order.note(what)
    assert order.take() == "CSC"
    assert order.take() == ""


def test_once_something_was_missed_nothing_is_known_until_it_is_taken() -> None:
    order = Order()
    for what in (SAID, UNKNOWN, CHANGED, SAID):
        order.note(what)
    assert order.take() == UNKNOWN
    order.note(SAID)
    assert order.take() == SAID


def test_words_that_are_doubted_are_in_no_known_order_and_changes_are() -> None:
    order = Order()
    order.note(CHANGED)
    order.doubt()
    assert order.take() == CHANGED
    order.note(SAID)
    order.doubt()
    assert order.take() == UNKNOWN


def test_memory_is_bounded() -> None:
    order = Order()
    for _ in range(10_000):
        order.note(SAID)
        order.note(CHANGED)
    assert order.take() == UNKNOWN
