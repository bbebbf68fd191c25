"""The fence: what the storage side asks of the attempt's lease.

Whatever makes something visible is sent only while the attempt is trusted, and in a form that the storage itself
refuses later. Limits: a seam; the lease implements it.
"""

from __future__ import annotations

import asyncio
from typing import Protocol


class Fence(Protocol):
    """The trust window of an attempt."""

    def remaining_s(self) -> float:
        """Seconds of trust left now; 0 or less means muted."""

    async def trusted(self, at_least_s: float = 2.0) -> float:
        """Wait while muted.

        Returns:
            Seconds of trust left, at least ``at_least_s`` or half a trust window.

        Raises:
            LeaseLost: The attempt lost its job.
        """


class OpenFence:
    """A fence that never closes, for tools that act for nobody's attempt."""

    def __init__(self, window_s: float = 900.0) -> None:
        self._window_s = window_s

    def remaining_s(self) -> float:
        """Always the whole window."""
        return self._window_s

    async def trusted(self, at_least_s: float = 2.0) -> float:  # noqa: ARG002 -- the seam's signature
        """Never waits for long: it lets other tasks run, as the seam promises."""
        await asyncio.sleep(0)
        return self._window_s
