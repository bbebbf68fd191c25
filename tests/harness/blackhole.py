"""A TCP proxy that can go dark: it takes what it is sent and passes nothing on, like a NAT that forgot a connection.

Nobody hears of it: no reset, no end. Limits: one thread, non-blocking sockets; what was sent into the dark is lost.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from typing import Self
from urllib.parse import urlsplit

_CHUNK_BYTES = 65536


class Blackhole:
    """Between somebody and a server on loopback."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._url, self._target = parts, (str(parts.hostname), int(parts.port or 0))
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._dark: set[socket.socket] = set()
        self._all_dark = False
        self._lock = threading.Lock()
        self._peer: dict[socket.socket, socket.socket] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="blackhole", daemon=True)
        self.accepted = 0

    @property
    def url(self) -> str:
        """The server's URL by way of here."""
        user = f"{self._url.netloc.rpartition('@')[0]}@" if "@" in self._url.netloc else ""
        netloc = f"{user}127.0.0.1:{self._listener.getsockname()[1]}"
        return self._url._replace(netloc=netloc).geturl()

    @property
    def connections(self) -> int:
        """How many pass through here and are not dark."""
        with self._lock:
            return sum(client not in self._dark for client in self._peer) // 2

    def swallow(self, *, new_ones: bool) -> int:
        """From now on pass on nothing of the connections that there are, and of new ones if told so; how many."""
        with self._lock:
            self._dark |= set(self._peer)
            self._all_dark = new_ones
            return len(self._dark) // 2

    def let_new_ones_pass(self) -> None:
        """New connections work; those that are dark stay dark, for good."""
        with self._lock:
            self._all_dark = False

    def __enter__(self) -> Self:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        for one in (*self._peer, self._listener):
            one.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            for key, _ in self._selector.select(0.05):
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket):
                    self._pass_on(key.fileobj)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        self.accepted += 1
        try:
            server = socket.create_connection(self._target, timeout=5)
        except OSError:
            client.close()
            return
        with self._lock:
            self._peer |= {client: server, server: client}
            if self._all_dark:
                self._dark |= {client, server}
        for one in (client, server):
            one.settimeout(5)
            self._selector.register(one, selectors.EVENT_READ)

    def _pass_on(self, source: socket.socket) -> None:
        try:
            data = source.recv(_CHUNK_BYTES)
            if source not in self._dark and data:
                self._peer[source].sendall(data)
        except OSError:
            data = b""
        if not data:
            self._close(source)

    def _close(self, source: socket.socket) -> None:
        with self._lock:
            other = self._peer.pop(source, None)
            dark = source in self._dark
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(source)
        source.close()
        if other is not None and not dark:
            # An end in the dark is not heard of on the other side either.
            self._close(other)
