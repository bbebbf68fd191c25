from __future__ import annotations

import threading

import pytest

from kelpie_celery.bounded import Bounded, Overdue


def test_what_a_call_returns_or_raises_comes_through() -> None:
    def fail() -> None:
        raise LookupError("x")

    bounded = Bounded(20.0)
    assert bounded.run(lambda: 7) == 7
    assert bounded.run(lambda: None) is None
    with pytest.raises(LookupError):
        bounded.run(fail)


def test_a_call_that_does_not_end_is_left_and_no_more_than_so_many_are() -> None:
    go_on = threading.Event()
    bounded = Bounded(0.05, most=2)
    for _ in range(2):
        with pytest.raises(Overdue, match="end"):
            bounded.run(go_on.wait)
    with pytest.raises(Overdue, match="earlier"):
        bounded.run(lambda: 1)
    go_on.set()
    patient = Bounded(20.0, most=1)
    assert patient.run(lambda: 1) == 1
    for thread in bounded._left:
        thread.join(20)
    assert bounded.run(lambda: 1) == 1
