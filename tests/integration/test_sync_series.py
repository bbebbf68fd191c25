"""Series of small objects over one connection, against storages that answer as no real one can be brought to."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from kelpie_celery.clock import SystemClock
from kelpie_celery.errors import StorageError, StorageSetupError, StorageUnavailable
from kelpie_worker.sync import series
from kelpie_worker.sync.batches import TINY_AT_ONCE, NotPlain
from kelpie_worker.sync.config import StorageConfig
from kelpie_worker.sync.connections import Connection, Connections, Grip, Route, Stopped, route
from kelpie_worker.sync.direct import range_request
from kelpie_worker.sync.download import Downloader, Wanted
from kelpie_worker.sync.object_store import StoredObject
from kelpie_worker.sync.request import Request
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.s3_errors import Doing
from kelpie_worker.sync.signing import Presigner, StorageClock
from kelpie_worker.sync.store import open_store

CERTIFICATE = Path(__file__).with_name("tls_loopback.pem")
COUNT = 6
SIZE = 5000
Say = Callable[[socket.socket, int], bool]
"""Answers the request for an object, of which it is given the number, and says whether the connection is kept."""


def body_of(number: int) -> bytes:
    return bytes([number]) * SIZE


def etag_of(number: int) -> str:
    return hashlib.md5(body_of(number)).hexdigest()


def answer(number: int, *more: str, status: str = "206 Partial Content") -> bytes:
    headers = [f"Content-Length: {SIZE}", f'ETag: "{etag_of(number)}"', *more]
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode() + body_of(number)


def plainly(sock: socket.socket, number: int) -> bool:
    sock.sendall(answer(number))
    return True


class Storage:
    """Takes requests for ``/bucket/NUMBER``.

    Attributes:
        say: Answers them.
        asked: The numbers of the objects that were asked for, one list for each connection.
        heard: Released once for each request.
    """

    def __init__(self, tls: bool = False) -> None:
        self.say: Say = plainly
        self.asked: list[list[int]] = []
        self.heard = threading.Semaphore(0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if tls else None
        if self._tls:
            self._tls.load_cert_chain(CERTIFICATE)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.asked.append([])
                threading.Thread(target=self._talk, args=(sock, self.asked[-1]), daemon=True).start()

    def _talk(self, sock: socket.socket, asked: list[int]) -> None:
        with contextlib.suppress(OSError, ConnectionError):
            if self._tls:
                sock = self._tls.wrap_socket(sock, server_side=True)
            with sock, sock.makefile("rb") as lines:
                while head := b"".join(itertools.takewhile(lambda line: line != b"\r\n", lines)):
                    number = int(head.split(b"?")[0].rpartition(b"/")[2])
                    asked.append(number)
                    self.heard.release()
                    if not self.say(sock, number):
                        break

    def close(self) -> None:
        # Ends the thread, which else may go on with the next socket of the same number.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def storage() -> Iterator[Storage]:
    storage = Storage()
    yield storage
    storage.close()


class Client:
    """What a transfer thread has."""

    def __init__(self, url: str, limit_s: float = 10.0) -> None:
        context = ssl.create_default_context(cafile=str(CERTIFICATE))
        self.url, self._limit_s, self.grip, self.arrived = url, limit_s, Grip(), list[int]()
        self.grip.busy(True)
        self._clock = StorageClock(SystemClock())
        self.connections = Connections(5.0, context, SystemClock())
        self._presigner = Presigner(StorageConfig(url, access_key="AK", secret_key="SECRET"), self._clock)

    def _request(self, number: int) -> Request:
        doing, etag = Doing("download", "bucket", str(number)), etag_of(number)
        return range_request(doing, f"{self.url}/bucket", self._limit_s, etag=etag, start_byte=0, length_bytes=SIZE)

    def bodies(self, numbers: range = range(COUNT)) -> Generator[bytes, None, None]:
        wanted = [(self._request(number), etag_of(number)) for number in numbers]
        one = series.Series(wanted, self.connections, self._presigner, self._clock, self.grip, self.arrived.append)
        with contextlib.closing(one.bodies()) as bodies:
            for body in bodies:
                yield bytes(body)


@pytest.mark.parametrize("tls", [False, True])
def test_all_come_in_order_over_a_few_connections_which_serve_again(tls: bool) -> None:
    storage = Storage(tls)
    client = Client(storage.url)
    assert list(client.bodies()) == [body_of(number) for number in range(COUNT)]
    assert sorted(storage.asked) == [[0, 4], [1, 5], [2], [3]]
    assert list(client.bodies(range(3))) == [body_of(number) for number in range(3)]
    assert len(storage.asked) == TINY_AT_ONCE
    storage.close()


def test_large_ones_come_one_after_the_other(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "TINY_BYTES", SIZE - 1)
    assert list(Client(storage.url).bodies()) == [body_of(number) for number in range(COUNT)]
    assert storage.asked == [list(range(COUNT))]


def test_the_next_ones_are_asked_for_before_the_first_is_put_to_use(storage: Storage) -> None:
    bodies = Client(storage.url).bodies()
    assert next(bodies) == body_of(0)
    for _ in range(1 + TINY_AT_ONCE):
        assert storage.heard.acquire(timeout=10)
    assert sorted(storage.asked) == [[0, 4], [1], [2], [3]]


def test_a_series_that_is_left_early_keeps_no_connection_on_which_something_is_to_come(storage: Storage) -> None:
    client = Client(storage.url)
    bodies = client.bodies()
    assert [next(bodies) for _ in range(4)] == [body_of(number) for number in range(4)]  # all were asked for then
    bodies.close()
    assert list(client.bodies()) == [body_of(number) for number in range(COUNT)]
    assert len(storage.asked) == TINY_AT_ONCE + 2


def test_a_storage_that_closes_each_connection_is_called_again(storage: Storage) -> None:
    def say(sock: socket.socket, number: int) -> bool:
        sock.sendall(answer(number, "Connection: close"))
        return False

    storage.say = say
    assert list(Client(storage.url).bodies()) == [body_of(number) for number in range(COUNT)]
    assert sorted(storage.asked) == [[number] for number in range(COUNT)]


def test_a_body_may_take_its_time(storage: Storage) -> None:
    def say(sock: socket.socket, number: int) -> bool:
        whole = answer(number)
        for at in (0, 20, 300, 2000):
            sock.sendall(whole[at : {0: 20, 20: 300, 300: 2000, 2000: len(whole)}[at]])
            time.sleep(0.02)
        return True

    storage.say = say
    assert list(Client(storage.url).bodies(range(3))) == [body_of(number) for number in range(3)]


def test_bytes_are_told_as_they_arrive(storage: Storage) -> None:
    go_on = threading.Event()

    def say(sock: socket.socket, number: int) -> bool:
        whole = answer(number)
        sock.sendall(whole[:2000])
        go_on.wait(30)
        sock.sendall(whole[2000:])
        return True

    storage.say = say
    client, got = Client(storage.url), list[bytes]()
    thread = threading.Thread(target=lambda: got.extend(client.bodies(range(1))))
    thread.start()
    until_s = time.monotonic() + 10
    while not sum(client.arrived) and time.monotonic() < until_s:
        time.sleep(0.01)
    assert 0 < sum(client.arrived) < SIZE
    go_on.set()
    thread.join(10)
    assert (got, sum(client.arrived)) == ([body_of(0)], SIZE)


def test_a_request_that_cannot_be_sent_ahead_does_not_cost_the_body_that_is_there(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def say(sock: socket.socket, number: int) -> bool:
        sock.sendall(answer(number, "Connection: close"))
        return False

    storage.say = say
    client = Client(storage.url)
    bodies = client.bodies()
    assert next(bodies) == body_of(0)

    def refused(*_: object) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr(client.connections, "take", refused)
    assert next(bodies) == body_of(1)
    with pytest.raises(StorageUnavailable, match="'2'"):
        next(bodies)


def test_a_connection_forgets_how_soon_a_fenced_request_was_to_be_given_up(storage: Storage) -> None:
    client = Client(storage.url)
    assert list(client.bodies(range(1))) == [body_of(0)]
    kept = client.connections.take(route(storage.url), client.grip)
    kept.limit_silence(1500)
    client.connections.give_back(kept)
    bodies = client.bodies(range(2))
    next(bodies)
    assert kept.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0


def only_at(number: int, said: bytes, kept: bool = True) -> Say:
    def say(sock: socket.socket, asked: int) -> bool:
        if asked != number:
            return plainly(sock, asked)
        sock.sendall(said)
        return kept

    return say


REFUSED = b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("said", "kept", "kind"),
    [
        (REFUSED % b"500 Internal Server Error", True, StorageUnavailable),
        (REFUSED % b"412 Precondition Failed", True, StorageUnavailable),
        (REFUSED % b"404 Not Found", True, StorageSetupError),
        (REFUSED % b"403 Forbidden", True, StorageSetupError),
        (answer(3)[:-7], False, StorageUnavailable),
        (answer(3)[:40], False, StorageUnavailable),
        (b"", False, StorageUnavailable),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", True, StorageUnavailable),
        (answer(3).replace(b"Content-Length: 5000", b"Content-Length: 4999"), True, StorageUnavailable),
        (answer(4), True, NotPlain),
        (answer(3).replace(b"Content-Length: 5000\r\n", b""), False, NotPlain),
        (answer(3).replace(b"Content-Length: 5000", b"Transfer-Encoding: chunked"), True, NotPlain),
        (answer(3).replace(b"ETag", b"X"), True, NotPlain),
    ],
    ids=[
        "500", "412", "404", "403", "cut", "cut in the head", "dropped", "another protocol", "short", "another object",
        "no length", "chunked", "no ETag",
    ],
)  # fmt: skip
def test_anything_but_the_answer_expected_ends_the_series_behind_what_came_before(
    storage: Storage, said: bytes, kept: bool, kind: type[StorageError]
) -> None:
    storage.say = only_at(3, said, kept)
    client = Client(storage.url)
    bodies = client.bodies()
    assert [next(bodies) for _ in range(3)] == [body_of(number) for number in range(3)]
    with pytest.raises(kind) as told:
        next(bodies)
    assert "Signature" not in str(told.value)
    assert told.value.__cause__ is None
    # What it has left is not taken for an answer to anybody else.
    assert list(client.bodies(range(1))) == [body_of(0)]


def test_what_a_storage_says_behind_an_answer_is_not_taken_for_the_next_one(storage: Storage) -> None:
    storage.say = only_at(2, answer(2) + answer(0))
    client = Client(storage.url)
    assert list(client.bodies()) == [body_of(number) for number in range(COUNT)]
    assert sorted(storage.asked) == [[0, 4], [1, 5], [2], [3]]
    storage.say = plainly
    assert list(client.bodies(range(4))) == [body_of(number) for number in range(4)]
    assert len(storage.asked) == TINY_AT_ONCE + 1  # that one has been closed


def test_an_answer_that_comes_late_and_is_another_ones_is_found_out(storage: Storage) -> None:
    storage.say = only_at(5, answer(1) + answer(5))  # out of step since the first over this connection
    bodies = Client(storage.url).bodies()
    assert [next(bodies) for _ in range(5)] == [body_of(number) for number in range(5)]
    with pytest.raises(NotPlain):
        next(bodies)


@pytest.mark.parametrize("tls", [False, True])
def test_a_storage_that_says_nothing_is_given_up_in_time(tls: bool) -> None:
    storage = Storage(tls)
    over = threading.Event()

    def say(sock: socket.socket, number: int) -> bool:
        if number == 1:
            over.wait(30)
        return plainly(sock, number)

    storage.say = say
    bodies = Client(storage.url, limit_s=2.0).bodies()
    assert next(bodies) == body_of(0)
    began_s = time.monotonic()
    with pytest.raises(StorageUnavailable, match="no answer in time"):
        next(bodies)
    assert 1 < time.monotonic() - began_s < 10
    over.set()
    storage.close()


def test_a_call_that_is_cancelled_hears_of_nothing_more_even_if_it_has_arrived(storage: Storage) -> None:
    client = Client(storage.url)
    bodies = client.bodies()
    next(bodies)
    storage.heard.acquire(timeout=10)
    storage.heard.acquire(timeout=10)
    assert client.grip.stop()  # the body is in use
    with pytest.raises(Stopped):
        next(bodies)


def test_a_connection_that_comes_about_as_the_call_is_cancelled_is_closed(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, made = Client(storage.url), list[Connection]()
    take = client.connections.take

    def slow(way: Route, grip: Grip) -> Connection:
        made.append(take(way, grip))
        grip.stop()
        return made[-1]

    monkeypatch.setattr(client.connections, "take", slow)
    with pytest.raises(Stopped):
        next(client.bodies())
    assert [connection.sock.fileno() for connection in made] == [-1]


# -- as a restore uses it ----------------------------------------------------------------------------------------------


async def restore(url: str, directory: Path, count: int) -> None:
    async def done(_: Wanted, __: StoredObject) -> None:
        pass

    config = StorageConfig(url, access_key="AK", secret_key="SECRET", read_timeout_s=10.0)
    wanted = [Wanted("bucket", StoredObject(str(n), SIZE, etag_of(n)), directory / str(n)) for n in range(count)]
    async with open_store(config) as store:
        downloader = Downloader(store, Patience(30.0, "test"), lambda _: None)
        await downloader.download_all(wanted, check=lambda _: None, done=done)


def on_disk(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def times_asked(storage: Storage) -> dict[int, int]:
    asked = [number for numbers in storage.asked for number in numbers]
    return {number: asked.count(number) for number in sorted(set(asked))}


@pytest.mark.parametrize(
    ("said", "instead", "kept"),
    [(b"Content-Length", b"X-Other", False), (b"ETag", b"X-Other", True), (b'ETag: "', b'ETag: "other-', True)],
    ids=["no length", "no ETag", "another ETag"],
)
async def test_a_storage_whose_answers_do_not_fit_is_found_out_soon(
    storage: Storage, tmp_path: Path, said: bytes, instead: bytes, kept: bool
) -> None:
    def say(sock: socket.socket, number: int) -> bool:
        sock.sendall(answer(number).replace(said, instead))
        return kept

    storage.say = say
    await restore(storage.url, tmp_path, 200)
    assert on_disk(tmp_path) == {str(number): body_of(number) for number in range(200)}
    assert sum(times - 1 for times in times_asked(storage).values()) <= 16 * TINY_AT_ONCE  # once a thread


async def test_a_weak_etag_is_one(storage: Storage, tmp_path: Path) -> None:
    def say(sock: socket.socket, number: int) -> bool:
        sock.sendall(answer(number).replace(b'ETag: "', b'ETag: W/"'))
        return True

    storage.say = say
    await restore(storage.url, tmp_path, 200)
    assert set(times_asked(storage).values()) == {1}


async def test_a_proxy_that_cannot_be_used_is_named_with_the_object(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "https://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    route.cache_clear()
    with pytest.raises(StorageSetupError, match=r"bucket 'bucket', object .*HTTP_PROXY"):
        await restore(storage.url, tmp_path, 50)
    route.cache_clear()


async def test_a_cancel_does_not_wait_for_a_look_up_of_a_name(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking, over, look_up = threading.Event(), threading.Event(), socket.getaddrinfo

    def slow(*args: Any, **more: Any) -> Any:
        if threading.current_thread().name.startswith("kelpie-transfer"):
            looking.set()
            over.wait(30)
        return look_up(*args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    task = asyncio.ensure_future(restore(storage.url, tmp_path, 50))
    assert await asyncio.to_thread(looking.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)
    over.set()
    assert on_disk(tmp_path) == {}


async def test_a_damaged_object_costs_itself_and_those_that_were_asked_for_behind_it(
    storage: Storage, tmp_path: Path
) -> None:
    met = threading.Event()

    def say(sock: socket.socket, number: int) -> bool:
        damaged = number == 2 and not met.is_set()
        if damaged:
            met.set()
        sock.sendall(answer(number).replace(b"\2\2", b"\2\3", 1) if damaged else answer(number))
        return True

    storage.say = say
    await restore(storage.url, tmp_path, 200)
    assert met.is_set()
    assert on_disk(tmp_path) == {str(number): body_of(number) for number in range(200)}
    asked = times_asked(storage)
    assert asked.pop(2) == 2
    assert all(times == 1 for number, times in asked.items() if number not in range(3, 3 + TINY_AT_ONCE))
    assert all(times <= 2 for times in asked.values())


async def test_nothing_is_hidden_that_only_a_user_can_mend(storage: Storage, tmp_path: Path) -> None:
    storage.say = only_at(2, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(StorageSetupError, match=r"object '2'.* does not exist"):
        await restore(storage.url, tmp_path, 50)
