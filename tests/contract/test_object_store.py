"""What every object storage must do, in memory and for real."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Iterator

import pytest

from kelpie_celery.errors import LeaseLost, StorageSetupError, StorageUnavailable
from kelpie_worker.sync.bodies import BytesBody
from kelpie_worker.sync.object_store import ObjectChanged, UploadGone
from tests.contract.shelf import Shelf, Versions

MIB = 1024 * 1024
ODD_KEYS = ["a b+c%d.txt", "ünïcödé/日本", "line\nbreak", "a/b/c.txt", "a/bc/d.txt", "~tilde*(x)'!;:@&=$,?#"]


@pytest.mark.parametrize("key", ODD_KEYS)
async def test_an_object_comes_back_as_it_was_put_whatever_its_key(shelf: Shelf, key: str) -> None:
    await shelf.seed(key, b"content")
    assert await shelf.content(key) == b"content"
    assert await shelf.keys() == [key]


async def test_an_empty_object_is_an_object(shelf: Shelf) -> None:
    await shelf.seed("empty")
    assert await shelf.content("empty") == b""


async def test_put_tells_the_size_and_etag_that_head_and_list_tell(shelf: Shelf) -> None:
    put = await shelf.store.put(shelf.bucket, "k", BytesBody(b"12345"), shelf.fence)
    assert put.size_bytes == 5
    assert put.etag == hashlib.md5(b"12345").hexdigest()
    assert await shelf.store.head(shelf.bucket, "k") == put
    assert [found async for found in shelf.store.list(shelf.bucket, "")] == [put]


async def test_list_finds_what_begins_with_the_prefix_and_nothing_else(shelf: Shelf) -> None:
    for key in ("a/b/1", "a/b/2/3", "a/bc/4", "a/b-old/5"):
        await shelf.seed(key, b"x")
    assert await shelf.keys("a/b/") == ["a/b/1", "a/b/2/3"]


async def test_list_finds_more_than_one_page(shelf: Shelf) -> None:
    keys = [f"many/{number:04}" for number in range(120)]
    free = asyncio.Semaphore(16)

    async def seed(key: str) -> None:
        async with free:
            await shelf.seed(key, b"x")

    await asyncio.gather(*(seed(key) for key in keys))
    assert await shelf.keys("many/") == keys


async def test_what_does_not_exist_has_no_head(shelf: Shelf) -> None:
    assert await shelf.store.head(shelf.bucket, "nothing") is None


async def test_fetching_what_does_not_exist_names_bucket_and_key(shelf: Shelf) -> None:
    with pytest.raises(StorageSetupError, match="nothing") as caught:
        await shelf.store.fetch(shelf.bucket, "nothing", _drop, etag="0" * 32, start_byte=0, length_bytes=1)
    assert (caught.value.bucket, caught.value.key) == (shelf.bucket, "nothing")


async def test_a_bucket_that_does_not_exist_is_a_mistake_in_the_set_up(shelf: Shelf) -> None:
    with pytest.raises(StorageSetupError, match="no-such-bucket"):
        _ = [found async for found in shelf.store.list("no-such-bucket", "p/")]
    with pytest.raises(StorageSetupError, match="no-such-bucket"):
        await shelf.store.put("no-such-bucket", "k", BytesBody(b"x"), shelf.fence)


async def test_a_range_of_an_object_can_be_fetched(shelf: Shelf) -> None:
    await shelf.seed("k", b"0123456789")
    found = await shelf.store.head(shelf.bucket, "k")
    assert found is not None
    parts = bytearray()
    await shelf.store.fetch(shelf.bucket, "k", parts.extend, etag=found.etag, start_byte=3, length_bytes=4)
    assert parts == b"3456"
    await shelf.store.fetch(shelf.bucket, "k", parts.extend, etag="", start_byte=7, length_bytes=3)
    assert parts == b"3456789"


async def test_an_object_that_was_replaced_since_it_was_listed_is_not_mixed_up(shelf: Shelf) -> None:
    await shelf.seed("k", b"old")
    old = await shelf.store.head(shelf.bucket, "k")
    await shelf.seed("k", b"new")
    assert old is not None
    with pytest.raises(ObjectChanged):
        await shelf.store.fetch(shelf.bucket, "k", _drop, etag=old.etag, start_byte=0, length_bytes=3)


async def test_a_deleted_object_is_gone_and_deleting_it_again_is_no_error(shelf: Shelf) -> None:
    await shelf.seed("k", b"x")
    await shelf.store.delete(shelf.bucket, "k", shelf.fence)
    await shelf.store.delete(shelf.bucket, "k", shelf.fence)
    assert await shelf.keys() == []


async def test_parts_are_invisible_until_they_are_completed(shelf: Shelf) -> None:
    upload_id = await shelf.store.begin(shelf.bucket, "big")
    bodies = [BytesBody(b"a" * 5 * MIB), BytesBody(b"tail")]
    etags = [
        await shelf.store.put_part(shelf.bucket, "big", upload_id, number, body)
        for number, body in enumerate(bodies, 1)
    ]
    assert await shelf.keys() == []
    stored = await shelf.store.complete(shelf.bucket, "big", upload_id, etags, shelf.fence, size_bytes=5 * MIB + 4)
    assert stored.size_bytes == 5 * MIB + 4
    assert await shelf.content("big") == b"a" * 5 * MIB + b"tail"
    assert await shelf.store.head(shelf.bucket, "big") == stored


async def test_an_aborted_upload_leaves_nothing_and_can_be_aborted_again(shelf: Shelf) -> None:
    upload_id = await shelf.store.begin(shelf.bucket, "big")
    await shelf.store.put_part(shelf.bucket, "big", upload_id, 1, BytesBody(b"x"))
    await shelf.store.abort(shelf.bucket, "big", upload_id)
    await shelf.store.abort(shelf.bucket, "big", upload_id)
    assert await shelf.keys() == []


async def test_the_storage_tells_when_an_object_was_stored(shelf: Shelf) -> None:
    await shelf.seed("first", b"1")
    await shelf.seed("second", b"2")
    listed = {found.key: found.modified async for found in shelf.store.list(shelf.bucket, "")}
    first = await shelf.store.head(shelf.bucket, "first")
    assert first is not None
    assert 0 < first.modified <= listed["second"]
    assert abs(first.modified - listed["first"]) <= 1.0  # HEAD tells whole seconds


@pytest.mark.parametrize("source", ["source", *ODD_KEYS])
async def test_an_object_is_copied_by_the_storage(shelf: Shelf, source: str) -> None:
    await shelf.seed(source, b"content")
    copied = await shelf.store.copy(shelf.bucket, "copies/k", source, shelf.fence)
    assert (copied.key, copied.size_bytes) == ("copies/k", 7)
    assert await shelf.content("copies/k") == b"content"
    assert await shelf.store.head(shelf.bucket, "copies/k") == copied


async def test_copying_what_does_not_exist_is_a_mistake_that_names_it(shelf: Shelf) -> None:
    with pytest.raises(StorageSetupError, match="no-source"):
        await shelf.store.copy(shelf.bucket, "k", "no-source", shelf.fence)
    assert await shelf.keys() == []


async def test_an_upload_takes_ranges_of_other_objects_as_its_parts(shelf: Shelf) -> None:
    head, tail = os.urandom(6 * MIB), os.urandom(MIB)
    await shelf.seed("a b/sourcé", head)
    upload_id = await shelf.store.begin(shelf.bucket, "big")
    etags = [
        await shelf.store.copy_part(shelf.bucket, "big", upload_id, 1, "a b/sourcé", 100, 5 * MIB),
        await shelf.store.put_part(shelf.bucket, "big", upload_id, 2, BytesBody(tail)),
    ]
    stored = await shelf.store.complete(shelf.bucket, "big", upload_id, etags, shelf.fence, size_bytes=6 * MIB)
    assert stored.size_bytes == 6 * MIB
    assert await shelf.content("big") == head[100 : 100 + 5 * MIB] + tail


async def test_a_part_of_an_upload_that_is_gone_says_so(shelf: Shelf) -> None:
    await shelf.seed("source", b"x")
    upload_id = await shelf.store.begin(shelf.bucket, "big")
    await shelf.store.abort(shelf.bucket, "big", upload_id)
    with pytest.raises(UploadGone):
        await shelf.store.put_part(shelf.bucket, "big", upload_id, 1, BytesBody(b"x"))
    with pytest.raises(UploadGone):
        await shelf.store.copy_part(shelf.bucket, "big", upload_id, 1, "source", 0, 1)


async def test_what_is_deleted_forever_leaves_no_version_behind(shelf: Shelf, versions: Versions) -> None:
    for key in ("hidden", "gone"):
        await shelf.seed(key, b"x")
    await shelf.store.delete(shelf.bucket, "hidden", shelf.fence)
    await shelf.store.delete(shelf.bucket, "gone", shelf.fence, forever=True)
    await shelf.store.delete(shelf.bucket, "gone", shelf.fence, forever=True)
    assert await shelf.keys() == []
    assert versions() == ["hidden"]


async def test_without_versions_forever_deletes_as_ever(shelf: Shelf) -> None:
    await shelf.seed("k", b"x")
    await shelf.store.delete(shelf.bucket, "k", shelf.fence, forever=True)
    assert await shelf.keys() == []


@pytest.mark.parametrize("what", ["body", "sink"])
async def test_a_cancelled_call_ends_after_its_thread_has_let_go(shelf: Shelf, what: str) -> None:
    at_work, whole = _AtWork(), {"start_byte": 0, "length_bytes": 3 * MIB}
    await shelf.seed("k", b"x" * 3 * MIB)

    async def call() -> None:
        if what == "body":
            await shelf.store.put(shelf.bucket, "new", at_work, shelf.fence)
        else:
            await shelf.store.fetch(shelf.bucket, "k", at_work.take, etag="", **whole)

    task = asyncio.ensure_future(call())
    assert await asyncio.to_thread(at_work.begun.wait, 10)
    task.cancel()
    await asyncio.wait({task}, timeout=0.2)
    assert not task.done()
    at_work.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)
    assert at_work.idle
    assert await shelf.keys() == ["k"]


class _AtWork(BytesBody):
    """A body, and a sink, that is at work until it is let go."""

    def __init__(self) -> None:
        super().__init__(b"x" * 3 * MIB)
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.idle = True

    def take(self, _: memoryview) -> None:
        self.idle = False
        self.begun.set()
        self.go_on.wait(20)
        self.idle = True

    def chunks(self) -> Iterator[bytes | memoryview]:
        for chunk in super().chunks():
            yield chunk
            self.take(memoryview(chunk))


@pytest.mark.parametrize("operation", ["put", "delete", "complete", "copy"])
async def test_nothing_becomes_visible_while_the_attempt_is_muted(shelf: Shelf, operation: str) -> None:
    await shelf.seed("k", b"before")
    await shelf.seed("source", b"after")
    upload_id = await shelf.store.begin(shelf.bucket, "k")
    etag = await shelf.store.put_part(shelf.bucket, "k", upload_id, 1, BytesBody(b"after"))
    shelf.fence.mute()

    async def work() -> None:
        if operation == "put":
            await shelf.store.put(shelf.bucket, "k", BytesBody(b"after"), shelf.fence)
        elif operation == "delete":
            await shelf.store.delete(shelf.bucket, "k", shelf.fence)
        elif operation == "copy":
            await shelf.store.copy(shelf.bucket, "k", "source", shelf.fence)
        else:
            await shelf.store.complete(shelf.bucket, "k", upload_id, [etag], shelf.fence, size_bytes=5)

    task = asyncio.ensure_future(work())
    await asyncio.wait({task}, timeout=0.3)
    assert not task.done()
    assert await shelf.content("k") == b"before"
    shelf.fence.unmute()
    await asyncio.wait_for(task, 10)
    assert await shelf.store.head(shelf.bucket, "k") is None or await shelf.content("k") == b"after"


async def test_an_attempt_that_lost_its_job_makes_nothing_visible(shelf: Shelf) -> None:
    shelf.fence.lose()
    with pytest.raises(LeaseLost):
        await shelf.store.put(shelf.bucket, "k", BytesBody(b"x"), shelf.fence)
    assert await shelf.keys() == []


class _MutingBody(BytesBody):
    """Mutes its fence before its last piece is taken."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(b"x" * 3 * MIB)
        self._shelf = shelf

    def chunks(self) -> Iterator[bytes | memoryview]:
        sent = 0
        for chunk in super().chunks():
            sent += len(chunk)
            if sent >= 2 * MIB:
                self._shelf.fence.lose()
            yield chunk


async def test_a_body_is_broken_off_when_the_trust_runs_out_under_way(shelf: Shelf) -> None:
    with pytest.raises((LeaseLost, StorageUnavailable)):
        await shelf.store.put(shelf.bucket, "k", _MutingBody(shelf), shelf.fence)
    await asyncio.sleep(0.2)
    assert await shelf.keys() == []


def _drop(_: memoryview) -> None:
    pass
