"""P1 on a real S3 server: what a muted, frozen or revived worker still sends is refused or never ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest
from yarl import URL

from kelpie_celery.clock import SystemClock
from kelpie_celery.errors import LeaseLost, StorageSetupError
from kelpie_worker.sync.bodies import BytesBody
from kelpie_worker.sync.config import StorageConfig
from kelpie_worker.sync.object_store import ObjectStore
from kelpie_worker.sync.request import Request
from kelpie_worker.sync.s3_errors import Doing, LateRequest
from kelpie_worker.sync.signing import Presigner, StorageClock
from kelpie_worker.sync.store import open_store
from kelpie_worker.sync.wire import Wire
from tests.contract.fakes_s3 import HandFence
from tests.integration.sync_proxy import proxy_before

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from kelpie_celery.local.servers import SeaweedServer

MIB = 1024 * 1024
CERTIFICATE = Path(__file__).with_name("tls_loopback.pem")


class SetClock(SystemClock):
    """A machine whose clock is wrong by ``ahead_s`` seconds."""

    def __init__(self, ahead_s: float) -> None:
        self.ahead_s = ahead_s

    def now(self) -> float:
        return super().now() + self.ahead_s


@pytest.fixture
def config(s3_server: SeaweedServer, s3: S3Client) -> StorageConfig:
    env = s3_server.env()
    return StorageConfig(
        endpoint_url=s3_server.endpoint_url,
        access_key=env["AWS_ACCESS_KEY_ID"],
        secret_key=env["AWS_SECRET_ACCESS_KEY"],
    )


@pytest.fixture(params=["plain", "tls"])
async def store(
    request: pytest.FixtureRequest, config: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ObjectStore]:
    """The server, by itself and behind TLS, whose buffers are other ones."""
    if request.param == "plain":
        async with open_store(config) as opened:
            yield opened
        return
    monkeypatch.setenv("AWS_CA_BUNDLE", str(CERTIFICATE))
    assert config.endpoint_url
    async with (
        proxy_before(config.endpoint_url, CERTIFICATE) as proxy,
        open_store(replace(config, endpoint_url=proxy.url)) as opened,
    ):
        yield opened


def keys(s3: S3Client, bucket: str) -> list[str]:
    return [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]


@pytest.mark.parametrize("operation", ["PUT", "POST", "DELETE"])
async def test_a_request_that_was_signed_before_a_freeze_is_refused_after_it(
    config: StorageConfig, s3: S3Client, s3_bucket: str, operation: str
) -> None:
    """The request is made while trusted and sent later, as by a process that was stopped in between."""
    presigner = Presigner(config, StorageClock(SystemClock()))
    base_url = f"{config.endpoint_url}/{s3_bucket}"
    s3.put_object(Bucket=s3_bucket, Key="old", Body=b"old")
    query, body, key = dict[str, str](), b"", "old"
    if operation == "PUT":
        key, body = "new", b"new"
    if operation == "POST":
        key = "parts"
        upload = s3.create_multipart_upload(Bucket=s3_bucket, Key=key)
        part = s3.upload_part(Bucket=s3_bucket, Key=key, UploadId=upload["UploadId"], PartNumber=1, Body=b"x")
        query = {"uploadId": upload["UploadId"]}
        body = (
            f"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{part['ETag']}</ETag></Part>"
            "</CompleteMultipartUpload>"
        ).encode()
    url = presigner.url(operation, base_url, key, valid_s=1.0, query=query)
    await asyncio.sleep(2.5)
    async with (
        aiohttp.ClientSession() as session,
        session.request(operation, URL(url, encoded=True), data=body or None) as answer,
    ):
        assert answer.status == 403
        assert b"expired" in await answer.read()
    assert keys(s3, s3_bucket) == ["old"]


async def test_a_late_request_is_no_mistake_in_the_set_up(config: StorageConfig, s3_bucket: str) -> None:
    """The first request of a machine whose clock is an hour slow is late; from its answer the time is known."""
    clock = StorageClock(SetClock(-3600.0))
    async with Wire(config, clock) as wire:
        base_url = f"{config.endpoint_url}/{s3_bucket}"
        doing = Doing("upload", s3_bucket, "k")
        request = Request(doing, "PUT", base_url, 10.0, body=BytesBody(b"x"), fence=HandFence())
        with pytest.raises(LateRequest):
            await wire.send(request)
        await wire.send(request)


@pytest.mark.parametrize("ahead_s", [-3600.0, 3600.0])
async def test_a_machine_whose_clock_is_wrong_can_store_and_its_requests_expire_in_time(
    config: StorageConfig, s3: S3Client, s3_bucket: str, ahead_s: float
) -> None:
    machine = SetClock(ahead_s)
    async with open_store(config, machine) as store:
        # botocore's own requests are signed by the system's clock, which is right here.
        await store.head(s3_bucket, "anything")
        await store.put(s3_bucket, "k", BytesBody(b"x"), HandFence())
    clock = StorageClock(machine)
    clock.learn(datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT"))
    assert abs(clock.now() - SystemClock().now()) < 1.5
    assert keys(s3, s3_bucket) == ["k"]


class _Slow(BytesBody):
    """Waits before its last piece until it is let go."""

    def __init__(self, size: int) -> None:
        super().__init__(b"x" * size)
        self.waiting, self.go_on = threading.Event(), threading.Event()

    def chunks(self) -> Iterator[bytes | memoryview]:
        *pieces, last = super().chunks()
        yield from pieces
        self.waiting.set()
        self.go_on.wait(20)
        yield last


async def test_a_body_that_a_worker_began_before_a_freeze_never_ends_after_it(
    store: ObjectStore, s3: S3Client, s3_bucket: str
) -> None:
    """The storage has accepted the request, which was in time, and would take the rest hours later."""
    fence, body = HandFence(), _Slow(3 * MIB)
    task = asyncio.ensure_future(store.put(s3_bucket, "k", body, fence))
    assert await asyncio.to_thread(body.waiting.wait, 10)
    fence.lose()
    body.go_on.set()
    with pytest.raises(LeaseLost):
        await asyncio.wait_for(task, 20)
    await asyncio.sleep(0.5)
    assert keys(s3, s3_bucket) == []


async def test_bodies_of_any_size_go_up_and_come_down(store: ObjectStore, s3_bucket: str) -> None:
    for size in (0, 1, 100_000, 8 * MIB):
        data = os.urandom(size)
        put = await store.put(s3_bucket, f"k{size}", BytesBody(data), HandFence())
        back = bytearray()
        await store.fetch(s3_bucket, put.key, back.extend, etag=put.etag, start_byte=0, length_bytes=size)
        assert back == data


async def test_a_server_whose_certificate_nobody_vouches_for_is_not_talked_to(
    config: StorageConfig, s3_bucket: str
) -> None:
    assert config.endpoint_url
    async with (
        proxy_before(config.endpoint_url, CERTIFICATE) as proxy,
        open_store(replace(config, endpoint_url=proxy.url)) as store,
    ):
        with pytest.raises(StorageSetupError, match="certificate"):
            await store.head(s3_bucket, "k")
        with pytest.raises(StorageSetupError, match="certificate"):
            await store.put(s3_bucket, "k", BytesBody(b"x"), HandFence())
        assert proxy.seen == []


async def test_the_kernel_gives_up_what_is_not_acknowledged_within_the_trust_window(
    config: StorageConfig, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int] = []
    port = URL(config.endpoint_url or "").port
    setsockopt = socket.socket.setsockopt

    def note(self: socket.socket, level: int, name: int, value: int) -> None:
        setsockopt(self, level, name, value)
        # Connections to Redis, which other threads may have, get a limit before they are connected.
        with contextlib.suppress(OSError):
            if (level, name, self.getpeername()[1]) == (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, port):
                limits.append(value)

    monkeypatch.setattr(socket.socket, "setsockopt", note)
    async with open_store(config) as store:
        await store.put(s3_bucket, "k", BytesBody(b"x"), HandFence(window_s=7.0))
        upload_id = await store.begin(s3_bucket, "k")
        await store.put_part(s3_bucket, "k", upload_id, 1, BytesBody(b"x"))
        await store.abort(s3_bucket, "k", upload_id)
    assert limits == [7000, 0]


FROZEN = """
import asyncio, os, sys, time
from kelpie_worker.sync.bodies import BytesBody
from kelpie_worker.sync.config import StorageConfig
from kelpie_worker.sync.store import open_store

class Fence:
    '''Three seconds of trust from the start, by a clock that goes on while the process is stopped.'''
    def __init__(self): self.end = time.clock_gettime(time.CLOCK_BOOTTIME) + 3.0
    def remaining_s(self): return self.end - time.clock_gettime(time.CLOCK_BOOTTIME)
    async def trusted(self, at_least_s=2.0):
        if self.remaining_s() <= 0:
            from kelpie_celery.errors import LeaseLost, StorageSetupError
            raise LeaseLost("lost")
        return self.remaining_s()

async def main():
    env = os.environ
    config = StorageConfig(endpoint_url=env["AWS_ENDPOINT_URL"], access_key=env["AWS_ACCESS_KEY_ID"],
                           secret_key=env["AWS_SECRET_ACCESS_KEY"])
    async with open_store(config) as store:
        await store.head(sys.argv[1], "warm-up")
        fence, number = Fence(), 0
        print("writing", flush=True)
        try:
            while True:
                await store.put(sys.argv[1], "shared", BytesBody(b"stale" * 200000), fence)
                number += 1
        except Exception as error:
            print("ended:", type(error).__name__, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("after_s", [0.3, 0.45, 0.6])
def test_a_process_that_was_frozen_while_it_wrote_changes_nothing_when_it_is_revived(
    s3: S3Client, s3_bucket: str, s3_env: dict[str, str], after_s: float
) -> None:
    """SIGSTOP at a random moment of endless uploads, past the trust window, another writes, SIGCONT."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(FROZEN), s3_bucket],
        stdout=subprocess.PIPE,
        env={**os.environ, **s3_env},
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "writing\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(after_s)
            process.send_signal(signal.SIGSTOP)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(4.0)
            s3.put_object(Bucket=s3_bucket, Key="shared", Body=b"the newer attempt's")
            process.send_signal(signal.SIGCONT)
            # On a busy machine its connections may have been given up before it looks at its lease.
            assert process.stdout.readline() in {"ended: LeaseLost\n", "ended: StorageUnavailable\n"}
        finally:
            process.kill()
    assert s3.get_object(Bucket=s3_bucket, Key="shared")["Body"].read() == b"the newer attempt's"
