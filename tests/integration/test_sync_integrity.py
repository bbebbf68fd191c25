"""What goes up is verified by the storage, with the digest that it knows; what is damaged on its way is sent again."""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest

from kelpie_celery.errors import StorageSetupError, StorageUnavailable
from kelpie_worker.sync.bodies import BytesBody
from kelpie_worker.sync.config import StorageConfig
from kelpie_worker.sync.object_store import ObjectStore
from kelpie_worker.sync.store import open_store
from tests.contract.fakes_s3 import HandFence
from tests.integration.fake_storage import FakeStorage, Received, Reply, error, fake_storage
from tests.integration.sync_proxy import Proxy, proxy_before

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from kelpie_celery.local.servers import SeaweedServer

MIB = 1024 * 1024
CRC32 = "x-amz-checksum-crc32"
R2 = error(501, "NotImplemented", "Header 'x-amz-checksum-crc32' with value 'AAAAAA==' not implemented")
B2 = error(400, "InvalidArgument", "Unsupported header 'x-amz-checksum-crc32' received for this API call.")
R2_BEGIN = error(501, "NotImplemented", "Header 'x-amz-checksum-algorithm' with value 'CRC32' not implemented")


def crc32(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


# -- what storages are known to answer ---------------------------------------------------------------------------------


@pytest.fixture
def storage() -> Iterator[FakeStorage]:
    with fake_storage() as running:
        yield running


@pytest.fixture
async def store(storage: FakeStorage) -> AsyncIterator[ObjectStore]:
    async with open_store(StorageConfig(storage.url, access_key="AK", secret_key="SK")) as opened:
        yield opened


def echo(request: Received) -> Reply | None:
    if CRC32 not in request.headers:
        return None
    etag = f'"{hashlib.md5(request.body).hexdigest()}"'
    return Reply(200, {"ETag": etag, CRC32: request.headers[CRC32]})


def puts(storage: FakeStorage) -> list[tuple[str | None, str | None]]:
    """The digests of each PUT, CRC32 and MD5; both must be signed."""
    found = [request for request in storage.seen if request.method == "PUT"]
    for request in found:
        assert all(name.lower() in request.signed for name in (CRC32, "Content-MD5") if name in request.headers)
    return [(request.headers.get(CRC32), request.headers.get("Content-MD5")) for request in found]


async def test_a_storage_that_confirms_checksums_gets_them(storage: FakeStorage, store: ObjectStore) -> None:
    storage.answer = echo
    for data in (b"one", b"two"):
        await store.put("bucket", "k", BytesBody(data), HandFence())
    assert puts(storage) == [(crc32(b"one"), None), (crc32(b"two"), None)]


@pytest.mark.parametrize("refusal", [R2, B2])
async def test_a_storage_that_refuses_checksums_gets_md5_from_then_on(
    storage: FakeStorage, store: ObjectStore, refusal: Reply
) -> None:
    storage.answer = lambda request: refusal if CRC32 in request.headers else None
    for data in (b"one", b"two"):
        stored = await store.put("bucket", "k", BytesBody(data), HandFence())
        assert stored.etag == hashlib.md5(data).hexdigest()
    assert puts(storage) == [(crc32(b"one"), None), (None, md5(b"one")), (None, md5(b"two"))]


async def test_another_refusal_of_the_same_kind_is_a_mistake_in_the_set_up(
    storage: FakeStorage, store: ObjectStore
) -> None:
    storage.answer = lambda _: error(501, "NotImplemented", "Header 'host' is not implemented")
    with pytest.raises(StorageSetupError, match="'host'"):
        await store.put("bucket", "k", BytesBody(b"x"), HandFence())


async def test_a_storage_that_ignores_checksums_gets_md5_from_then_on(storage: FakeStorage, store: ObjectStore) -> None:
    for data in (b"one", b"two"):
        await store.put("bucket", "k", BytesBody(data), HandFence())
    # The ETag of the first answer said that it had arrived whole.
    assert puts(storage) == [(crc32(b"one"), None), (None, md5(b"two"))]


async def test_what_a_storage_took_unseen_is_sent_again(storage: FakeStorage, store: ObjectStore) -> None:
    storage.answer = lambda _: Reply(200, {"ETag": '"something-else"'})
    await store.put("bucket", "k", BytesBody(b"one"), HandFence())
    assert puts(storage) == [(crc32(b"one"), None), (None, md5(b"one"))]


async def test_the_end_of_an_upload_in_parts_names_the_checksums_of_its_parts(
    storage: FakeStorage, store: ObjectStore
) -> None:
    storage.answer = echo
    upload_id = await store.begin("bucket", "k")
    etags = [await store.put_part("bucket", "k", upload_id, n, BytesBody(b"part %d" % n)) for n in (1, 2)]
    await store.complete("bucket", "k", upload_id, etags, HandFence(), size_bytes=0)
    begin = next(request for request in storage.seen if request.method == "POST")
    end = [request for request in storage.seen if request.method == "POST"][-1]
    assert begin.headers["x-amz-checksum-algorithm"] == "CRC32"
    for data in (b"part 1", b"part 2"):
        assert f"<ChecksumCRC32>{crc32(data)}</ChecksumCRC32>".encode() in end.body


async def test_a_storage_that_refuses_checksums_gets_uploads_in_parts_without_them(
    storage: FakeStorage, store: ObjectStore
) -> None:
    storage.answer = lambda request: R2_BEGIN if "x-amz-checksum-algorithm" in request.headers else None
    upload_id = await store.begin("bucket", "k")
    await store.put_part("bucket", "k", upload_id, 1, BytesBody(b"x"))
    assert puts(storage) == [(None, md5(b"x"))]


@pytest.mark.parametrize("operation", ["copy", "copy_part"])
async def test_a_copy_that_fails_after_it_has_answered_200_has_failed(
    storage: FakeStorage, store: ObjectStore, operation: str
) -> None:
    late = [error(200, "InternalError"), error(200, "InternalError")]

    def answer(request: Received) -> Reply | None:
        if request.method != "PUT":
            return Reply(200, {"ETag": '"e"'})
        return late.pop() if late else Reply(200, {}, b"<CopyPartResult><ETag>&quot;e&quot;</ETag></CopyPartResult>")

    storage.answer = answer
    if operation == "copy":
        await store.copy("bucket", "k", "a b", HandFence())
    else:
        assert await store.copy_part("bucket", "k", "u1", 1, "a b", 10, 5) == "e"
    sent = [request for request in storage.seen if request.method == "PUT"]
    assert len(sent) == 3
    assert sent[0].headers["x-amz-copy-source"] == "/bucket/a%20b"
    assert "x-amz-copy-source" in sent[0].signed
    assert sent[0].headers.get("x-amz-copy-source-range") == ("bytes=10-14" if operation == "copy_part" else None)


async def test_forever_deletes_the_version_that_is_there(storage: FakeStorage, store: ObjectStore) -> None:
    storage.answer = lambda request: Reply(200, {"x-amz-version-id": "v 7", "ETag": '"e"'})
    await store.delete("bucket", "k", HandFence(), forever=True)
    await store.delete("bucket", "k", HandFence())
    deletes = [request for request in storage.seen if request.method == "DELETE"]
    assert [request.query.get("versionId") for request in deletes] == ["v 7", None]


# -- a real server, behind a proxy that damages bodies -----------------------------------------------------------------


@pytest.fixture
async def proxy(s3_server: SeaweedServer, s3: S3Client) -> AsyncIterator[Proxy]:
    async with proxy_before(s3_server.endpoint_url) as running:
        yield running


@pytest.mark.parametrize("checksums", ["shown", "hidden", "refused"])
@pytest.mark.parametrize("target", ["/k", "partNumber=1"])
async def test_a_body_that_is_damaged_on_its_way_is_refused_and_sent_again(
    s3_server: SeaweedServer, s3: S3Client, s3_bucket: str, proxy: Proxy, checksums: str, target: str
) -> None:
    env, data, fence = s3_server.env(), os.urandom(MIB), HandFence()
    config = StorageConfig(proxy.url, access_key=env["AWS_ACCESS_KEY_ID"], secret_key=env["AWS_SECRET_ACCESS_KEY"])
    proxy.hides, proxy.refuses = checksums == "hidden", checksums == "refused"
    async with open_store(config) as store:
        await store.put(s3_bucket, "before", BytesBody(b"x"), fence)  # what the storage can do is known after this
        rule = proxy.fail("PUT", target, "damage", times=2)
        if target == "/k":
            await store.put(s3_bucket, "k", BytesBody(data), fence)
        else:
            upload_id = await store.begin(s3_bucket, "k")
            etags = [await store.put_part(s3_bucket, "k", upload_id, 1, BytesBody(data))]
            await store.complete(s3_bucket, "k", upload_id, etags, fence, size_bytes=MIB)
    assert rule.met == 2
    assert s3.get_object(Bucket=s3_bucket, Key="k")["Body"].read() == data


async def test_an_upload_in_parts_that_has_another_size_on_the_storage_is_not_what_was_sent(
    storage: FakeStorage, store: ObjectStore
) -> None:
    storage.objects["/bucket/k"] = b"an older object"
    upload_id = await store.begin("bucket", "k")
    etag = await store.put_part("bucket", "other", upload_id, 1, BytesBody(b"new"))
    with pytest.raises(StorageUnavailable, match="not on the storage as it was sent"):
        await store.complete("bucket", "k", upload_id, [etag], HandFence(), size_bytes=3)


async def test_a_storage_that_confirms_another_checksum_has_not_stored_the_body(
    storage: FakeStorage, store: ObjectStore
) -> None:
    storage.answer = lambda _: Reply(200, {"x-amz-checksum-crc32": crc32(b"other")})
    with pytest.raises(StorageUnavailable, match="other bytes"):
        await store.put("bucket", "k", BytesBody(b"one"), HandFence())
