"""An event loop in which time passes only when nothing is left to do, and one clock for a whole history.

Each attempt of a history has a loop of its own, as each has a process of its own: one that is not run is frozen. What
would be done in a thread is done at once. So a history of hours takes milliseconds, and is the same each time.
"""

from __future__ import annotations

import asyncio
import selectors
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


class HistoryClock:
    """The time of all machines, of the ledger and of the storage, in seconds; it never goes back."""

    def __init__(self, start: float) -> None:
        self.time = start

    def now(self) -> float:
        return self.time

    def boottime(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


class Stuck(Exception):
    """Everything waits for something that will never happen."""


class _NoWaiting(selectors.SelectSelector):
    """Lets the clock jump where a loop would sleep."""

    def __init__(self, clock: HistoryClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck("nothing is left that could happen")
        self._clock.sleep(max(0.0, timeout))
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self, clock: HistoryClock) -> None:
        super().__init__(_NoWaiting(clock))
        self._history_clock = clock
        self._clock_resolution = 1e-6  # what is added to a time since the epoch must not be lost in rounding

    def time(self) -> float:
        return self._history_clock.now()

    def _write_to_self(self) -> None:
        """Nobody else's thread has to wake it."""

    def run_in_executor(  # type: ignore[override]  # it is done at once
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done


class AtOnce:
    """Stands for the product's threads."""

    def submit(self, function: Callable[..., object], *args: object) -> None:
        function(*args)


def without_threads(patch: pytest.MonkeyPatch) -> None:
    """Let the product do at once what it would do in its threads."""
    patch.setattr("kelpie_worker.sync.threads._threads", AtOnce)
    for module in [module for name, module in sys.modules.items() if name.startswith("kelpie_worker.")]:
        if hasattr(module, "idle_threads"):
            patch.setattr(module, "idle_threads", AtOnce)
