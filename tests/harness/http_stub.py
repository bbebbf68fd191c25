"""A small HTTP server for the tests of HTTP clients: it answers as it is told, and keeps every exchange.

Limits: one thread a connection; what a handler raises becomes a 500, and fails the test that asks ``exchanges`` for it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

JSON = "application/json"


@dataclass
class Reply:
    """An answer; ``body`` of other than JSON types is text. ``cut`` closes the connection without a word."""

    status: int = 200
    body: Any = None
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    wait: threading.Event | None = None

    @property
    def content(self) -> bytes:
        if self.body is None:
            return b""
        return (json.dumps(self.body) if self.content_type.endswith("json") else str(self.body)).encode()


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


Answer = Callable[[Asked], Reply]


class HttpStub:
    """Serves on a port of loopback; ``script`` is answered first, in order, to requests whose path ends so."""

    service = "api"
    prefix = ""

    def __init__(self) -> None:
        self.script: list[tuple[str, Reply]] = []
        self.exchanges: list[dict[str, Any]] = []
        self.on_request: Callable[[Asked], None] = lambda _asked: None
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        return self.root + self.prefix

    def answer(self, asked: Asked) -> Reply:
        """What it answers when nothing is scripted."""
        raise NotImplementedError

    def next_time(self, path_end: str, *replies: Reply) -> None:
        """Answer the next requests so whose method and path end with this."""
        self.script += [(path_end, reply) for reply in replies]

    def calls(self) -> list[str]:
        """``GET /path`` of every request, in order."""
        return [f"{e['method']} {e['url'].removeprefix(self.url)}" for e in self.exchanges]

    def _reply(self, asked: Asked) -> Reply:
        with self._lock:
            line = f"{asked.method} {asked.path}"
            for at, (end, reply) in enumerate(self.script):
                if line.endswith(end):
                    del self.script[at]
                    return reply
            return self.answer(asked)

    def _keep(self, asked: Asked, reply: Reply) -> None:
        response = None if reply.body is None else reply.body
        with self._lock:
            self.exchanges.append({
                "method": asked.method, "url": self.root + asked.path, "headers": dict(asked.headers),
                "body": asked.body,
                "status": reply.status, "response": response, "service": self.service,
            })  # fmt: skip

    def _handler(stub) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the handler's below
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                raw = self.rfile.read(length) if length else b""
                asked = Asked(self.command, self.path, dict(self.headers), json.loads(raw) if raw else None)
                stub.on_request(asked)
                reply = stub._reply(asked)
                stub._keep(asked, reply)
                if reply.wait is not None:
                    reply.wait.wait(30)
                if reply.cut:
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if reply.body is not None:
                    self.send_header("Content-Type", reply.content_type)
                self.send_header("Content-Length", str(len(reply.content)))
                self.end_headers()
                self.wfile.write(reply.content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815 - the base class's names

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
