"""A receiver of webhooks on loopback: keeps what it gets, and answers as a test wants it to."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass
class Got:
    """One request, as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass
class Receiver:
    """Listens on a port of its own; ``answer`` is asked what to send back, and may block.

    Attributes:
        got: What came, in order.
        most: The most connections that were answered at one time.
    """

    answer: Callable[[Got, socket.socket], bytes] = lambda _got, _sock: ANSWER
    tls: ssl.SSLContext | None = None
    got: list[Got] = field(default_factory=list)
    connections: int = 0
    most: int = 0
    _busy: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.02)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(10)
        self._listener.close()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def url(self, path: str = "/hook", host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def _accept(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                sock, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, ssl.SSLError), sock:
            sock.settimeout(20)
            if self.tls is not None:
                sock = self.tls.wrap_socket(sock, server_side=True)
            got = read_request(sock)
            with self._lock:
                self.got.append(got)
                self._busy += 1
                self.most = max(self.most, self._busy)
            try:
                sock.sendall(self.answer(got, sock))
            finally:
                with self._lock:
                    self._busy -= 1
            sock.close()


def read_request(sock: socket.socket) -> Got:
    """One request with its body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _piece(sock)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        body += _piece(sock)
    return Got(first.split(" ")[1], headers, body)


def _piece(sock: socket.socket) -> bytes:
    more = sock.recv(65536)
    if not more:
        raise OSError("the client went away")
    return more


def answered(code: int, *headers: str, body: bytes = b"") -> Callable[[Got, socket.socket], bytes]:
    """Always the same answer."""
    lines = [f"HTTP/1.1 {code} X", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return lambda _got, _sock: "\r\n".join([*lines, "", ""]).encode() + body
