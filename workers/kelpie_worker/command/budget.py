"""How much of a command's output goes through line by line: enough for any log, and not a flood.

A command may write gigabytes. Each line costs the worker about 20 us and room in the container's log, so beyond a burst
of 8 MiB and 1 MiB a second after it the output is read and left out, and a line says how much that was. The last lines
are kept in any case.

Limits: a line counts as 200 bytes more than it has. One budget a command, for both streams together.
"""

from __future__ import annotations

from collections.abc import Callable

BURST_BYTES = 8 << 20
RATE_BYTES_S = float(1 << 20)
LINE_BYTES = 200
"""What a line costs beside its own bytes: about what it gets in the log, too."""


class OutputBudget:
    """Says of each piece of output whether it may go through.

    Args:
        now_s: A clock that never goes back, seconds.
        burst_bytes: What may go through at once.
        rate_bytes_s: What may go through in the long run, bytes a second.

    Attributes:
        left_out_bytes: How much did not, in all.
    """

    def __init__(
        self, now_s: Callable[[], float], burst_bytes: int = BURST_BYTES, rate_bytes_s: float = RATE_BYTES_S
    ) -> None:
        self.left_out_bytes = 0
        self._now_s, self._burst_bytes, self._rate_bytes_s = now_s, burst_bytes, rate_bytes_s
        self._left_bytes, self._filled_s = float(burst_bytes), now_s()
        self._shut = False

    def lets(self, data: bytes) -> bool:
        """Whether a piece may go through; once one may not, none may until half of a burst can."""
        self._fill()
        # Not in and out at every piece: a gap is told by a line each time. Nor are the lines of a flood counted.
        if not self._shut or self._left_bytes >= self._burst_bytes / 2:
            cost = len(data) + LINE_BYTES * (data.count(b"\n") + data.count(b"\r"))
            self._shut = cost > self._left_bytes
            if not self._shut:
                self._left_bytes -= cost
                return True
        self.left_out_bytes += len(data)
        return False

    def _fill(self) -> None:
        now_s = self._now_s()
        filled = self._left_bytes + (now_s - self._filled_s) * self._rate_bytes_s
        self._left_bytes, self._filled_s = min(self._burst_bytes, filled), now_s


class Gap:
    """Output that is being left out: how much it was, and its last lines."""

    _KEPT_BYTES = 4096

    def __init__(self) -> None:
        self._bytes = 0
        self._last = b""

    def add(self, data: bytes) -> None:
        """Leave a piece out."""
        self._bytes += len(data)
        self._last = (self._last + data[-self._KEPT_BYTES :])[-self._KEPT_BYTES :]

    @property
    def notice(self) -> list[str]:
        """The line that tells of it, unless all of it is kept."""
        if self._bytes <= self._KEPT_BYTES:
            return []
        return [
            f"kelpie: {self._bytes} bytes of output are left out here: they came faster than"
            f" {RATE_BYTES_S / (1 << 20):g} MiB a second"
        ]

    @property
    def last(self) -> bytes:
        """The last of it, from the beginning of a line on if there is one."""
        _, found, rest = self._last.partition(b"\n")
        return rest if found and self._bytes > self._KEPT_BYTES else self._last
