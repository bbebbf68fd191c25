"""Batches of small files over real sockets: faults in their middle, cancels, and storages that confirm nothing."""

# ruff: noqa: ASYNC240 -- small files, made and looked at by the test itself

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import pytest

from kelpie_celery.errors import StorageUnavailable
from kelpie_worker.sync.batches import TINY_AT_ONCE, Batching, Direct
from kelpie_worker.sync.bodies import BytesBody
from kelpie_worker.sync.config import StorageConfig
from kelpie_worker.sync.download import Downloader, Wanted
from kelpie_worker.sync.object_store import ObjectStore, StoredObject
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.store import open_store
from tests.contract.fakes_s3 import HandFence
from tests.integration.fake_storage import FakeStorage, Received, Reply, error, fake_storage

COUNT = 100
"""So many that they go in batches of two or three, of which number 20 is the first of one."""


@pytest.fixture
def storage() -> Iterator[FakeStorage]:
    with fake_storage() as running:
        for number in range(COUNT):
            running.objects[f"/bucket/{number:03}"] = bytes([number]) * 5000
        yield running


def config_of(storage: FakeStorage) -> StorageConfig:
    return StorageConfig(storage.url, access_key="AK", secret_key="SK", read_timeout_s=20.0)


def wanted(storage: FakeStorage, target: Path) -> list[Wanted]:
    found = []
    for number in range(COUNT):
        etag = hashlib.md5(storage.objects[f"/bucket/{number:03}"]).hexdigest()
        found.append(Wanted("bucket", StoredObject(f"{number:03}", 5000, etag), target / f"{number:03}"))
    return found


async def download(store: ObjectStore, what: list[Wanted]) -> None:
    async def done(_: Wanted, __: StoredObject) -> None:
        pass

    downloader = Downloader(store, Patience(30.0, "test"), lambda _: None)
    await downloader.download_all(what, check=lambda _: None, done=done)


def asked_for(storage: FakeStorage) -> Counter[str]:
    return Counter(urlsplit(seen.target).path for seen in storage.seen)


class Once:
    """Answers the first request for number 20 as it is told, and leaves all others to the storage."""

    def __init__(self, reply: Reply | type[Exception]) -> None:
        self._reply, self.met = reply, False

    def __call__(self, request: Received) -> Reply | None:
        if self.met or urlsplit(request.target).path != "/bucket/020":
            return None
        self.met = True
        if isinstance(self._reply, Reply):
            return self._reply
        raise self._reply


@pytest.mark.parametrize(
    "reply",
    [
        error(500, "InternalError"),
        error(503, "SlowDown"),
        Reply(200, {"Content-Length": "5000", "Connection": "close"}, b"cut off"),
        Reply(200, {}, b"y" * 5000),
        Reply(200, {}, b"too short"),
        ConnectionAbortedError,
    ],
    ids=["500", "503", "cut", "damaged", "short", "drop"],
)
async def test_a_fault_in_the_middle_of_a_batch_costs_the_object_that_it_met_and_those_asked_for_with_it(
    storage: FakeStorage, tmp_path: Path, reply: Reply | type[Exception]
) -> None:
    storage.answer = once = Once(reply)
    async with open_store(config_of(storage)) as store:
        await asyncio.wait_for(download(store, wanted(storage, tmp_path)), 60)
    assert once.met
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        f"{number:03}": bytes([number]) * 5000 for number in range(COUNT)
    }
    asked = asked_for(storage)
    assert asked.pop("/bucket/020") in {2, 3}
    # Those behind it in the batch were asked for already, and are once more.
    assert sum(times - 1 for times in asked.values()) < TINY_AT_ONCE


async def test_a_cancel_in_the_middle_of_a_batch_closes_its_connection(storage: FakeStorage, tmp_path: Path) -> None:
    silent, over = threading.Event(), threading.Event()

    def answer(request: Received) -> Reply | None:
        if urlsplit(request.target).path == "/bucket/020":
            silent.set()
            over.wait(30)
        return None

    storage.answer = answer
    async with open_store(config_of(storage)) as store:
        task = asyncio.ensure_future(download(store, wanted(storage, tmp_path)))
        assert await asyncio.to_thread(silent.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)  # not the 20 s that an answer may take
        arrived = {path.name for path in tmp_path.iterdir()}
        assert "020" not in arrived
        assert arrived <= {f"{number:03}" for number in range(COUNT)}  # no temporary name is left
        # What was in the kernel's hands at the cancel still arrives.
        asked, before = asked_for(storage).total(), -1
        while asked != before:
            await asyncio.sleep(0.2)
            asked, before = asked_for(storage).total(), asked
        over.set()
        await asyncio.sleep(0.2)
        assert asked_for(storage).total() == asked


async def test_a_batch_uses_a_few_connections(storage: FakeStorage, tmp_path: Path) -> None:
    def work(direct: Direct) -> None:
        found = [one.object for one in wanted(storage, tmp_path)[:10]]
        assert [bytes(body) for body in direct.fetch_each("bucket", found, lambda _: None)] == [
            bytes([number]) * 5000 for number in range(10)
        ]

    async with open_store(config_of(storage)) as store:
        await cast("Batching", store).batch(["bucket"], work, None)
    assert storage.connections == TINY_AT_ONCE


async def test_every_upload_of_a_batch_asks_the_fence_and_expires_with_the_trust_of_its_moment(
    storage: FakeStorage,
) -> None:
    storage.answer = lambda request: Reply(200, {"x-amz-checksum-crc32": request.headers["x-amz-checksum-crc32"]})
    fence = HandFence(window_s=60.0)

    def work(direct: Direct) -> None:
        for number in range(4):
            fence.window_s = 60.0 - 10 * number
            direct.put("bucket", f"k{number}", BytesBody(b"x"))
        fence.window_s = 4.0  # less than a request is begun with
        direct.put("bucket", "k4", BytesBody(b"x"))

    async with open_store(config_of(storage)) as store:
        with pytest.raises(StorageUnavailable, match="renewed"):
            await cast("Batching", store).batch(["bucket"], work, fence)
    expires_s = [int(seen.query["X-Amz-Expires"]) for seen in storage.seen]
    assert len(expires_s) == 4
    assert all(most - 2 <= found <= most for found, most in zip(expires_s, (60, 50, 40, 30), strict=True))


async def test_a_storage_that_confirms_no_checksum_is_not_taken_at_its_word_in_a_batch(storage: FakeStorage) -> None:
    async with open_store(config_of(storage)) as store:

        def work(direct: Direct) -> None:
            direct.put("bucket", "k", BytesBody(b"x"))

        with pytest.raises(StorageUnavailable, match="confirm"):
            await cast("Batching", store).batch(["bucket"], work, HandFence())
        await store.put("bucket", "k", BytesBody(b"x"), HandFence())  # which finds out that MD5 is what it looks at
        await cast("Batching", store).batch(["bucket"], work, HandFence())
    assert "Content-MD5" in storage.seen[-1].headers
