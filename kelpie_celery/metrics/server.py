"""The HTTP server that Prometheus scrapes.

prometheus_client's own server asks the network for the name of its address before it serves, and waits without end for
a client that says nothing; this is its application behind a server that does neither.

Limits: plain HTTP without a password, a thread a request, `CLIENTS` at once; any path is the metrics.
"""

from __future__ import annotations

import socket
import socketserver
import threading
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

CLIENT_S = 10.0
"""A client that says or takes nothing for so long is left, seconds."""

CLIENTS = 16
"""More at once are sent away: whoever opens connections must not take a worker's memory."""


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's signature
        """Log nothing."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = CLIENTS

    def __init__(self, address: tuple[str, int], handler: type[_Handler]) -> None:
        self._room = threading.BoundedSemaphore(CLIENTS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, if there is one left."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread can be started
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and make room for another."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]  # not looked up
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nobody's concern."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class MetricsServer:
    """Serves a registry until it is closed.

    Raises:
        OSError: The address cannot be had.
    """

    def __init__(self, address: str, port: int, registry: CollectorRegistry) -> None:
        kind = _Server6 if ":" in address else _Server
        self._server = kind((address, port), _Handler)
        self._server.set_app(make_wsgi_app(registry))
        self._thread = threading.Thread(target=self._server.serve_forever, name="kelpie-metrics", daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """IP address and port."""
        host, port, *_ = self._server.server_address
        return str(host), int(port)

    def close(self) -> None:
        """Serve no more; the port is free."""
        self._server.shutdown()
        self._server.server_close()
