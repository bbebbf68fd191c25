"""Batches of small files, on a storage in memory and on a real one: faults, cancels and lost leases in their middle."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from kelpie_celery.errors import LeaseLost, StorageUnavailable
from kelpie_worker.sync.batches import Batching, Direct
from kelpie_worker.sync.bodies import BytesBody
from kelpie_worker.sync.download import Downloader, Wanted
from kelpie_worker.sync.errors import LocalFileError
from kelpie_worker.sync.known import KnownFile, KnownFiles, LocalFile
from kelpie_worker.sync.notices import Notices
from kelpie_worker.sync.object_store import StoredObject
from kelpie_worker.sync.outputs import Outputs
from kelpie_worker.sync.progress import Meter
from kelpie_worker.sync.retry import Patience
from tests.contract.shelf import Shelf

COUNT = 100
"""So many that they go in batches of three, of which number 20 is the last of one."""


def contents() -> dict[str, bytes]:
    return {f"{number:03}": bytes([number]) * (10 * number + 1) for number in range(COUNT)}


def batching(shelf: Shelf) -> Batching:
    assert isinstance(shelf.store, Batching)
    return shelf.store


async def seeded(shelf: Shelf) -> list[StoredObject]:
    for name, data in contents().items():
        await shelf.seed(f"p/{name}", data)
    return sorted([found async for found in shelf.store.list(shelf.bucket, "p/")], key=lambda found: found.key)


def wanted(shelf: Shelf, found: list[StoredObject], target: Path) -> list[Wanted]:
    return [Wanted(shelf.bucket, one, target / one.key.removeprefix("p/")) for one in found]


def on_disk(target: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in target.iterdir()}


async def download(
    shelf: Shelf, what: list[Wanted], check: Callable[[Wanted], None] = lambda _: None
) -> dict[str, StoredObject]:
    told: dict[str, StoredObject] = {}

    async def done(one: Wanted, found: StoredObject) -> None:
        told[one.path.name] = found

    downloader = Downloader(shelf.store, Patience(0.0, "test"), lambda _: None)
    await downloader.download_all(what, check=check, done=done)
    return told


def outputs_of(shelf: Shelf, source: Path) -> Outputs:
    return Outputs(
        shelf.store, shelf.fence, KnownFiles(), lambda path: path, source, pack=False, give_up_s=0.0,
        meter=Meter("outputs"), notices=Notices(), on_progress=None,
    )  # fmt: skip


async def test_many_small_objects_become_the_files_that_they_are(shelf: Shelf, tmp_path: Path) -> None:
    found = await seeded(shelf)
    told = await download(shelf, wanted(shelf, found, tmp_path))
    assert on_disk(tmp_path) == contents()
    assert {f"p/{name}": one for name, one in told.items()} == {one.key: one for one in found}


async def test_an_object_that_was_replaced_in_the_middle_comes_as_it_is_now(shelf: Shelf, tmp_path: Path) -> None:
    found = await seeded(shelf)
    await shelf.seed("p/020", b"another")
    told = await download(shelf, wanted(shelf, found, tmp_path))
    assert on_disk(tmp_path) == {**contents(), "020": b"another"}
    assert told["020"].etag == hashlib.md5(b"another").hexdigest()


async def test_an_object_that_must_not_be_written_stops_everything_and_is_not_written(
    shelf: Shelf, tmp_path: Path
) -> None:
    def check(one: Wanted) -> None:
        if one.path.name == "020":
            raise StorageUnavailable("a link leads out", bucket=shelf.bucket)

    with pytest.raises(StorageUnavailable, match="leads out"):
        await download(shelf, wanted(shelf, await seeded(shelf), tmp_path), check)
    assert "020" not in on_disk(tmp_path)
    assert on_disk(tmp_path).items() <= contents().items()  # no other name is left behind either


async def test_a_file_that_cannot_be_written_is_told_as_ever(shelf: Shelf, tmp_path: Path) -> None:
    what = wanted(shelf, await seeded(shelf), tmp_path)
    (tmp_path / "020").mkdir()
    (tmp_path / "020" / "in the way").touch()
    with pytest.raises(LocalFileError, match=r"cannot use .*020"):
        await download(shelf, what)


async def test_a_batch_that_is_cancelled_ends_with_the_object_that_it_is_at(shelf: Shelf) -> None:
    found = await seeded(shelf)
    at_work, go_on, took = threading.Event(), threading.Event(), list[str]()

    def work(direct: Direct) -> None:
        for one, _ in zip(found, direct.fetch_each(shelf.bucket, found, lambda _: None), strict=True):
            took.append(one.key)
            if one.key == "p/010":
                at_work.set()
                go_on.wait(20)

    task = asyncio.ensure_future(batching(shelf).batch([shelf.bucket], work, None))
    assert await asyncio.to_thread(at_work.wait, 10)
    task.cancel()
    await asyncio.wait({task}, timeout=0.2)
    assert not task.done()  # the sink is at work
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)
    assert took == [f"p/{number:03}" for number in range(11)]


async def test_a_lease_that_is_lost_in_the_middle_lets_nothing_more_through(shelf: Shelf) -> None:
    stored = list[str]()

    def work(direct: Direct) -> None:
        for number in range(10):
            if number == 4:
                shelf.fence.lose()
            direct.put(shelf.bucket, f"k{number}", BytesBody(b"x"))
            stored.append(f"k{number}")

    with pytest.raises(StorageUnavailable):
        await batching(shelf).batch([shelf.bucket], work, shelf.fence)
    assert await shelf.keys() == stored == ["k0", "k1", "k2", "k3"]
    with pytest.raises(LeaseLost):
        await batching(shelf).batch([shelf.bucket], work, shelf.fence)


async def test_a_body_is_broken_off_when_the_trust_ends_within_it(shelf: Shelf) -> None:
    class Losing(BytesBody):
        def crc32(self) -> int:
            shelf.fence.lose()  # the digest is asked for after the last look at the fence before the request
            return super().crc32()

    with pytest.raises(StorageUnavailable):
        await batching(shelf).batch(
            [shelf.bucket], lambda direct: cast("None", direct.put(shelf.bucket, "k", Losing(b"x"))), shelf.fence
        )
    assert await shelf.keys() == []


async def test_a_batch_without_a_fence_stores_nothing(shelf: Shelf) -> None:
    with pytest.raises((ValueError, StorageUnavailable)):
        await batching(shelf).batch(
            [shelf.bucket], lambda direct: cast("None", direct.put(shelf.bucket, "k", BytesBody(b"x"))), None
        )
    assert await shelf.keys() == []


async def test_outputs_go_in_batches_and_are_listed_with_their_digests(shelf: Shelf, tmp_path: Path) -> None:
    for name, data in {**contents(), "empty": b""}.items():
        (tmp_path / name).write_bytes(data)
    files = await outputs_of(shelf, tmp_path).upload([shelf.block(tmp_path, role="output", stage="after")])
    assert {file.key: file.sha256 for file in files} == {
        f"p/{name}": hashlib.sha256(data).hexdigest() for name, data in {**contents(), "empty": b""}.items()
    }
    for name in ("000", "020", "099", "empty"):
        assert await shelf.content(f"p/{name}") == {**contents(), "empty": b""}[name]


def before_the_seventh(monkeypatch: pytest.MonkeyPatch, event: Callable[[], None]) -> Callable[[], str]:
    """Let something happen just before the seventh output is sent in a batch; tells its key, once it did."""
    sends, keys, lock = Outputs._send_directly, list[str](), threading.Lock()

    def sending(self: Outputs, direct: Direct, file: LocalFile) -> KnownFile:
        with lock:
            keys.append(file.key)
            if len(keys) == 7:
                event()
        return sends(self, direct, file)

    monkeypatch.setattr(Outputs, "_send_directly", sending)
    return lambda: keys[6]


async def test_outputs_wait_while_the_attempt_is_muted_in_the_middle_of_a_batch(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, data in contents().items():
        (tmp_path / name).write_bytes(data)
    muted = threading.Event()

    def mute() -> None:
        shelf.fence.mute()
        muted.set()

    seventh = before_the_seventh(monkeypatch, mute)
    upload = outputs_of(shelf, tmp_path).upload([shelf.block(tmp_path, role="output", stage="after")])
    task = asyncio.ensure_future(upload)
    assert await asyncio.to_thread(muted.wait, 20)
    await asyncio.wait({task}, timeout=0.3)
    assert not task.done()
    assert seventh() not in await shelf.keys()
    shelf.fence.unmute()
    assert len(await asyncio.wait_for(task, 30)) == COUNT


async def test_outputs_of_an_attempt_that_loses_its_job_in_the_middle_end_with_that(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, data in contents().items():
        (tmp_path / name).write_bytes(data)
    seventh = before_the_seventh(monkeypatch, shelf.fence.lose)
    with pytest.raises(LeaseLost):
        await outputs_of(shelf, tmp_path).upload([shelf.block(tmp_path, role="output", stage="after")])
    assert seventh() not in await shelf.keys()
