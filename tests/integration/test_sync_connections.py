"""The sockets under object bodies: proxies, connections that are used again, refusals, and calls that are cancelled."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kelpie_celery.clock import SystemClock
from kelpie_celery.errors import StorageSetupError, StorageUnavailable
from kelpie_worker.sync import connections
from kelpie_worker.sync.bodies import BytesBody
from kelpie_worker.sync.config import StorageConfig
from kelpie_worker.sync.request import Request
from kelpie_worker.sync.s3_errors import Doing
from kelpie_worker.sync.signing import StorageClock
from kelpie_worker.sync.store import open_store
from kelpie_worker.sync.wire import Wire
from tests.contract.fakes_s3 import HandFence
from tests.integration.fake_storage import FakeStorage, Received, Reply, deaf_server, error, fake_storage

CERTIFICATE = Path(__file__).with_name("tls_loopback.pem")
MIB = 1024 * 1024
AT_ONCE_S = 5.0  # where what is waited for would come after half a minute


@pytest.fixture(autouse=True)
def no_memory_of_proxies() -> Iterator[None]:
    connections.route.cache_clear()
    yield
    connections.route.cache_clear()


@pytest.fixture
def storage() -> Iterator[FakeStorage]:
    with fake_storage() as running:
        yield running


def config_of(url: str, **changes: float) -> StorageConfig:
    return StorageConfig(url, access_key="AK", secret_key="SK", **changes)  # type: ignore[arg-type]  # numbers all


@asynccontextmanager
async def wire_to(url: str, **changes: float) -> AsyncIterator[Wire]:
    async with Wire(config_of(url, **changes), StorageClock(SystemClock())) as wire:
        yield wire


def request(url: str, method: str = "PUT", data: bytes | None = b"x", timeout_s: float = 10.0) -> Request:
    body = None if data is None else BytesBody(data)
    fence = HandFence() if method != "GET" else None
    return Request(Doing("upload", "bucket", "k"), method, f"{url}/bucket", timeout_s, body=body, fence=fence)


async def fetch(wire: Wire, url: str) -> bytes:
    data = bytearray()
    doing = Doing("download", "bucket", "k")
    await wire.send(Request(doing, "GET", f"{url}/bucket", 10.0, sink=data.extend, length_bytes=1))
    return bytes(data)


# -- proxies -----------------------------------------------------------------------------------------------------------


async def test_a_storage_with_tls_is_reached_through_a_tunnel_that_the_proxy_opens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(CERTIFICATE))
    with fake_storage(CERTIFICATE) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:p%40ss@127.0.0.1:{proxy.port}")
        # Nobody listens there, so whatever arrives came through the tunnel.
        async with open_store(config_of("https://127.0.0.1:9")) as store:
            await store.put("bucket", "k", BytesBody(b"secret"), HandFence())
            back = bytearray()
            await store.fetch("bucket", "k", back.extend, etag="", start_byte=0, length_bytes=6)
        assert back == b"secret"
        assert set(proxy.tunnels) == {("127.0.0.1:9", "Basic dXNlcjpwQHNz")}
        assert {seen.target.split("?")[0] for seen in proxy.seen} == {"/bucket/k"}


async def test_a_storage_without_tls_is_asked_for_by_its_whole_address(
    storage: FakeStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", storage.url)
    async with wire_to("http://storage.invalid:81") as wire:
        await wire.send(request("http://storage.invalid:81"))
    assert storage.seen[0].target.startswith("http://storage.invalid:81/bucket/k?")
    assert storage.seen[0].headers["Host"] == "storage.invalid:81"


async def test_no_proxy_leads_past_the_proxy(storage: FakeStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    async with wire_to(storage.url) as wire:
        await wire.send(request(storage.url))
    assert storage.seen[0].target.startswith("/bucket/k?")


@pytest.mark.parametrize("status", [403, 407])
async def test_a_proxy_that_lets_nobody_through_is_a_mistake_in_the_set_up(
    storage: FakeStorage, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    storage.tunnel_status = status
    monkeypatch.setenv("HTTPS_PROXY", storage.url)
    async with wire_to("https://127.0.0.1:9") as wire:
        with pytest.raises(StorageSetupError, match="HTTPS_PROXY"):
            await wire.send(request("https://127.0.0.1:9"))


async def test_a_proxy_that_is_in_trouble_may_recover(storage: FakeStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.tunnel_status = 502
    monkeypatch.setenv("HTTPS_PROXY", storage.url)
    async with wire_to("https://127.0.0.1:9") as wire:
        with pytest.raises(StorageUnavailable, match="502"):
            await wire.send(request("https://127.0.0.1:9"))


async def test_a_proxy_that_cannot_be_used_is_a_mistake_in_the_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:9")
    async with wire_to("https://127.0.0.1:9") as wire:
        with pytest.raises(StorageSetupError, match="HTTPS_PROXY"):
            await wire.send(request("https://127.0.0.1:9"))


# -- connections that are used again -----------------------------------------------------------------------------------


async def test_a_connection_serves_many_requests(storage: FakeStorage) -> None:
    async with wire_to(storage.url) as wire:
        for _ in range(5):
            await wire.send(request(storage.url))
            assert await fetch(wire, storage.url) == b"x"
    assert storage.connections == 1


async def test_a_connection_that_the_storage_closed_meanwhile_is_not_used_again(storage: FakeStorage) -> None:
    storage.answer = lambda _: Reply(200, {"Connection": "close"})
    async with wire_to(storage.url) as wire:
        for _ in range(3):
            await wire.send(request(storage.url))
    assert storage.connections == 3


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_a_connection_that_breaks_when_it_is_used_again_costs_nothing(storage: FakeStorage, method: str) -> None:
    """The storage closes an unused connection at the moment in which the next request is sent."""
    breaking = iter([False, True, False])

    def answer(_: Received) -> Reply | None:
        if next(breaking):
            raise ConnectionAbortedError
        return Reply(200)

    storage.answer = answer
    async with wire_to(storage.url) as wire:
        for _ in range(2):
            await wire.send(request(storage.url, method, None))
    assert len(storage.seen) == 3


async def test_what_was_begun_anew_expires_with_what_trust_is_left(storage: FakeStorage) -> None:
    """A fence that is muted between both tries lets nothing through."""
    fence = HandFence()

    def answer(_: Received) -> Reply | None:
        if len(storage.seen) == 2:
            fence.mute()
            raise ConnectionAbortedError
        return Reply(200)

    storage.answer = answer
    doing = Doing("deleting", "bucket", "k")
    async with wire_to(storage.url) as wire:
        one = Request(doing, "DELETE", f"{storage.url}/bucket", 10.0, fence=fence)
        await wire.send(one)
        with pytest.raises(StorageUnavailable, match="lease"):
            await wire.send(one)
    assert len(storage.seen) == 2


# -- refusals ----------------------------------------------------------------------------------------------------------


async def test_a_storage_that_refuses_before_it_has_the_body_is_understood(storage: FakeStorage) -> None:
    """It answers at once, closes the connection, and never reads the body."""
    listener = _Curt()
    async with open_store(config_of(listener.url)) as store:
        with pytest.raises(StorageSetupError, match="permissions"):
            await store.put("bucket", "k", BytesBody(b"x" * 16 * MIB), HandFence())
    listener.close()


class _Curt:
    """A server that answers 403 to the head of a request, and hangs up."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        document = error(403, "AccessDenied").body
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock:
                sock.recv(4096)
                sock.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n" % len(document) + document)

    def close(self) -> None:
        # Ends the thread, which else may go on with the next socket of the same number.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.mark.parametrize("consents", [True, False])
async def test_a_storage_is_asked_before_a_body_is_sent_again(
    storage: FakeStorage, consents: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kelpie_worker.sync.exchange._CONSENT_S", 0.2)
    storage.silent = not consents
    tries: list[str | None] = []

    def answer(received: Received) -> Reply | None:
        tries.append(received.headers.get("Expect"))
        if len(tries) == 1:
            raise ConnectionAbortedError
        return None

    storage.answer = answer
    async with open_store(config_of(storage.url)) as store:
        await store.put("bucket", "k", BytesBody(b"x" * MIB), HandFence())
    assert tries[:2] == [None, "100-continue"]
    assert storage.objects["/bucket/k"] == b"x" * MIB


async def test_what_a_body_stumbles_over_is_raised_as_it_is(storage: FakeStorage) -> None:
    class Broken(BytesBody):
        def chunks(self) -> Iterator[bytes | memoryview]:
            yield b"x"
            raise OSError(5, "Input/output error")

    async with open_store(config_of(storage.url)) as store:
        with pytest.raises(OSError, match="Input/output error"):
            await store.put("bucket", "k", Broken(b"xx"), HandFence())


# -- calls that are cancelled ------------------------------------------------------------------------------------------


async def cancelled_in_s(task: asyncio.Future[Any]) -> float:
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 30)
    return time.monotonic() - began


def transfer_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("kelpie-transfer")]


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_a_call_that_waits_for_an_answer_ends_at_once_when_it_is_cancelled(
    storage: FakeStorage, method: str, tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def answer(_: Received) -> Reply | None:
        arrived.set()
        go_on.wait(30)
        return None

    url = "https://127.0.0.1:9" if tls else storage.url
    with fake_storage(CERTIFICATE) as tunnel:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(CERTIFICATE))
        monkeypatch.setenv("HTTPS_PROXY", tunnel.url)
        storage.answer = tunnel.answer = answer
        async with open_store(config_of(url)) as store:
            await store._base("bucket")  # type: ignore[attr-defined]  # botocore takes its time
            task: asyncio.Future[Any] = asyncio.ensure_future(
                store.put("bucket", "k", BytesBody(b"x"), HandFence())
                if method == "PUT"
                else store.fetch("bucket", "k", lambda _: None, etag="", start_byte=0, length_bytes=1)
            )
            assert await asyncio.to_thread(arrived.wait, 10)
            assert await cancelled_in_s(task) < AT_ONCE_S
            go_on.set()
    for thread in transfer_threads():
        await asyncio.to_thread(thread.join, 5)
    assert transfer_threads() == []


async def test_a_call_that_waits_for_a_connection_ends_at_once_when_it_is_cancelled() -> None:
    with deaf_server() as url:
        async with wire_to(url, connect_timeout_s=30.0) as wire:
            task = asyncio.ensure_future(wire.send(request(url)))
            await asyncio.sleep(0.2)
            assert transfer_threads()
            assert await cancelled_in_s(task) < AT_ONCE_S
        for thread in transfer_threads():
            await asyncio.to_thread(thread.join, 5)
    assert transfer_threads() == []


async def test_a_server_that_accepts_nobody_is_given_up_after_the_time_to_connect() -> None:
    with deaf_server() as url:
        async with wire_to(url, connect_timeout_s=0.2) as wire:
            with pytest.raises(StorageUnavailable, match="in time"):
                await wire.send(request(url))
