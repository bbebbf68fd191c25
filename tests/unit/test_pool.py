from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from celery.exceptions import Ignore

from kelpie_celery import pool, request


class Inline:
    """An executor that runs at once, in this thread."""

    _threads: tuple[Any, ...] = ()

    def submit(self, call: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(call(*args))
        return future


@pytest.fixture
def woken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    times: list[int] = []
    monkeypatch.setattr(pool, "wake", lambda: times.append(1))
    return times


@pytest.fixture
def apply(woken: list[int]) -> Callable[..., list[Any]]:
    made: Any = pool.TaskPool(limit=1)
    made.executor.shutdown()
    made.executor = Inline()

    def call(target: Callable[..., Any], callback: Callable[..., Any] | None = None) -> list[Any]:
        answers: list[Any] = []
        made.on_apply(target, ("x",), {}, callback or answers.append, lambda *_: None)
        return answers

    return call


def test_what_a_task_returned_is_told(apply: Callable[..., list[Any]], woken: list[int]) -> None:
    assert apply(lambda x: (0, x, 0.5)) == [(0, "x", 0.5)]
    assert woken == [1]


@pytest.mark.parametrize("error", [ConnectionError("away"), ValueError("broken"), KeyError("x")])
def test_bookkeeping_that_fails_still_calls_the_request_back_as_ignored(
    apply: Callable[..., list[Any]], woken: list[int], error: Exception
) -> None:
    def broken(_: Any) -> None:
        raise error

    ((failed, info, _),) = apply(broken)
    assert failed
    assert isinstance(info.exception.exc, Ignore)
    assert woken == [1]


def test_the_thread_forgets_its_request_and_the_gate_looks_again_whatever_the_callback_does(
    apply: Callable[..., list[Any]], woken: list[int]
) -> None:
    class Held:
        left = False

        def leave_thread(self) -> None:
            self.left = True

    def callback(*_: Any) -> None:
        raise RuntimeError("broken callback")

    held: Any = Held()
    request._thread.request = held
    try:
        with pytest.raises(RuntimeError):
            apply(lambda x: (0, x, 0.0), callback)
    finally:
        request._thread.request = None
    assert held.left
    assert woken == [1]
