"""A command's output as lines: bounded, whatever it writes.

Limits: a line longer than 64 KiB is split; bytes that are not UTF-8 are replaced; a carriage return ends a line too, as
progress bars use it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable

MAX_LINE_BYTES = 65536
_BREAK = re.compile(rb"\r\n|\n|\r")


class Lines:
    """Cuts a stream of bytes into lines."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        held = self._rest + data
        # A carriage return at the very end may be half of a line break.
        keep = b"\r" if held.endswith(b"\r") else b""
        *lines, self._rest = _BREAK.split(held[: len(held) - len(keep)])
        self._rest += keep
        for line in lines:
            self._tell(line)
        while len(self._rest) > MAX_LINE_BYTES:
            self._tell(self._rest[:MAX_LINE_BYTES])
            self._rest = self._rest[MAX_LINE_BYTES:]

    def close(self) -> None:
        """The stream has ended; a last line may lack its break."""
        rest, self._rest = self._rest.rstrip(b"\r"), b""
        if rest:
            self._tell(rest)

    def _tell(self, line: bytes) -> None:
        for at in range(0, max(1, len(line)), MAX_LINE_BYTES):
            self._on_line(line[at : at + MAX_LINE_BYTES].decode("utf-8", "replace"))


class OutputTail:
    """The last lines, bounded by number and bytes."""

    def __init__(self, max_lines: int = 100, max_bytes: int = 16384) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._lines: deque[str] = deque()
        self._max_lines = max_lines

    def add(self, line: str) -> None:
        """Take a line; old ones go."""
        line = line[-self._max_bytes :]
        self._lines.append(line)
        self._bytes += len(line)
        while len(self._lines) > self._max_lines or self._bytes > self._max_bytes:
            self._bytes -= len(self._lines.popleft())

    def last(self, lines: int, max_bytes: int) -> list[str]:
        """The last ``lines`` lines, as many as fit into ``max_bytes``."""
        found: list[str] = []
        for line in reversed(self._lines):
            max_bytes -= len(line.encode())
            if max_bytes < 0 or len(found) == lines:
                break
            found.append(line)
        return found[::-1]
