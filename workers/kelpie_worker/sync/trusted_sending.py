"""Bytes on their way to a storage: a time-out for the next ones, and a fence that is asked before them.

Limits: what a proxy has taken counts as taken. How much the other side has acknowledged is known on Linux and macOS.
"""

from __future__ import annotations

import contextlib
import os
import select

from kelpie_celery.clock import Clock
from kelpie_worker.sync.connections import Connection
from kelpie_worker.sync.fence import Fence

UNFENCED_S = 900.0
"""How long requests that make nothing visible stay valid, seconds."""
LAST_BYTES = 64 * 1024
"""The end of a fenced body, held back until no more than this is under way."""
_LEAST_S = 1.0
"""Below so many seconds of trust nothing is begun, nor ended: a presigned request lives for whole seconds."""
_ANSWER_S = 1.0
"""How long an answer may come after the trust, seconds, where the storage has everything."""
_TLS_BYTES = 64 * 1024
"""How much goes to TLS at once: its time-out is for all of what it is given."""
_SCARCE_S = 5.0
"""With less trust than that, seconds, every moment of it counts."""
_HEAD_BYTES = 8192
_LOOK_MS, _LONGEST_LOOK_MS = 1, 50


class Muted(Exception):
    """The trust ran out before the body was sent."""


class Sending:
    """One request on one connection.

    Args:
        connection: The connection.
        fence: Of whatever makes something visible.
        timeout_s: For the next bytes in either direction.
        clock: Goes on while the machine sleeps.
    """

    def __init__(self, connection: Connection, fence: Fence | None, timeout_s: float, clock: Clock) -> None:
        self._connection, self._fence, self._timeout_s, self._clock = connection, fence, timeout_s, clock
        if fence is None:
            connection.limit(timeout_s)  # else it follows the trust

    def trust_s(self) -> float:
        """How long the request may stay valid; asked last, since a connection may have been slow to come about.

        Raises:
            Muted: Not long enough to begin or to end anything.
        """
        if self._fence is None:
            self._connection.limit_silence(0)
            return UNFENCED_S
        left_s = self._fence.remaining_s()
        if left_s < _LEAST_S:
            raise Muted
        self._connection.limit_silence(int(_rounded(left_s) * 1000))
        return left_s

    def _wait_s(self) -> float:
        """How long the next step may take; the kernel is told the same of the trust."""
        if self._fence is None:
            return self._timeout_s
        left_s = _rounded(self._fence.remaining_s())
        if left_s <= 0:
            raise Muted
        self._connection.limit_silence(max(1, int(left_s * 1000)))
        return min(self._timeout_s, left_s)

    def push(self, data: bytes | memoryview) -> None:
        """Hand bytes to the kernel, however slow the line is.

        Raises:
            Muted: The trust is over.
            OSError: The connection broke, or took nothing for too long.
        """
        view, done = memoryview(data), 0
        step = _TLS_BYTES if self._connection.route.tls else max(1, len(view))
        since_s = self._clock.boottime()
        while done < len(view):
            limit_s = self._wait_s()
            self._connection.limit(limit_s)
            try:
                done += self._send(view[done : done + step], limit_s)
                since_s = self._clock.boottime()
            except TimeoutError:
                if self._clock.boottime() - since_s >= self._timeout_s:
                    raise

    def _send(self, piece: memoryview, limit_s: float) -> int:
        """One step; how much the kernel took.

        What is fenced is written as soon as the fence was asked, and waits for room elsewhere: a process that was
        frozen while it waited must ask again before it sends the rest of a request that the storage let in long ago.
        """
        sock, fence = self._connection.sock, self._fence
        if fence is None or self._connection.route.tls:
            return sock.send(piece)
        while True:
            if fence.remaining_s() <= 0:
                raise Muted
            try:
                return os.write(sock.fileno(), piece)
            except BlockingIOError:
                room = select.poll()
                room.register(sock, select.POLLOUT)
                if not room.poll(int(limit_s * 1000) + 1):
                    raise TimeoutError from None

    def drain(self) -> None:
        """Wait until nearly all that was sent is acknowledged.

        Raises:
            Muted: There is not enough trust left for the rest.
            TimeoutError: Nothing is acknowledged any more.
        """
        poll, pause_ms = select.poll(), _LOOK_MS
        poll.register(self._connection.sock, 0)  # wakes up when the connection breaks
        before, since_s = -1, self._clock.boottime()
        while (count := self._connection.unacknowledged_bytes) > LAST_BYTES:
            self._wait_s()
            now_s = self._clock.boottime()
            if count != before:
                before, since_s = count, now_s
            elif now_s - since_s > self._timeout_s:
                raise TimeoutError
            if poll.poll(pause_ms):
                break  # the next send says why
            pause_ms = min(_LONGEST_LOOK_MS, pause_ms * 2)
        self.trust_s()

    def answer(self) -> bytes:
        """Wait for the first bytes of an answer; none when the connection ended.

        Raises:
            Muted: The trust was over before they came.
            TimeoutError: They did not come in time.
        """
        sock, wait_s = self._connection.sock, self._timeout_s
        end_s = self._clock.boottime() + wait_s
        while wait_s > 0:
            left_s = self._fence.remaining_s() if self._fence else UNFENCED_S
            if self._connection.unacknowledged_bytes == 0:
                left_s += _ANSWER_S  # nothing can arrive late any more
            if left_s <= 0:
                raise Muted
            self._connection.limit(min(_rounded(left_s), wait_s))
            with contextlib.suppress(TimeoutError):
                said = sock.recv(_HEAD_BYTES)
                self._connection.limit(self._timeout_s)
                return said
            wait_s = end_s - self._clock.boottime()
        raise TimeoutError


def _rounded(left_s: float) -> float:
    """Trust as the kernel is told of it: less than there is, and the same for a second, since it costs system calls."""
    return left_s if left_s < _SCARCE_S else float(int(left_s))
