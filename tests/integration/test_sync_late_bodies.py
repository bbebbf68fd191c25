"""What the kernel still holds when the trust ends: a fenced body never becomes whole after it."""

from __future__ import annotations

import calendar
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from kelpie_celery.clock import SystemClock
from kelpie_celery.errors import StorageSetupError, StorageUnavailable
from kelpie_worker.sync import connections
from kelpie_worker.sync.bodies import BytesBody
from kelpie_worker.sync.config import StorageConfig
from kelpie_worker.sync.connections import Connection, Connections, ProxyRefused
from kelpie_worker.sync.exchange import Exchange
from kelpie_worker.sync.fence import OpenFence
from kelpie_worker.sync.request import Request
from kelpie_worker.sync.s3_errors import Doing
from kelpie_worker.sync.signing import Presigner, StorageClock

_MAX_PACING_RATE = 47
STORED = b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\nETag: "x"\r\n\r\n'


class Ending(OpenFence):
    """Trust that ends after some seconds."""

    def __init__(self, after_s: float) -> None:
        super().__init__()
        self.end_s = time.monotonic() + after_s

    def remaining_s(self) -> float:
        return self.end_s - time.monotonic()


class Server:
    """Takes one request.

    Attributes:
        whole_s: When it had the whole body; None: never.
        line: The first line of the request.
    """

    def __init__(self, answer: bytes, silent: threading.Event | None = None) -> None:
        self.whole_s: float | None = None
        self.line = ""
        self._answer, self._silent = answer, silent
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/bucket"
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        with self._listener, contextlib.suppress(OSError):
            sock = self._listener.accept()[0]
            with sock:
                said = b""
                while b"\r\n\r\n" not in said:
                    said += sock.recv(65536)
                head, _, body = said.partition(b"\r\n\r\n")
                self.line = head.partition(b"\r\n")[0].decode()
                lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                left = int(lengths[0].partition(b":")[2]) - len(body) if lengths else 0
                while left > 0:
                    more = sock.recv(1 << 20)
                    if not more:
                        return
                    left -= len(more)
                self.whole_s = time.monotonic()
                if self._silent:
                    self._silent.wait(20)
                sock.sendall(self._answer)
                sock.recv(1)


@pytest.fixture
def slow_line(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets the kernel send no faster than so many bytes a second."""

    def set_rate(rate: int) -> None:
        connect = Connections._connect

        def slow(self: Connections, host: str, port: int, grip: connections.Grip) -> socket.socket:
            sock = connect(self, host, port, grip)
            sock.setsockopt(socket.SOL_SOCKET, _MAX_PACING_RATE, rate)
            return sock

        monkeypatch.setattr(Connections, "_connect", slow)

    return set_rate


def run(request: Request) -> None:
    clock = StorageClock(SystemClock())
    presigner = Presigner(StorageConfig("http://127.0.0.1:1", access_key="a", secret_key="b"), clock)
    Exchange(request, Connections(10.0, None, SystemClock()), presigner, clock).run()


def upload(url: str, size: int, fence: OpenFence, timeout_s: float) -> Request:
    return Request(Doing("upload", "bucket", "k"), "PUT", url, timeout_s, body=BytesBody(b"x" * size), fence=fence)


@pytest.mark.parametrize("size", [1_000_000, 3_000_000])
def test_what_the_kernel_holds_when_the_trust_ends_is_dropped(slow_line: Callable[[int], None], size: int) -> None:
    slow_line(200_000)
    server, fence = Server(STORED), Ending(3.0)
    with pytest.raises(StorageUnavailable, match="the lease ran out"):
        run(upload(server.url, size, fence, 30.0))
    assert time.monotonic() < fence.end_s + 8
    server.thread.join(20)
    assert not server.thread.is_alive()
    assert server.whole_s is None


def test_an_answer_is_not_waited_for_longer_than_the_trust_lasts() -> None:
    silent = threading.Event()
    server, fence = Server(STORED, silent), Ending(1.5)
    try:
        with pytest.raises(StorageUnavailable, match="the lease ran out"):
            run(upload(server.url, 1000, fence, 20.0))
        assert time.monotonic() < fence.end_s + 8
    finally:
        silent.set()


def test_a_body_on_a_slow_line_takes_longer_than_the_time_out_for_the_next_bytes(
    slow_line: Callable[[int], None],
) -> None:
    slow_line(150_000)
    server = Server(STORED)
    run(upload(server.url, 900_000, OpenFence(), 1.5))
    assert server.whole_s is not None


def test_a_pause_between_the_trust_and_the_signature_makes_a_request_end_too_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit, signed = Connection.limit_silence, list[str]()

    def pause(self: Connection, limit_ms: int) -> None:
        limit(self, limit_ms)
        time.sleep(4.0)

    url = Presigner.url

    def note(self: Presigner, *args: object, **options: object) -> str:
        signed.append(url(self, *args, **options))  # type: ignore[arg-type]  # passed on
        return signed[-1]

    monkeypatch.setattr(Connection, "limit_silence", pause)
    monkeypatch.setattr(Presigner, "url", note)
    server, fence = Server(STORED), Ending(3.0)
    began_s = time.time()
    with pytest.raises(StorageUnavailable, match="the lease ran out"):
        run(Request(Doing("deleting", "bucket", "k"), "DELETE", server.url, 5.0, fence=fence))
    query = dict(pair.partition("=")[::2] for pair in signed[0].partition("?")[2].split("&"))
    stamp = time.strptime(f"{query['X-Amz-Date']} UTC", "%Y%m%dT%H%M%SZ %Z")
    assert calendar.timegm(stamp) + int(query["X-Amz-Expires"]) <= began_s + 3.1


@pytest.mark.parametrize("name", ['<Error xmlns="http://s3.amazonaws.com/doc/2006-03-01/">', "<Error>"])
def test_an_error_in_an_answer_of_success_is_one_whatever_it_is_adorned_with(name: str) -> None:
    document = f"{name}<Code>InternalError</Code><Message>x</Message></Error>".encode()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(document), document)
    with pytest.raises(StorageUnavailable, match="InternalError"):
        run(Request(Doing("copy", "bucket", "k"), "PUT", Server(answer).url, 5.0, fence=OpenFence()))


def test_what_follows_the_consent_at_once_is_the_answer() -> None:
    document = b"<Error><Code>AccessDenied</Code></Error>"
    refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%b" % (len(document), document)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, contextlib.suppress(OSError), listener.accept()[0] as sock:
            said = b""
            while b"\r\n\r\n" not in said:
                said += sock.recv(65536)
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" + refusal)
            sock.recv(1)

    threading.Thread(target=serve, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/bucket"
    doing = Doing("upload", "bucket", "k")
    with pytest.raises(StorageSetupError, match="access is denied"):
        run(Request(doing, "PUT", url, 5.0, body=BytesBody(b"x" * 1000), fence=OpenFence(), ask_first=True))


@pytest.fixture
def no_memory_of_proxies() -> Iterator[None]:
    connections.route.cache_clear()
    yield
    connections.route.cache_clear()


@pytest.mark.parametrize(
    "proxy", ["http://user:s3cr/et@proxy:3128", "http://user:s3cret@[::1:1", "http://s3cret:99999"]
)
@pytest.mark.usefixtures("no_memory_of_proxies")
def test_a_proxy_that_cannot_be_read_is_refused_without_a_word_of_it(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(ProxyRefused, match="HTTP_PROXY") as caught:
        connections.route("http://storage.example/b")
    assert "s3cr" not in str(caught.value)
