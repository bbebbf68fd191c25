"""Waiting for something to become true, with a reason to read when it does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
POLL_S = 0.05


def eventually(
    what: str, look: Callable[[], T | None], timeout_s: float = 30.0, explain: Callable[[], str] = lambda: ""
) -> T:
    """Look again and again until the answer is true-like, and return it.

    Args:
        what: What is waited for, as a sentence, for the message.
        look: Asked every 50 ms; an ``AssertionError`` counts as "not yet".
        timeout_s: How long.
        explain: Gives the state of affairs when it never happened.

    Raises:
        AssertionError: It did not happen in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        last = ""
        try:
            found = look()
        except AssertionError as error:
            last = str(error)
        else:
            if found:
                return found
            last = repr(found)
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what} (last: {last})\n{explain()}")
        time.sleep(POLL_S)
