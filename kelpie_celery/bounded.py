"""Calls over a network that end in time: time-outs of sockets allow a byte now and then, and so for ever.

Limits: what takes too long is left to itself in a daemon thread, which holds its connection; of such threads there are
a few at most, after which calls are refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Overdue(Exception):
    """A call did not come to an end, or as many as may be left behind have not."""


class Bounded:
    """Makes calls; from any thread.

    Args:
        whole_s: How long a call may take, seconds.
        most: How many may be left behind.
    """

    def __init__(self, whole_s: float, most: int = 1) -> None:
        self._whole_s, self._most = whole_s, most
        self._lock = threading.Lock()
        self._left: list[threading.Thread] = []

    def run(self, call: Callable[[], T]) -> T:
        """Make a call; what it returns or raises.

        Raises:
            Overdue: It takes too long, or was not begun since others still do.
        """
        with self._lock:
            self._left = [thread for thread in self._left if thread.is_alive()]
            if len(self._left) >= self._most:
                raise Overdue("still has not answered an earlier call")
        outcome: list[T] = []
        failure: list[Exception] = []

        def work() -> None:
            try:
                outcome.append(call())
            except Exception as error:
                failure.append(error)

        thread = threading.Thread(target=work, name="kelpie-bounded", daemon=True)
        thread.start()
        thread.join(self._whole_s)
        if failure:
            raise failure[0]
        if outcome:
            return outcome[0]
        with self._lock:
            self._left.append(thread)
        raise Overdue("did not come to an end")
