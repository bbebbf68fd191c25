"""Blocking connections to storages: opened directly or through a proxy, kept for the next request, closed from outside.

They are used by transfer threads. ``HTTPS_PROXY``, ``HTTP_PROXY`` and ``NO_PROXY`` are respected.

Limits: a proxy is spoken to without TLS (``http://``), as nearly all are. A look-up of a name cannot be broken off.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import functools
import select
import socket
import ssl
import struct
import termios
import threading
import urllib.request
from collections import defaultdict
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPResponse
from urllib.parse import unquote, urlsplit

from kelpie_celery.clock import Clock

KEEP_S = 15.0
"""How long an unused connection is kept, seconds; most storages keep theirs a little longer."""
_PORTS = {"http": 80, "https": 443}


class Stopped(Exception):
    """The call that a thread works for was cancelled."""


class ProxyRefused(Exception):
    """The proxy does not let us through."""


class Grip:
    """What a thread holds, for others to stop it.

    It holds the socket that it waits on, and at times what belongs to the caller, a body or a sink: only then it must
    be waited for.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._stopped = self._busy = False

    def hold(self, sock: socket.socket | None) -> None:
        """From now on this is the socket that the thread waits on.

        Raises:
            Stopped: The call was cancelled.
        """
        with self._lock:
            self._socket = sock
            if self._stopped:
                raise Stopped

    def busy(self, busy: bool) -> None:
        """From now on the thread uses what belongs to the caller, or does not.

        Raises:
            Stopped: The call was cancelled.
        """
        with self._lock:
            if self._stopped:
                raise Stopped
            self._busy = busy

    def stop(self) -> bool:
        """Make the thread end; whether it must be waited for."""
        with self._lock:
            self._stopped = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    # Not SSLSocket's own, which would let the thread go on without TLS.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
            return self._busy


@dataclass(frozen=True)
class Route:
    """Where a connection leads to, and through which proxy (host, port, and what it wants to be told)."""

    tls: bool
    host: str
    port: int
    proxy: tuple[str, int, str] | None = None


@functools.cache
def route(base_url: str) -> Route:
    """The way to a URL's server, as the environment says.

    Raises:
        ProxyRefused: The proxy that it names cannot be used.
    """
    parts = urlsplit(base_url)
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    named = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(parts.scheme)
    if not named:
        return Route(parts.scheme == "https", host, port)
    try:
        proxy = urlsplit(named if "://" in named else f"http://{named}")
        usable = proxy.scheme == "http" and bool(proxy.hostname) and proxy.port != 0
    except ValueError:  # whose text may quote what is a password
        usable = False
    if not usable:
        raise ProxyRefused(
            f"a proxy is to be named as http://HOST:PORT (a / or @ in a password as %2F, %40);"
            f" correct {parts.scheme.upper()}_PROXY"
        )
    user = f"{unquote(proxy.username or '')}:{unquote(proxy.password or '')}"
    told = f"Basic {base64.b64encode(user.encode()).decode()}" if proxy.username else ""
    return Route(parts.scheme == "https", host, port, (proxy.hostname or "", proxy.port or 80, told))


@dataclass
class Connection:
    """An open connection.

    Attributes:
        sock: Its socket.
        route: Where it leads to.
        reused: Whether it has served a request before.
        limit_s: How long Python waits for it, seconds; None where somebody else does.
        user_timeout_ms: The TCP_USER_TIMEOUT that it has; 0 for the system's own.
        idle_since_s: Since when it waits for the next request.
    """

    sock: socket.socket
    route: Route
    reused: bool = False
    limit_s: float | None = None
    user_timeout_ms: int = 0
    idle_since_s: float = 0.0

    def __post_init__(self) -> None:
        self._poll = select.poll()
        self._poll.register(self.sock, select.POLLIN)

    def limit(self, limit_s: float) -> None:
        """Let Python wait so long for the next bytes in either direction; each change is a system call."""
        if limit_s != self.limit_s:
            self.sock.settimeout(limit_s)
            self.limit_s = limit_s

    def limit_in_the_kernel(self, limit_s: float) -> None:
        """The same, but it is the kernel that waits, which spares Python a system call before each step.

        When that was too long the error is BlockingIOError. With TLS it is as with `limit`: there Python would go on
        waiting when the kernel has given up.
        """
        if isinstance(self.sock, ssl.SSLSocket):
            self.limit(limit_s)
            return
        self.sock.settimeout(None)
        self.limit_s = None
        limit = struct.pack("@ll", int(limit_s), int(limit_s % 1 * 1_000_000))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def limit_silence(self, limit_ms: int) -> None:
        """Let the kernel give up what is not acknowledged for so long; 0 puts the system's own limit back."""
        if limit_ms != self.user_timeout_ms and hasattr(socket, "TCP_USER_TIMEOUT"):
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit_ms)
            self.user_timeout_ms = limit_ms

    @property
    def quiet(self) -> bool:
        """Whether nothing has arrived since the last answer; else it was closed, or is out of step."""
        return not self._poll.poll(0)

    @property
    def unacknowledged_bytes(self) -> int:
        """How much of what was sent the other side has not confirmed; 0 where the system does not tell."""
        try:
            count = fcntl.ioctl(self.sock.fileno(), termios.TIOCOUTQ, b"\0" * 4)
        except (OSError, ValueError):  # not a socket any more
            return 0
        return int(struct.unpack("i", count)[0])

    def close(self, *, reset: bool = False) -> None:
        """Close it at once.

        Args:
            reset: What the kernel still holds is dropped, instead of sent in its own time.
        """
        with contextlib.suppress(OSError):
            if reset:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            self.sock.close()


class Connections:
    """Opens connections and keeps those that can serve again; from any thread.

    Args:
        connect_timeout_s: For each step of opening one.
        tls: Whom to trust; by default those whom the system trusts.
        clock: Tells how long one has not been used.
    """

    def __init__(self, connect_timeout_s: float, tls: ssl.SSLContext | None, clock: Clock) -> None:
        self._connect_timeout_s, self._tls, self.clock = connect_timeout_s, tls, clock
        self._lock = threading.Lock()
        self._idle: defaultdict[Route, list[Connection]] = defaultdict(list)
        self._closed = False

    def take(self, way: Route, grip: Grip) -> Connection:
        """A connection, used before if possible.

        Raises:
            OSError: None can be opened.
            ProxyRefused: Likewise.
            Stopped: The call was cancelled.
        """
        while True:
            with self._lock:
                kept = self._idle[way].pop() if self._idle[way] else None
            if kept is None:
                return self.open(way, grip)
            if self.clock.boottime() - kept.idle_since_s <= KEEP_S and kept.quiet:
                kept.reused = True
                self._hold(grip, kept.sock)
                return kept
            kept.close()

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose last answer was read whole."""
        connection.idle_since_s = self.clock.boottime()
        with self._lock:
            if not self._closed:
                self._idle[connection.route].append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close all that are kept."""
        with self._lock:
            self._closed = True
            idle = [connection for kept in self._idle.values() for connection in kept]
            self._idle.clear()
        for connection in idle:
            connection.close()

    def open(self, way: Route, grip: Grip) -> Connection:
        """A new connection; raises as `take`."""
        host, port = way.proxy[:2] if way.proxy else (way.host, way.port)
        sock = self._connect(host, port, grip)
        try:
            if way.proxy and way.tls:
                self._tunnel(sock, way, way.proxy[2])
            if way.tls:
                context = self._tls or ssl.create_default_context()
                sock = context.wrap_socket(sock, server_hostname=way.host, do_handshake_on_connect=False)
                grip.hold(sock)
                sock.do_handshake()
        except BaseException:
            sock.close()
            raise
        return Connection(sock, way)

    def _connect(self, host: str, port: int, grip: Grip) -> socket.socket:
        failure: OSError | None = None
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            sock = socket.socket(family, kind, protocol)
            try:
                self._hold(grip, sock)
                sock.settimeout(self._connect_timeout_s)
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                sock.close()
                failure = error
            else:
                return sock
        raise failure or OSError(f"{host} has no address")

    @staticmethod
    def _hold(grip: Grip, sock: socket.socket) -> None:
        try:
            grip.hold(sock)
        except Stopped:
            sock.close()
            raise

    @staticmethod
    def _tunnel(sock: socket.socket, way: Route, told: str) -> None:
        host = f"[{way.host}]" if ":" in way.host else way.host
        proof = f"Proxy-Authorization: {told}\r\n" if told else ""
        sock.sendall(f"CONNECT {host}:{way.port} HTTP/1.1\r\nHost: {host}:{way.port}\r\n{proof}\r\n".encode())
        answer = HTTPResponse(sock, method="CONNECT")
        answer.begin()
        # Whatever the proxy says with its consent is none of the server's: nothing may be left in this buffer.
        answer.close()
        if answer.status in {HTTPStatus.PROXY_AUTHENTICATION_REQUIRED, HTTPStatus.FORBIDDEN}:
            raise ProxyRefused(f"the proxy refused ({answer.status}); check HTTPS_PROXY and NO_PROXY")
        if answer.status != HTTPStatus.OK:
            raise OSError(None, f"the proxy answered {answer.status}")
