"""A command's whole output on the node's disk, until it is stored: bounded, and never in the command's way.

What is more than the bound is left out in the middle: the first half stays, and the last. Writing is done by a thread;
where the disk is slower than a flood, parts of the flood are left out, too, and counted.

Limits: lines of both streams come as they were read, whole up to `_LINE_BYTES`; one log a command.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kelpie_worker.sync.threads import in_thread, soon_in_thread

log = logging.getLogger(__name__)

_LINE_BYTES = 65536
_WAITING_BYTES = 8 << 20
_READ_BYTES = 256 * 1024


@dataclass(frozen=True)
class Half:
    """What is kept on one side of the gap.

    Attributes:
        pieces: Of it.
        cut_bytes: What was cut off at the gap, so that a line ends or begins there.
        is_torn: No line ends near: something may be torn there.
    """

    pieces: Iterator[bytes]
    cut_bytes: int
    is_torn: bool


class LogFile:
    """The log of one command; made in a folder that is removed with the attempt.

    Args:
        folder: Where it is kept, in two files.
        max_bytes: What is kept of it.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._half = max(1, max_bytes // 2)
        self._paths = (folder / "log-first", folder / "log-last")
        self._files: list[int] = []
        self._kept = self._after = self._lost = self._dropped = 0
        self._waiting, self._waiting_bytes, self._working = deque[bytes](), 0, False
        self._closed = False
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._pens: list[Pen] = []
        self.error = ""
        """Why nothing more is kept; empty while all is well."""

    # -- what comes in, in the loop -------------------------------------------------------------------------------

    def pen(self) -> Callable[[bytes], None]:
        """What takes the output of one stream as it comes."""
        pen = Pen(self._take)
        self._pens.append(pen)
        return pen.write

    def _take(self, data: bytes) -> None:
        with self._lock:
            if self.error or self._closed:
                self._lost += len(data)
                return
            self._waiting.append(data)
            self._waiting_bytes += len(data)
            # What comes last is worth more than what came before it.
            while self._waiting_bytes > _WAITING_BYTES:
                dropped = len(self._waiting.popleft())
                self._waiting_bytes -= dropped
                self._dropped += dropped
            if self._working:
                return
            self._working = True
        self._go_on_soon()

    def _go_on_soon(self) -> None:
        with contextlib.suppress(RuntimeError):  # the interpreter ends
            soon_in_thread(self._turn)

    async def finish(self) -> None:
        """Nothing more comes: write what is still to be written."""
        for pen in self._pens:
            pen.close()
        await in_thread(self._work)

    # -- what goes to the disk, in a thread -----------------------------------------------------------------------

    def _turn(self) -> None:
        """Write what waits, once: the threads are everybody's, and a flood may go on for ever."""
        if self._write_waiting():
            self._go_on_soon()

    def _work(self) -> None:
        while self._write_waiting():
            pass

    def _write_waiting(self) -> bool:
        """Write what waits; whether there was anything."""
        with self._writing:
            with self._lock:
                if not self._waiting or self._closed:
                    self._working = False
                    return False
                data = b"".join((_notice(self._dropped), *self._waiting))
                self._waiting.clear()
                self._lost += self._dropped
                self._waiting_bytes = self._dropped = 0
            try:
                self._write(data)
            except OSError as error:
                self._give_up(error, len(data))
            return True

    def _write(self, data: bytes) -> None:
        if not self._files:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self._files = [os.open(path, flags, 0o600) for path in self._paths]
        first, rest = data[: self._half - self._kept], data[self._half - self._kept :]
        _write_all(self._files[0], first, self._kept)
        self._kept += len(first)
        # Of what follows, only the last half can stay.
        skipped = max(0, len(rest) - self._half)
        self._after += skipped
        rest = rest[skipped:]
        while rest:
            at = self._after % self._half
            piece, rest = rest[: self._half - at], rest[self._half - at :]
            _write_all(self._files[1], piece, at)
            self._after += len(piece)

    def _give_up(self, error: OSError, lost_bytes: int) -> None:
        with self._lock:
            self._lost += lost_bytes
            self.error = error.strerror or type(error).__name__
        log.warning(
            "a job's log cannot be kept on the disk any more; what is there is stored at its end",
            extra={"action": "log_not_kept", "path": str(self._paths[0].parent), "error": self.error},
        )

    # -- what is read, after `finish` -----------------------------------------------------------------------------

    @property
    def written_bytes(self) -> int:
        """How much the command wrote in all."""
        return self._kept + self._after + self._lost

    @property
    def left_out_bytes(self) -> int:
        """How much of it is not kept in the middle, because of the bound."""
        return max(0, self._after - self._half)

    @property
    def lost_bytes(self) -> int:
        """How much of it is not kept because the disk was too slow or full."""
        return self._lost

    def pieces(self) -> Iterator[bytes]:
        """All that was written, in order, where nothing is left out; blocking."""
        yield from self._read(0, 0, self._kept)
        yield from self._read(1, 0, self._after)

    def halves(self) -> tuple[Half, Half]:
        """What is kept before and after the gap, where something is left out; blocking."""
        near = min(_LINE_BYTES, self._half)
        end = b"".join(self._read(0, self._kept - near, near)).rfind(b"\n") + 1
        start = b"".join(self._ring(0, near)).find(b"\n") + 1
        cut = near - end if end else 0
        return (
            Half(self._read(0, 0, self._kept - cut), cut, is_torn=not end),
            Half(self._ring(start, self._half - start), start, is_torn=not start),
        )

    def _ring(self, skip: int, length: int) -> Iterator[bytes]:
        """A part of the last half, which begins somewhere in its file and goes on at the file's start."""
        at = (self._after + skip) % self._half
        straight = min(length, self._half - at)
        yield from self._read(1, at, straight)
        yield from self._read(1, 0, length - straight)

    def _read(self, number: int, start: int, length: int) -> Iterator[bytes]:
        at, end = start, start + length
        while at < end and self._files:
            data = os.pread(self._files[number], min(_READ_BYTES, end - at), at)
            if not data:
                return
            at += len(data)
            yield data

    def close(self) -> None:
        """Let go of the files; they go with their folder. Nothing is written from now on, also not what waits."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
        with self._writing:
            files, self._files = self._files, []
            for fd in files:
                with contextlib.suppress(OSError):
                    os.close(fd)


class Pen:
    """Keeps the lines of one stream together, as another stream is written into the same log."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take, self._rest = take, b""

    def write(self, data: bytes) -> None:
        """Some bytes of the stream."""
        data = self._rest + data
        at = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if not at and len(data) > _LINE_BYTES:
            at = len(data)
        self._rest = data[at:]
        if at:
            self._take(data[:at])

    def close(self) -> None:
        """The last line, if it lacked its break."""
        rest, self._rest = self._rest, b""
        if rest:
            self._take(rest)


def _notice(dropped_bytes: int) -> bytes:
    if not dropped_bytes:
        return b""
    return f"\nkelpie: {dropped_bytes} bytes of output are missing here: they came too fast for the disk\n".encode()


def _write_all(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, at)
        view, at = view[done:], at + done
