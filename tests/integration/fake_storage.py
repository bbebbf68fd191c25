"""A storage of a few lines on a real socket, for answers that no real one can be brought to give.

It takes uploads and gives them back; a test's own function may answer instead. It is also a proxy: it takes CONNECT,
and requests that name another server, which it then plays itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Received:
    """A request."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def query(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.target).query, True).items()}

    @property
    def signed(self) -> list[str]:
        return self.query.get("X-Amz-SignedHeaders", "").split(";")


@dataclass(frozen=True)
class Reply:
    """An answer; without a length its end is that of the connection."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def error(status: int, code: str, message: str = "") -> Reply:
    """An S3 error document."""
    return Reply(status, {}, f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode())


Answer = Callable[[Received], Reply | None]
"""Answers a request; None leaves it to the storage."""


class FakeStorage:
    """See the module.

    Attributes:
        url: Where it listens.
        seen: All requests.
        tunnels: Where CONNECT was asked to, and what proof was shown.
        answer: The test's own answers.
        connections: How many were accepted.
        silent: While set, nobody hears whether a body is wanted.
    """

    def __init__(self, certificate: Path | None = None) -> None:
        self.seen: list[Received] = []
        self.tunnels: list[tuple[str, str]] = []
        self.objects: dict[str, bytes] = {}
        self.answer: Answer = lambda _: None
        self.connections = 0
        self.silent = False
        self.tunnel_status = 200
        self.tls: ssl.SSLContext | None = None
        if certificate:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(certificate)
        self._server = _Server(self)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reply(self, request: Received) -> Reply:
        self.seen.append(request)
        own = self.answer(request)
        if own is not None:
            return own
        key = urlsplit(request.target).path
        etag = {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'}
        if request.method == "POST" and "uploads" in request.query:
            document = "<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>"
            return Reply(200, {}, document.encode())
        if request.method == "PUT":
            self.objects[key] = request.body
            return Reply(200, etag)
        data = self.objects.get(key, b"")
        return Reply(200, {"ETag": f'"{hashlib.md5(data).hexdigest()}"'}, data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, storage: FakeStorage) -> None:
        self.storage = storage
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def storage(self) -> FakeStorage:
        assert isinstance(self.server, _Server)
        return self.server.storage

    def setup(self) -> None:
        self.storage.connections += 1
        super().setup()

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):  # the test's own, or a client that hung up
            super().handle()

    def handle_expect_100(self) -> bool:
        return self.storage.silent or super().handle_expect_100()

    def do_CONNECT(self) -> None:
        status = self.storage.tunnel_status
        self.storage.tunnels.append((self.path, self.headers.get("Proxy-Authorization", "")))
        self.send_response_only(status)
        if status != 200:
            self.send_header("Content-Length", "0")
        self.end_headers()
        if self.storage.tls and status == 200:
            sock = self.storage.tls.wrap_socket(self.connection, server_side=True)
            self.connection = sock
            self.rfile = sock.makefile("rb")
            self.wfile = sock.makefile("wb", buffering=0)  # type: ignore[assignment]  # what it is by default, but TLS

    def _do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        reply = self.storage.reply(Received(self.command, self.path, dict(self.headers), body))
        self.send_response_only(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _do  # noqa: N815 -- the names that the base class looks for

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def fake_storage(certificate: Path | None = None) -> Iterator[FakeStorage]:
    """A running one."""
    storage = FakeStorage(certificate)
    storage.thread.start()
    try:
        yield storage
    finally:
        storage.close()


@contextmanager
def deaf_server() -> Iterator[str]:
    """The URL of a server that accepts no connection: whoever connects waits."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for filler in fillers:
                filler.close()
