"""A real S3 server behind a proxy that fails, cuts and stalls: nothing starts without its input, nothing is lost."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kelpie_celery.errors import StorageSetupError, StorageUnavailable
from kelpie_celery.listings import OutputFile
from kelpie_worker.sync.config import StorageConfig
from kelpie_worker.sync.known import KnownFiles
from kelpie_worker.sync.notices import Notices
from kelpie_worker.sync.object_store import ObjectStore
from kelpie_worker.sync.outputs import Outputs
from kelpie_worker.sync.plan import Placed
from kelpie_worker.sync.progress import Meter
from kelpie_worker.sync.restore import PlainRestore
from kelpie_worker.sync.store import open_store
from tests.contract.desk import Desk, tree
from tests.contract.fakes_s3 import HandFence
from tests.contract.shelf import Shelf
from tests.integration.sync_proxy import Fault, Proxy, proxy_before

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from kelpie_celery.local.servers import SeaweedServer

MIB = 1024 * 1024
BIG = 33 * MIB  # five parts


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kelpie_worker.sync.retry.FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr("kelpie_worker.sync.retry.LONGEST_PAUSE_S", 0.3)
    monkeypatch.setattr("kelpie_worker.sync.segments._PAUSE_S", 0.05)


@pytest.fixture
async def proxy(s3_server: SeaweedServer, s3: S3Client) -> AsyncIterator[Proxy]:
    async with proxy_before(s3_server.endpoint_url) as running:
        yield running


@pytest.fixture
def config(proxy: Proxy, s3_server: SeaweedServer) -> StorageConfig:
    env = s3_server.env()
    return StorageConfig(
        endpoint_url=proxy.url, access_key=env["AWS_ACCESS_KEY_ID"], secret_key=env["AWS_SECRET_ACCESS_KEY"],
        read_timeout_s=5.0, complete_timeout_s=5.0,
    )  # fmt: skip


@pytest.fixture
async def store(config: StorageConfig) -> AsyncIterator[ObjectStore]:
    async with open_store(config) as opened:
        yield opened


def inputs(bucket: str, target: Path) -> list[Placed]:
    return [Placed("before", "input", bucket, "in/", target)]


async def restore(store: ObjectStore, bucket: str, target: Path, give_up_s: float = 20.0) -> None:
    await PlainRestore(store, give_up_s=give_up_s).restore(inputs(bucket, target))


def outputs(store: ObjectStore, scratch: Path) -> Outputs:
    return Outputs(
        store, HandFence(), KnownFiles(), lambda path: path, scratch, pack=False, give_up_s=30.0,
        meter=Meter("test"), notices=Notices(), on_progress=None,
    )  # fmt: skip


# -- P5: the input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["500", "503", "cut", "drop"])
@pytest.mark.parametrize("target", [r"list-type=2", r"/in/data"])
async def test_a_storage_that_fails_once_delays_the_start_only(
    store: ObjectStore, proxy: Proxy, s3: S3Client, s3_bucket: str, tmp_path: Path, fault: Fault, target: str
) -> None:
    data = os.urandom(MIB)
    s3.put_object(Bucket=s3_bucket, Key="in/data", Body=data)
    rule = proxy.fail("GET", target, fault)
    await restore(store, s3_bucket, tmp_path / "in")
    assert (tmp_path / "in" / "data").read_bytes() == data
    assert rule.met == 1


@pytest.mark.parametrize("fault", ["500", "cut", "drop"])
@pytest.mark.parametrize("target", [r"list-type=2", r"/in/data"])
async def test_a_storage_that_keeps_failing_stops_the_start_without_a_file(
    store: ObjectStore, proxy: Proxy, s3: S3Client, s3_bucket: str, tmp_path: Path, fault: Fault, target: str
) -> None:
    s3.put_object(Bucket=s3_bucket, Key="in/data", Body=b"x")
    proxy.fail("GET", target, fault, times=10_000)
    with pytest.raises(StorageUnavailable, match=s3_bucket):
        await restore(store, s3_bucket, tmp_path / "in", give_up_s=0.5)
    assert not (tmp_path / "in").exists() or list((tmp_path / "in").iterdir()) == []


async def test_a_download_that_stalls_is_given_up_and_tried_again(
    config: StorageConfig, proxy: Proxy, s3: S3Client, s3_bucket: str, tmp_path: Path
) -> None:
    s3.put_object(Bucket=s3_bucket, Key="in/data", Body=b"content")
    proxy.fail("GET", r"/in/data", "stall")
    async with open_store(replace(config, read_timeout_s=2.5)) as store:
        await restore(store, s3_bucket, tmp_path / "in")
    assert (tmp_path / "in" / "data").read_bytes() == b"content"
    assert proxy.count("GET", "/in/data") == 2


async def test_a_cut_download_goes_on_where_it_broke(
    store: ObjectStore, proxy: Proxy, s3: S3Client, s3_bucket: str, tmp_path: Path
) -> None:
    data = os.urandom(8 * MIB)
    s3.put_object(Bucket=s3_bucket, Key="in/data", Body=data)
    proxy.fail("GET", r"/in/data", "cut", times=3)
    await restore(store, s3_bucket, tmp_path / "in")
    assert (tmp_path / "in" / "data").read_bytes() == data


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"secret_key": "wrong"}, "AWS_SECRET_ACCESS_KEY"),
        ({"access_key": "nobody"}, "AWS_ACCESS_KEY_ID"),
    ],
)
async def test_wrong_credentials_are_a_mistake_that_says_what_to_do_and_shows_no_secret(
    config: StorageConfig, s3_bucket: str, tmp_path: Path, changes: dict[str, str], advice: str
) -> None:
    async with open_store(replace(config, **changes)) as store:  # type: ignore[arg-type]  # strings all
        with pytest.raises(StorageSetupError, match=advice) as caught:
            await restore(store, s3_bucket, tmp_path / "in")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "a").write_bytes(b"x" * 3 * MIB)
        with pytest.raises(StorageSetupError, match=advice):
            await outputs(store, tmp_path).upload([Placed("after", "output", s3_bucket, "o/", tmp_path / "out")])
    assert config.secret_key not in str(caught.value) + repr(config)


async def test_no_credentials_are_a_mistake_too(config: StorageConfig) -> None:
    with pytest.raises(StorageSetupError, match="AWS_ACCESS_KEY_ID"):
        async with open_store(replace(config, access_key="", secret_key="")):
            pass


async def test_a_server_that_is_not_there_is_an_interruption(
    config: StorageConfig, s3_bucket: str, tmp_path: Path
) -> None:
    for url in ("http://127.0.0.1:9", "http://no-such-host.invalid"):
        async with open_store(replace(config, endpoint_url=url)) as store:
            with pytest.raises(StorageUnavailable):
                await restore(store, s3_bucket, tmp_path / "in", give_up_s=0.0)


# -- P4: the outputs -------------------------------------------------------------------------------------------------


@pytest.fixture
def output(tmp_path: Path, s3_bucket: str) -> tuple[Placed, dict[str, bytes]]:
    files = {"small": os.urandom(1000), "deep/big": os.urandom(BIG)}
    for name, data in files.items():
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return Placed("after", "output", s3_bucket, "o/", tmp_path / "out"), files


def stored(s3: S3Client, bucket: str) -> dict[str, bytes]:
    listed = s3.list_objects_v2(Bucket=bucket).get("Contents", [])
    return {entry["Key"]: s3.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read() for entry in listed}


@pytest.mark.parametrize("fault", ["500", "503", "drop", "swallow"])
@pytest.mark.parametrize(
    ("method", "target"), [("PUT", "o/small"), ("PUT", "partNumber=2"), ("POST", "uploads"), ("POST", "uploadId=")]
)
async def test_a_failing_upload_is_tried_again_until_it_is_whole(
    store: ObjectStore, proxy: Proxy, s3: S3Client, s3_bucket: str, tmp_path: Path,
    output: tuple[Placed, dict[str, bytes]], fault: Fault, method: str, target: str,
) -> None:  # fmt: skip
    block, files = output
    rule = proxy.fail(method, target, fault, times=2)
    listing = await outputs(store, tmp_path).upload([block])
    assert rule.met == 2
    assert stored(s3, s3_bucket) == {f"o/{name}": data for name, data in files.items()}
    assert [(file.key, file.size_bytes) for file in listing] == [("o/deep/big", BIG), ("o/small", 1000)]


async def test_the_storage_may_be_down_for_seconds_in_the_middle_of_the_final_upload(
    store: ObjectStore, proxy: Proxy, s3: S3Client, s3_bucket: str, tmp_path: Path,
    output: tuple[Placed, dict[str, bytes]],
) -> None:  # fmt: skip
    block, files = output
    task = asyncio.ensure_future(outputs(store, tmp_path).upload([block]))
    while proxy.count("PUT", "partNumber") < 1:
        await asyncio.sleep(0.001)
    proxy.down = True
    await asyncio.sleep(5)
    assert not task.done()
    proxy.down = False
    listing: tuple[OutputFile, ...] = await asyncio.wait_for(task, 60)
    assert len(listing) == 2
    assert stored(s3, s3_bucket) == {f"o/{name}": data for name, data in files.items()}
    assert s3.list_multipart_uploads(Bucket=s3_bucket).get("Uploads", []) == []


async def test_a_stalled_upload_is_given_up_and_tried_again(
    config: StorageConfig, proxy: Proxy, s3: S3Client, s3_bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_bytes(b"x" * 100)
    proxy.fail("PUT", "o/a", "stall")
    async with open_store(replace(config, read_timeout_s=0.5)) as store:
        await outputs(store, tmp_path).upload([Placed("after", "output", s3_bucket, "o/", tmp_path / "out")])
    assert stored(s3, s3_bucket) == {"o/a": b"x" * 100}


async def test_a_cancelled_upload_leaves_no_parts_on_the_storage(
    store: ObjectStore, proxy: Proxy, s3: S3Client, s3_bucket: str, tmp_path: Path,
    output: tuple[Placed, dict[str, bytes]],
) -> None:  # fmt: skip
    proxy.fail("PUT", "partNumber=2", "stall")
    task = asyncio.ensure_future(outputs(store, tmp_path).upload([output[0]]))
    await asyncio.wait_for(proxy.stalled.wait(), 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert s3.list_multipart_uploads(Bucket=s3_bucket).get("Uploads", []) == []
    assert "o/deep/big" not in stored(s3, s3_bucket)


# -- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def desk(store: ObjectStore, s3_bucket: str, tmp_path: Path) -> Desk:
    return Desk(tmp_path / "desk", Shelf(store, s3_bucket, HandFence()))


async def test_a_writer_in_place_is_never_committed_torn_and_ends_with_its_last_version(desk: Desk) -> None:
    size, versions = 9 * MIB, 12
    definition = desk.checkpoint(plain="never")
    async with desk.attempt(definition, quiet_s=0.01) as sync:
        path = desk.write("model", bytes([0]) * size)
        async with desk.watching(sync):
            for version in range(1, versions):
                await asyncio.to_thread(_overwrite, path, version, size)
                if desk.kept():
                    content = (await desk.committed())["model"]
                    assert (len(set(content)), len(content)) == (1, size)
        await sync.commit("exit")
    assert await desk.committed() == {"model": bytes([versions - 1]) * size}


def _overwrite(path: Path, version: int, size: int) -> None:
    with path.open("r+b") as file:
        for _ in range(0, size, MIB):
            file.write(bytes([version]) * MIB)
            file.flush()
            os.sched_yield()


async def test_the_watch_goes_on_when_the_storage_comes_back(desk: Desk, proxy: Proxy) -> None:
    async with desk.attempt() as sync:
        proxy.down = True
        async with desk.watching(sync) as watch:
            desk.write("a", b"1")
            async with asyncio.timeout(30):
                while proxy.count("PUT") < 3:
                    await asyncio.sleep(0.02)
            assert not watch.done()
            proxy.down = False
            await desk.next_report()
    assert await desk.committed() == {"a": b"1"}


@pytest.mark.parametrize("fault", ["500", "503", "drop", "swallow"])
@pytest.mark.parametrize("target", [r"/data/", r"/commits/"])
async def test_a_commit_outlives_requests_that_fail(desk: Desk, proxy: Proxy, fault: Fault, target: str) -> None:
    data = os.urandom(3 * MIB)
    async with desk.attempt(desk.checkpoint(plain="never")) as sync:
        desk.write("large", data)
        desk.write("small", b"1")
        rule = proxy.fail("PUT", target, fault, times=2)
        await sync.commit("exit")
        assert rule.met == 2
    assert await desk.committed() == {"large": data, "small": b"1"}
    assert len(desk.kept()) == 1


@pytest.mark.parametrize("fault", ["500", "cut", "drop"])
async def test_a_restore_of_a_commit_outlives_requests_that_fail(desk: Desk, proxy: Proxy, fault: Fault) -> None:
    data = os.urandom(9 * MIB)
    async with desk.attempt() as sync:
        desk.write("large", data)
        await sync.commit("exit", plain=False)
    rules = [proxy.fail("GET", target, fault) for target in (r"/data/", r"/commits/")]
    async with desk.attempt():
        assert tree(desk.ck) == {"large": data}
    assert [rule.met for rule in rules] == [1, 1]


async def test_content_that_is_damaged_on_its_way_is_never_committed(desk: Desk, proxy: Proxy) -> None:
    async with desk.attempt(desk.checkpoint(plain="never")) as sync:
        desk.write("a", os.urandom(1000))
        rule = proxy.fail("PUT", r"/data/", "damage")
        await sync.commit("exit")
        assert rule.met == 1
        assert await desk.committed() == tree(desk.ck)
