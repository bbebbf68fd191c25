"""Reading the answer to a request from a blocking socket.

Nearly all answers have a short head that tells the length of their body. Those are taken apart here, in the buffer that
their body begins in: it takes a fifth of the time, and a small object comes with one system call. Whatever is less
plain (an error, chunks, no length) is read from its beginning by ``http.client``.

Limits: what is read of a body lies in the thread's buffer, and has to be used before anything else is put there.
"""

from __future__ import annotations

import io
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse, IncompleteRead, RemoteDisconnected
from typing import cast

from kelpie_worker.sync.threads import buffer

_PLAIN = {"HTTP/1.1 200": 200, "HTTP/1.1 204": 204, "HTTP/1.1 206": 206}
_HEAD_BYTES = 8192
_PIECE_BYTES = 256 * 1024
"""Pieces of a body are gathered up to this size, unless it ends or breaks off."""


@dataclass
class Answer:
    """An answer whose head has been read; its body is read by `pieces` or `text`.

    Attributes:
        status: The HTTP status.
        headers: By lower-case name.
        length: Of the body, in bytes; None where that is not told.
        reusable: Whether the connection can serve again once the body has been read.
        body: The body, where it was read as a whole.
    """

    status: int
    headers: Mapping[str, str]
    length: int | None
    reusable: bool
    body: bytes = b""
    _sock: socket.socket | None = field(default=None, repr=False)
    _begun: tuple[int, int] = (0, 0)
    _other: HTTPResponse | None = field(default=None, repr=False)

    @property
    def etag(self) -> str:
        """The ETag without its quotes."""
        return self.headers.get("etag", "").strip('"')

    def pieces(self) -> Iterator[memoryview]:
        """The body, in pieces of this thread's buffer; what arrived before a break comes before the error.

        Raises:
            OSError: The connection broke.
            HTTPException: Likewise.
        """
        view = buffer()
        start, end = self._begun
        left = self._left() - (end - start)
        while left:
            if end == len(view) or end - start >= _PIECE_BYTES:
                yield view[start:end]
                start = end = 0
            try:
                count = self._receive(view[end : end + left])
            except (OSError, HTTPException):
                yield view[start:end]
                raise
            if not count:
                yield view[start:end]
                if self.length is None:
                    return
                raise IncompleteRead(b"", left)
            end, left = end + count, left - count
        yield view[start:end]

    def whole(self, arrived: Callable[[int], None]) -> memoryview:
        """All of a body whose length is told, and that fits into this thread's buffer.

        Args:
            arrived: Called with the number of bytes as they arrive.

        Raises:
            OSError: The connection broke.
            HTTPException: Likewise.
        """
        view, (start, at) = buffer(), self._begun
        end = start + (self.length or 0)
        arrived(at - start)
        while at < end:
            count = self._receive(view[at:end])
            if not count:
                raise IncompleteRead(b"", end - at)
            arrived(count)
            at += count
        return view[start:end]

    def _left(self) -> int:
        # Without a length it ends when it ends; no body is longer than this.
        return self.length if self.length is not None else 1 << 62

    def _receive(self, view: memoryview) -> int:
        if self._other is None:
            return cast("socket.socket", self._sock).recv_into(view)
        data = self._other.read1(len(view))
        view[: len(data)] = data
        return len(data)

    def text(self) -> bytes:
        """The whole body; raises as `pieces`."""
        self.body = b"".join([bytes(piece) for piece in self.pieces()])
        return self.body


def read_head(sock: socket.socket, method: str, said: bytes = b"") -> Answer:
    """Wait for an answer.

    Args:
        sock: Where from.
        method: Of the request.
        said: What was read of it already.

    Raises:
        OSError: The connection broke.
        HTTPException: Likewise, or what came is no answer.
    """
    view, count, end = buffer(), len(said), said.find(b"\r\n\r\n")
    view[:count] = said
    while end < 0 and count < _HEAD_BYTES:
        more = sock.recv_into(view[count:])
        if not more:
            break
        count += more
        end = bytes(view[: min(count, _HEAD_BYTES)]).find(b"\r\n\r\n")
    if not count:
        raise RemoteDisconnected("the storage closed the connection")
    plain = _plain(sock, view, end, count) if end >= 0 and method != "HEAD" else None
    return plain or _other(sock, method, bytes(view[:count]))


def _plain(sock: socket.socket, view: memoryview, end: int, count: int) -> Answer | None:
    first, *lines = str(view[:end], "latin-1").split("\r\n")
    status = _PLAIN.get(first[:12])
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    length = "0" if status == HTTPStatus.NO_CONTENT else headers.get("content-length", "")
    # A header twice, or one that goes on in the next line, is not plain.
    if status is None or "transfer-encoding" in headers or not length.isdecimal() or len(headers) != len(lines):
        return None
    start, arrived = end + 4, count - end - 4
    reusable = headers.get("connection", "").lower() != "close" and arrived <= int(length)
    begun = (start, min(count, start + int(length)))
    return Answer(status, headers, int(length), reusable, _sock=sock, _begun=begun)


class _Replayed(io.RawIOBase):
    """A socket's bytes, after those that were read from it already."""

    def __init__(self, sock: socket.socket, said: bytes) -> None:
        self._sock, self._said = sock, said

    def readable(self) -> bool:
        return True

    def readinto(self, view: memoryview) -> int:  # type: ignore[override]  # a buffered reader gives nothing else
        if not self._said:
            return self._sock.recv_into(view)
        count = min(len(view), len(self._said))
        view[:count], self._said = self._said[:count], self._said[count:]
        return count


class _Source:
    """As much of a socket as ``http.client`` reads from."""

    def __init__(self, sock: socket.socket, said: bytes) -> None:
        self._raw = _Replayed(sock, said)

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(self._raw)


def _other(sock: socket.socket, method: str, said: bytes) -> Answer:
    response = HTTPResponse(cast("socket.socket", _Source(sock, said)), method=method)
    response.begin()
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status, headers, response.length, not response.will_close, _other=response)
