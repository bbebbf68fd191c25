"""A way to a server that a test may close and open: what a worker sees of a storage that is away for a while.

Limits: TCP on loopback; a connection that is open when the gate is closed is cut.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

_PIECE_BYTES = 65536


class Gate:
    """Passes connections on to a server while it is open, and cuts them off while it is closed.

    Attributes:
        port: Where it listens.
        refused: How many connections met it closed.
    """

    def __init__(self, port: int) -> None:
        self._server = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.refused = 0
        self._open = threading.Event()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def open(self) -> None:
        """Let connections through from now on."""
        self._open.set()

    def shut(self) -> None:
        """Let nothing through, and cut what is on its way."""
        self._open.clear()
        with self._lock:
            for one in self._sockets:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._open.is_set():
                self._pass_on(client)
            else:
                self._refuse(client)

    def _pass_on(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._server)
        except OSError:
            client.close()
            return
        with self._lock:
            # Once more: who shuts the gate meanwhile does not know of these yet.
            is_open = self._open.is_set()
            if is_open:
                self._sockets |= {client, server}
        if not is_open:
            server.close()
            self._refuse(client)
            return
        for one, other in ((client, server), (server, client)):
            threading.Thread(target=self._copy, args=(one, other), daemon=True).start()

    def _refuse(self, client: socket.socket) -> None:
        self.refused += 1
        client.close()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE_BYTES):
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._sockets.discard(source)
        source.close()
