"""A transport for requests that connects to one address that was checked, and can be ended from another thread.

requests is told the URL with its name, urllib3 the address to connect to and the name that the certificate has to be
for: nothing looks the name up again. Limits: for one request; it overrides one private method of urllib3 2
(``HTTPConnection._new_conn``), to get hold of a socket before its TLS handshake.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection


class Sockets:
    """The sockets of one request; once closed, each one that is still made is closed at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._copies: list[socket.socket] = []
        self._closed = False

    def add(self, sock: socket.socket) -> None:
        """Watch a socket; a copy is kept, as TLS takes the original over."""
        with self._lock:
            if not self._closed:
                self._copies.append(sock.dup())
                return
        sock.shutdown(socket.SHUT_RDWR)

    def shut_down(self) -> None:
        """End whatever is under way; any thread may call it."""
        with self._lock:
            self._closed = True
            for copy in self._copies:
                with contextlib.suppress(OSError):
                    copy.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the copies back."""
        with self._lock:
            self._closed = True
            for copy in self._copies:
                copy.close()
            self._copies.clear()


class _Plain(HTTPConnection):
    def __init__(self, *args: Any, sockets: Sockets, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sockets = sockets

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        self._sockets.add(sock)
        return sock


class _Secure(HTTPSConnection):
    def __init__(self, *args: Any, sockets: Sockets, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sockets = sockets

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        self._sockets.add(sock)
        return sock


class Pinned(HTTPAdapter):
    """Connects to one address, whatever the URL's name means at that moment.

    Attributes:
        address: Where to connect to.
        host: The URL's host.
        sockets: Those that it has made.
    """

    def __init__(self, address: str, host: str) -> None:
        self.address, self.host, self.sockets = address, host, Sockets()
        super().__init__(max_retries=0, pool_maxsize=1)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Have the pools make connections that are watched."""
        super().init_poolmanager(*args, **kwargs)
        pools = {"http": (HTTPConnectionPool, _Plain), "https": (HTTPSConnectionPool, _Secure)}
        self.poolmanager.pool_classes_by_scheme = {
            scheme: functools.partial(_pool, pool, functools.partial(connection, sockets=self.sockets))
            for scheme, (pool, connection) in pools.items()
        }

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        """Requests' hook for adapters: where to connect to, and which name the certificate must have."""
        host: Any
        pool: Any
        host, pool = super().build_connection_pool_key_attributes(request, verify, cert)
        host["host"] = self.address
        if host["scheme"] == "https":
            pool["server_hostname"] = self.host
        return host, pool


def _pool(kind: Any, connection: Any, *args: Any, **kwargs: Any) -> Any:
    pool = kind(*args, **kwargs)
    pool.ConnectionCls = connection
    return pool
