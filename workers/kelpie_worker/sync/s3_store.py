"""The S3 adapter: LIST, HEAD and the control of uploads in parts by aiobotocore, the rest by presigned requests.

botocore costs about a millisecond of CPU a request, and cannot be fenced while it sends; so whatever has a body, or
makes something visible, goes over ``kelpie_worker.sync.wire``.

Limits: each operation is tried a few times within some seconds; longer patience is the caller's.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from kelpie_celery.errors import StorageSetupError
from kelpie_celery.etags import etag_of_parts, looks_like_parts
from kelpie_worker.sync.answers import Answer
from kelpie_worker.sync.batches import Work
from kelpie_worker.sync.bodies import BytesBody
from kelpie_worker.sync.config import StorageConfig
from kelpie_worker.sync.direct import S3Direct, range_request
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.few_tries import few_tries
from kelpie_worker.sync.integrity import CRC32, Integrity, confirmed, with_crc32, with_md5
from kelpie_worker.sync.object_store import Body, Sink, StoredObject, UploadGone
from kelpie_worker.sync.request import Request
from kelpie_worker.sync.s3_errors import ChecksumRefused, ConnectionBroken, Doing, from_exception
from kelpie_worker.sync.s3_xml import completion, value_of
from kelpie_worker.sync.signing import StorageClock
from kelpie_worker.sync.threads import in_thread
from kelpie_worker.sync.wire import Lane, Wire

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

_PROBE = "kelpie"


class S3Store:
    """See ``kelpie_worker.sync.object_store.ObjectStore``."""

    def __init__(self, client: S3Client, wire: Wire, config: StorageConfig, clock: StorageClock) -> None:
        self._client, self._wire, self._config, self._clock = client, wire, config, clock
        # Without what may stand before an @.
        self._endpoint = urlsplit(config.endpoint_url or "").netloc.rpartition("@")[2]
        self._bases: dict[str, str] = {}
        self._integrity = Integrity()

    def _doing(self, what: str, bucket: str, key: str = "") -> Doing:
        return Doing(what, bucket, key, self._endpoint)

    # -- reading --------------------------------------------------------------------------------------------------

    async def list(self, bucket: str, prefix: str) -> AsyncIterator[StoredObject]:
        """All objects whose keys begin with ``prefix``."""
        doing = self._doing(f"listing {prefix!r}", bucket)
        more: dict[str, Any] = {"MaxKeys": self._config.page_keys}
        while True:
            page = await self._call(doing, partial(self._client.list_objects_v2, Bucket=bucket, Prefix=prefix, **more))
            for entry in page.get("Contents", ()):
                etag = entry.get("ETag", "").strip('"')
                yield StoredObject(entry["Key"], entry["Size"], etag, _seconds(entry.get("LastModified")))
            if not page.get("IsTruncated"):
                return
            more["ContinuationToken"] = page["NextContinuationToken"]

    async def head(self, bucket: str, key: str) -> StoredObject | None:
        """One object, or None."""
        found = await self._head(bucket, key)
        if found is None:
            return None
        etag, modified = found.get("ETag", "").strip('"'), _seconds(found.get("LastModified"))
        return StoredObject(key, found["ContentLength"], etag, modified)

    async def _head(self, bucket: str, key: str) -> dict[str, Any] | None:
        doing = self._doing("looking it up", bucket, key)
        try:
            found: dict[str, Any] = await self._call(doing, lambda: self._client.head_object(Bucket=bucket, Key=key))
        except StorageSetupError as error:
            if isinstance(error.__cause__, _NotThere):
                return None
            raise
        return found

    async def fetch(self, bucket: str, key: str, sink: Sink, *, etag: str, start_byte: int, length_bytes: int) -> None:
        """A range of an object; tried once, since what arrived has been handed over."""
        doing, timeout_s = self._doing("download", bucket, key), self._config.read_timeout_s
        request = range_request(
            doing, await self._base(bucket), timeout_s, sink=sink, etag=etag, start_byte=start_byte,
            length_bytes=length_bytes,
        )  # fmt: skip
        await self._wire.send(request)

    async def batch(self, buckets: Iterable[str], work: Work, fence: Fence | None) -> None:
        """Several small objects in one transfer thread; see ``batches``."""
        bases = {bucket: await self._base(bucket) for bucket in buckets}

        def run(lane: Lane) -> None:
            work(S3Direct(lane, bases, self._endpoint, self._config, self._integrity, fence))

        await self._wire.batch(run, fence)

    # -- what becomes visible at once -----------------------------------------------------------------------------

    async def put(self, bucket: str, key: str, body: Body, fence: Fence) -> StoredObject:
        """Store an object in one request."""
        answer = await self._send_body(self._doing("upload", bucket, key), body, {}, fence)
        return StoredObject(key, body.size_bytes, answer.etag)

    async def copy(self, bucket: str, key: str, source_key: str, fence: Fence) -> StoredObject:
        """Let the storage copy an object, and look what it made."""
        doing = self._doing(f"copy of {source_key!r}", bucket, key)
        request = Request(
            doing, "PUT", await self._base(bucket), self._config.complete_timeout_s, fence=fence,
            headers=_source(bucket, source_key),
        )  # fmt: skip
        await few_tries(lambda _: self._wire.send(request))
        found = await self.head(bucket, key)
        if found is None:
            raise doing.unavailable("it is not on the storage")
        return found

    async def delete(self, bucket: str, key: str, fence: Fence, *, forever: bool = False) -> None:
        """Delete an object, or its newest version."""
        query: dict[str, str] = {}
        if forever:
            found = await self._head(bucket, key)
            if found is None:
                return
            query = {"versionId": found["VersionId"]} if found.get("VersionId") else {}
        doing = self._doing("deleting", bucket, key)
        request = Request(
            doing, "DELETE", await self._base(bucket), self._config.read_timeout_s, fence=fence, query=query
        )
        await few_tries(lambda _: self._wire.send(request))

    # -- uploads in parts -----------------------------------------------------------------------------------------

    async def begin(self, bucket: str, key: str) -> str:
        """Begin an upload in parts."""
        doing = self._doing("beginning an upload", bucket, key)
        if self._integrity.crc32:
            try:
                answer = await self._call(
                    doing,
                    lambda: self._client.create_multipart_upload(Bucket=bucket, Key=key, ChecksumAlgorithm="CRC32"),
                )
            except ChecksumRefused as error:
                self._integrity.give_up_crc32(self._endpoint, str(error))
            else:
                self._integrity.began(str(answer["UploadId"]))
                return str(answer["UploadId"])
        answer = await self._call(doing, lambda: self._client.create_multipart_upload(Bucket=bucket, Key=key))
        return str(answer["UploadId"])

    async def put_part(self, bucket: str, key: str, upload_id: str, number: int, body: Body) -> str:
        """Send one part."""
        query = {"partNumber": str(number), "uploadId": upload_id}
        answer = await self._send_body(self._doing(f"upload of part {number}", bucket, key), body, query, None)
        self._integrity.note_part(upload_id, number, confirmed(answer))
        return answer.etag

    async def copy_part(
        self, bucket: str, key: str, upload_id: str, number: int, source_key: str, start_byte: int, length_bytes: int
    ) -> str:
        """Let the storage copy one part."""
        doing = self._doing(f"copy of {source_key!r} as part {number}", bucket, key)
        source_range = f"bytes={start_byte}-{start_byte + length_bytes - 1}"
        request = Request(
            doing, "PUT", await self._base(bucket), self._config.complete_timeout_s,
            query={"partNumber": str(number), "uploadId": upload_id},
            headers={**_source(bucket, source_key), "x-amz-copy-source-range": source_range},
        )  # fmt: skip
        answer = await few_tries(lambda _: self._wire.send(request))
        self._integrity.note_part(upload_id, number, value_of(answer.body, "ChecksumCRC32"))
        etag = value_of(answer.body, "ETag")
        if not etag:
            raise doing.unavailable("the storage did not say what it copied")
        return etag

    async def complete(
        self, bucket: str, key: str, upload_id: str, part_etags: Sequence[str], fence: Fence, *, size_bytes: int
    ) -> StoredObject:
        """Make an upload in parts visible, and look whether it is what was sent."""
        doing = self._doing("completing the upload", bucket, key)
        request = Request(
            doing, "POST", await self._base(bucket), self._config.complete_timeout_s, fence=fence,
            body=BytesBody(completion(part_etags, self._integrity.of_parts(upload_id))), query={"uploadId": upload_id},
        )  # fmt: skip

        async def once(_: object) -> None:
            try:
                await self._wire.send(request)
            except UploadGone:
                # An earlier try may have got through although its answer was lost.
                if not await self._is(bucket, key, part_etags, size_bytes):
                    raise

        await few_tries(once)
        self._integrity.ended(upload_id)
        found = await self.head(bucket, key)
        expected = etag_of_parts(part_etags)
        other = found is not None and (
            found.size_bytes != size_bytes or (expected and looks_like_parts(found.etag) and found.etag != expected)
        )
        if found is None or other:
            raise doing.unavailable("it is not on the storage as it was sent")
        return found

    async def _is(self, bucket: str, key: str, part_etags: Sequence[str], size_bytes: int) -> bool:
        found, expected = await self.head(bucket, key), etag_of_parts(part_etags)
        return found is not None and bool(expected) and (found.etag, found.size_bytes) == (expected, size_bytes)

    async def abort(self, bucket: str, key: str, upload_id: str) -> None:
        """Give up an upload in parts."""
        doing = self._doing("aborting an upload", bucket, key)
        self._integrity.ended(upload_id)
        with contextlib.suppress(UploadGone):
            await self._call(
                doing, lambda: self._client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)
            )

    # -- how ------------------------------------------------------------------------------------------------------

    async def _send_body(self, doing: Doing, body: Body, query: dict[str, str], fence: Fence | None) -> Answer:
        """PUT a body with a digest that the storage verifies."""
        request = Request(
            doing, "PUT", await self._base(doing.bucket), self._config.read_timeout_s, query=query, body=body,
            fence=fence,
        )  # fmt: skip
        if self._integrity.crc32:
            try:
                answer = await self._try_body(replace(request, seal=with_crc32))
            except ChecksumRefused as error:
                self._integrity.give_up_crc32(self._endpoint, str(error))
            else:
                told = confirmed(answer)
                if told and told != with_crc32(body)[CRC32]:
                    raise doing.unavailable("the storage says that it took other bytes")
                if told:
                    return answer
                self._integrity.give_up_crc32(self._endpoint, "it does not confirm them")
                if answer.etag == (await in_thread(body.md5)).hex():
                    return answer
                # It took the body without a look at the checksum: once more, with a digest that it looks at.
        return await self._try_body(replace(request, seal=with_md5))

    async def _try_body(self, request: Request) -> Answer:
        # A storage that refuses may close the connection so early that its reason is lost; then it is asked first.
        return await few_tries(
            lambda before: self._wire.send(replace(request, ask_first=isinstance(before, ConnectionBroken)))
        )

    async def _base(self, bucket: str) -> str:
        """The URL of a bucket; botocore knows whether the bucket goes into the host or the path."""
        if bucket not in self._bases:
            doing = self._doing("finding its address", bucket)
            url = await self._call(
                doing,
                lambda: self._client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": _PROBE}),
            )
            parts = urlsplit(url)
            self._bases[bucket] = f"{parts.scheme}://{parts.netloc}{parts.path.removesuffix('/' + _PROBE)}"
        return self._bases[bucket]

    async def _call(self, doing: Doing, call: Callable[[], Awaitable[Any]]) -> Any:
        """A call of aiobotocore's, tried a few times, its errors mapped."""

        async def once(_: object) -> Any:
            failure, cause = None, None
            try:
                answer = await call()
            except Exception as error:  # everything that botocore and aiohttp raise is mapped
                failure, cause = from_exception(doing, error), _not_there(error)
            else:
                if isinstance(answer, dict):
                    self._clock.learn(_header(answer, "date"))
                return answer
            raise failure from cause

        return await few_tries(once)


class _NotThere(Exception):
    """The cause of an error: the object asked for does not exist; its bucket may."""


def _not_there(error: Exception) -> _NotThere | None:
    answer = getattr(error, "response", None)
    if not isinstance(answer, dict):
        return None
    code = str(answer.get("Error", {}).get("Code", ""))
    return _NotThere() if code in {"404", "NoSuchKey", "NotFound"} else None


def _header(answer: dict[str, Any], name: str) -> str | None:
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    value = headers.get(name)
    return str(value) if value else None


def _source(bucket: str, key: str) -> dict[str, str]:
    """The header that names the source of a copy."""
    return {"x-amz-copy-source": f"/{bucket}/{quote(key, safe='/~')}"}


def _seconds(modified: datetime | None) -> float:
    return modified.timestamp() if modified else 0.0
