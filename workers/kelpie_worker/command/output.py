"""A command's output as lines: bounded in memory and in the loop's time, whatever it writes.

Limits: a line longer than 64 KiB is split; bytes that are not UTF-8 are replaced; a carriage return ends a line too, as
progress bars use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator

from kelpie_worker.command.budget import Gap, OutputBudget

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 65536
_READ_BYTES = 65536
_SWEEP_READS = 2
_FLOOD_BYTES = 1 << 20
_TURN_S = 0.005
"""How long lines are handed out before the loop's other work has its turn, seconds."""


class LineSplitter:
    """Cuts a stream of bytes into lines."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._after_cr = False

    def feed(self, data: bytes) -> list[str]:
        """The lines that ``data`` completes."""
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]  # the second half of a line break whose first half has ended the line
        self._after_cr = data.endswith(b"\r")
        if b"\n" not in data and b"\r" not in data:
            self._rest += data
            return self._take_overlong()
        pieces = (bytes(self._rest) + data).splitlines(keepends=True)
        self._rest.clear()
        if not pieces[-1].endswith((b"\n", b"\r")):
            self._rest += pieces.pop()
        # A progress bar starts or ends with a carriage return: what lies between two of them is not an empty line.
        lines = [line for piece in pieces if piece != b"\r" for line in _pieces(piece.rstrip(b"\r\n"))]
        return lines + self._take_overlong()

    def close(self) -> list[str]:
        """The last line, if it lacked its break."""
        rest = bytes(self._rest)
        self._rest.clear()
        return _pieces(rest) if rest else []

    def _take_overlong(self) -> list[str]:
        lines = []
        while len(self._rest) > MAX_LINE_BYTES:
            at = _cut(self._rest)
            lines.append(self._rest[:at].decode("utf-8", "replace"))
            del self._rest[:at]
        return lines


def _pieces(line: bytes) -> list[str]:
    """A line, in pieces if it is too long."""
    pieces = []
    while len(line) > MAX_LINE_BYTES:
        at = _cut(line)
        pieces.append(line[:at].decode("utf-8", "replace"))
        line = line[at:]
    return [*pieces, line.decode("utf-8", "replace")]


def _cut(line: bytes | bytearray) -> int:
    """Where to cut a line that is too long, so that no UTF-8 character is torn."""
    for at in range(MAX_LINE_BYTES, MAX_LINE_BYTES - 4, -1):
        if line[at] & 0xC0 != 0x80:  # noqa: PLR2004 - not a continuation byte
            return at
    return MAX_LINE_BYTES


class OutputTail:
    """The last lines, bounded in number and bytes."""

    def __init__(self, max_lines: int = 100, max_bytes: int = 16384) -> None:
        self._max_lines, self._max_bytes = max_lines, max_bytes
        self._lines: deque[tuple[str, int]] = deque()
        self._bytes = 0

    def add(self, line: str) -> None:
        """Take a line; the oldest go."""
        size = len(line) if line.isascii() else len(line.encode("utf-8", "replace"))
        if size > self._max_bytes:
            line = line.encode("utf-8", "replace")[-self._max_bytes :].decode("utf-8", "ignore")
            size = len(line.encode("utf-8"))
        self._lines.append((line, size))
        self._bytes += size
        while len(self._lines) > self._max_lines or self._bytes > self._max_bytes:
            self._bytes -= self._lines.popleft()[1]

    def last(self, lines: int, max_bytes: int) -> list[str]:
        """The last ``lines`` lines, as many as fit into ``max_bytes``; oldest first."""
        found: list[str] = []
        for line, size in reversed(self._lines):
            max_bytes -= size
            if max_bytes < 0 or len(found) == lines:
                break
            found.append(line)
        return found[::-1]

    def text(self) -> str:
        """All that is kept."""
        return "\n".join(line for line, _ in self._lines)


class OutputPipe:
    """Reads one pipe in an asyncio loop and hands its lines out, as fast as they are taken and no faster.

    Args:
        pipe: The end to read from.
        on_line: Called with each line.
        budget: What may be handed out; without one, all is.
        on_data: Called with all that is read, before that; must neither wait nor raise.
    """

    def __init__(
        self, pipe: io.FileIO, on_line: Callable[[str], None], budget: OutputBudget | None = None,
        on_data: Callable[[bytes], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._pipe, self._on_line, self._budget, self._on_data = pipe, on_line, budget, on_data
        self._gap: Gap | None = None
        self._read_bytes = _READ_BYTES
        self._loop = asyncio.get_running_loop()
        self._splitter = LineSplitter()
        self._waiting: Iterator[str] = iter(())
        self._at_end = self._complained = False
        self._reading = True
        self._done = asyncio.Event()
        os.set_blocking(pipe.fileno(), False)
        self._loop.add_reader(pipe.fileno(), self._readable)

    async def finish(self, within_s: float) -> None:
        """Wait for the pipe's end, and at most ``within_s`` seconds if somebody still holds it; hand all lines out."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._done.wait()
        if not self._at_end:
            # Whoever still holds it may write for ever: what is in the pipe now is the last that counts.
            self._take_end(self._sweep())
        await self._done.wait()

    def close(self) -> None:
        """Let go at once."""
        self._at_end = True
        self._pause()
        self._waiting = iter(())
        self._pipe.close()
        self._done.set()

    def _readable(self) -> None:
        try:
            data = os.read(self._pipe.fileno(), self._read_bytes if self._gap else _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._take_end()
            return
        self._on_data(data)
        if self._budget is None or self._budget.lets(data):
            self._waiting = iter([*self._after_gap(), *self._splitter.feed(data)])
        else:
            self._waiting = iter(self._leave_out(data))
        self._hand_out()

    def _leave_out(self, data: bytes) -> list[str]:
        """Begin or widen a gap; the line that was cut by its beginning."""
        cut: list[str] = []
        if self._gap is None:
            self._gap = Gap()
            cut = self._splitter.close()
            self._read_bytes = _widen(self._pipe.fileno())
        self._gap.add(data)
        return cut

    def _after_gap(self) -> list[str]:
        """What tells of a gap that ends here, and its last lines as far as they are complete."""
        gap, self._gap = self._gap, None
        return [*gap.notice, *self._splitter.feed(gap.last)] if gap else []

    def _sweep(self) -> list[str]:
        lines: list[str] = []
        for _ in range(_SWEEP_READS):
            try:
                data = os.read(self._pipe.fileno(), _READ_BYTES)
            except OSError:
                break
            if data:
                self._on_data(data)
                lines += self._splitter.feed(data)
        return lines

    def _take_end(self, last: list[str] | None = None) -> None:
        self._at_end = True
        self._waiting = iter([*self._waiting, *self._after_gap(), *(last or []), *self._splitter.close()])
        self._hand_out()

    def _hand_out(self) -> None:
        """Hand lines out for one turn of the loop; nothing is read while some are left."""
        until = self._loop.time() + _TURN_S
        for line in self._waiting:
            self._tell(line)
            if self._loop.time() > until:
                self._pause()
                self._loop.call_soon(self._hand_out)
                return
        if self._at_end:
            self._pause()
            self._pipe.close()
            self._done.set()
        elif not self._reading:
            self._reading = True
            self._loop.add_reader(self._pipe.fileno(), self._readable)

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._pipe.fileno())

    def _tell(self, line: str) -> None:
        try:
            self._on_line(line)
        except Exception:
            # What a job prints must not end it; said once, as each line may fail in the same way.
            if not self._complained:
                self._complained = True
                log.exception("a line of output was not taken", extra={"action": "output_lost"})


def _widen(pipe: int) -> int:
    """Make a pipe hold as much as a flood is read by at once; how much that is, bytes."""
    try:
        return fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _FLOOD_BYTES)
    except OSError:  # more than this user may have
        return _READ_BYTES
