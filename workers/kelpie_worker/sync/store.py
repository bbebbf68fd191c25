"""The S3 adapter: LIST, HEAD and the control of uploads in parts by aiobotocore, bodies by presigned requests.

botocore costs about a millisecond of CPU a request, and cannot be fenced while it sends; so whatever has a body, or
makes something visible, goes over ``kelpie_worker.sync.wire``. aiobotocore is imported when a store is opened: it takes
half a second, which a job without storage need not pay.

Limits: each operation is tried a few times within some seconds; longer patience is the caller's.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import os
import re
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from kelpie_celery.clock import Clock, SystemClock
from kelpie_celery.errors import StorageSetupError, StorageUnavailable
from kelpie_worker.sync.bodies import BytesBody
from kelpie_worker.sync.config import StorageConfig
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.object_store import Body, ObjectChanged, ObjectStore, Sink, StoredObject, UploadGone
from kelpie_worker.sync.s3_errors import ConnectionBroken, Doing, from_exception
from kelpie_worker.sync.signing import StorageClock

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

    from kelpie_worker.sync.wire import Wire

T = TypeVar("T")

_TRIES = 4
_MD5 = re.compile(r"[0-9a-f]{32}")
_PROBE = "kelpie"
_loading = threading.Lock()


@asynccontextmanager
async def open_store(config: StorageConfig, clock: Clock | None = None) -> AsyncIterator[ObjectStore]:
    """An open S3 store; nothing is sent yet."""
    # With awscrt installed botocore would switch to its slower signer.
    os.environ.setdefault("BOTO_DISABLE_CRT", "true")
    from aiobotocore.config import AioConfig  # noqa: PLC0415 -- see the module's docstring
    from aiobotocore.session import AioSession  # noqa: PLC0415

    from kelpie_worker.sync.wire import Wire  # noqa: PLC0415

    if not config.access_key or not config.secret_key:
        raise StorageSetupError(
            "the storage cannot be reached without credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            bucket="",
        )
    # A profile or a file of the machine's, which belongs to a stranger, has no say in where the data goes.
    session = AioSession({"profile": (None, None, None, None), "config_file": (None, None, os.devnull, None)})
    session.register_component("data_loader", _loader())
    client = session.create_client(
        "s3", endpoint_url=config.endpoint_url, region_name=config.region,
        aws_access_key_id=config.access_key, aws_secret_access_key=config.secret_key,
        aws_session_token=config.session_token,
        config=AioConfig(
            signature_version="s3v4", connect_timeout=config.connect_timeout_s, read_timeout=config.read_timeout_s,
            # A name of a bucket before an endpoint of the user's own rarely resolves.
            s3={"addressing_style": "path" if config.endpoint_url else "auto"}, max_pool_connections=config.requests,
            retries={"total_max_attempts": 1}, request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )  # fmt: skip
    storage_clock = StorageClock(clock or SystemClock())
    tls = _tls(session.get_config_variable("ca_bundle")) if _is_tls(config) else None
    async with client as s3, Wire(config, storage_clock, tls) as wire:
        yield S3Store(s3, wire, config, storage_clock)


def _is_tls(config: StorageConfig) -> bool:
    return config.endpoint_url is None or config.endpoint_url.startswith("https")


@functools.cache
def _tls(bundle: str | None) -> ssl.SSLContext:
    """Trust whom botocore trusts (``AWS_CA_BUNDLE``, else its own list): a slim image may have no other list."""
    from botocore.httpsession import get_cert_path  # noqa: PLC0415

    return ssl.create_default_context(cafile=bundle or get_cert_path(verify=True))


def _loader() -> Any:
    """The descriptions of S3 that botocore works by, for all attempts: reading them takes a quarter of a second.

    A loader only reads and remembers, except that the first look at a service's model amends it; so that look is
    made here, alone.
    """
    with _loading:
        return _new_loader()


@functools.cache
def _new_loader() -> Any:
    from botocore.loaders import Loader  # noqa: PLC0415

    # Not ~/.aws/models of the machine's.
    loader = Loader([Loader.BUILTIN_DATA_PATH], include_default_search_paths=False)
    loader.load_service_model("s3", "service-2", api_version=None)
    return loader


class S3Store:
    """See ``kelpie_worker.sync.object_store.ObjectStore``."""

    def __init__(self, client: S3Client, wire: Wire, config: StorageConfig, clock: StorageClock) -> None:
        self._client, self._wire, self._config, self._clock = client, wire, config, clock
        # Without what may stand before an @.
        self._endpoint = urlsplit(config.endpoint_url or "").netloc.rpartition("@")[2]
        self._bases: dict[str, str] = {}

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
                yield StoredObject(entry["Key"], entry["Size"], entry.get("ETag", "").strip('"'))
            if not page.get("IsTruncated"):
                return
            more["ContinuationToken"] = page["NextContinuationToken"]

    async def head(self, bucket: str, key: str) -> StoredObject | None:
        """One object, or None."""
        doing = self._doing("looking it up", bucket, key)
        try:
            found = await self._call(doing, lambda: self._client.head_object(Bucket=bucket, Key=key))
        except StorageSetupError as error:
            if isinstance(error.__cause__, _NotThere):
                return None
            raise
        return StoredObject(key, found["ContentLength"], found["ETag"].strip('"'))

    async def fetch(self, bucket: str, key: str, sink: Sink, *, etag: str, start_byte: int, length_bytes: int) -> None:
        """A range of an object; tried once, since what arrived has been handed over."""
        headers = {"If-Match": f'"{etag}"'}
        if length_bytes:
            headers["Range"] = f"bytes={start_byte}-{start_byte + length_bytes - 1}"
        doing = self._doing("download", bucket, key)
        await self._wire.fetch(doing, await self._base(bucket), sink, headers=headers, length_bytes=length_bytes)

    # -- what becomes visible at once -----------------------------------------------------------------------------

    async def put(self, bucket: str, key: str, body: Body, fence: Fence) -> StoredObject:
        """Store an object in one request."""
        etag = await self._send_body(self._doing("upload", bucket, key), body, {}, fence)
        return StoredObject(key, body.size_bytes, etag)

    async def delete(self, bucket: str, key: str, fence: Fence) -> None:
        """Delete an object."""
        base_url = await self._base(bucket)
        doing = self._doing("deleting", bucket, key)
        await _few_tries(lambda _: self._wire.send(doing, "DELETE", base_url, fence=fence))

    # -- uploads in parts -----------------------------------------------------------------------------------------

    async def begin(self, bucket: str, key: str) -> str:
        """Begin an upload in parts."""
        doing = self._doing("beginning an upload", bucket, key)
        answer = await self._call(doing, lambda: self._client.create_multipart_upload(Bucket=bucket, Key=key))
        return str(answer["UploadId"])

    async def put_part(self, bucket: str, key: str, upload_id: str, number: int, body: Body) -> str:
        """Send one part."""
        query = {"partNumber": str(number), "uploadId": upload_id}
        return await self._send_body(self._doing(f"upload of part {number}", bucket, key), body, query, None)

    async def complete(
        self, bucket: str, key: str, upload_id: str, part_etags: Sequence[str], fence: Fence
    ) -> StoredObject:
        """Make an upload in parts visible, and look whether it is what was sent."""
        doing = self._doing("completing the upload", bucket, key)
        base_url = await self._base(bucket)
        body = BytesBody(_completion(part_etags))

        async def once(_: object) -> None:
            try:
                await self._wire.send(
                    doing, "POST", base_url, body=body, fence=fence, query={"uploadId": upload_id},
                    timeout_s=self._config.complete_timeout_s,
                )  # fmt: skip
            except UploadGone:
                # An earlier try may have got through although its answer was lost.
                if not await self._is(bucket, key, part_etags):
                    raise

        await _few_tries(once)
        found = await self.head(bucket, key)
        expected = _etag_of_parts(part_etags)
        if found is None or (expected and _looks_like_parts(found.etag) and found.etag != expected):
            raise doing.unavailable("it is not on the storage as it was sent")
        return found

    async def _is(self, bucket: str, key: str, part_etags: Sequence[str]) -> bool:
        found = await self.head(bucket, key)
        return found is not None and found.etag == _etag_of_parts(part_etags)

    async def abort(self, bucket: str, key: str, upload_id: str) -> None:
        """Give up an upload in parts."""
        doing = self._doing("aborting an upload", bucket, key)
        with contextlib.suppress(UploadGone):
            await self._call(
                doing, lambda: self._client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)
            )

    # -- how ------------------------------------------------------------------------------------------------------

    async def _send_body(self, doing: Doing, body: Body, query: dict[str, str], fence: Fence | None) -> str:
        base_url = await self._base(doing.bucket)
        headers = {"Content-MD5": base64.b64encode(body.md5).decode()}
        answer = await _few_tries(
            lambda before: self._wire.send(
                doing,
                "PUT",
                base_url,
                body=body,
                fence=fence,
                query=query,
                headers=headers,
                ask_first=isinstance(before, ConnectionBroken),
            )
        )
        return answer.etag

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

        return await _few_tries(once)


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


async def _few_tries(operation: Callable[[BaseException | None], Awaitable[T]]) -> T:
    """Try ``operation`` a few times; it is given what the try before ended with."""
    before: BaseException | None = None

    async def once() -> T:
        nonlocal before
        try:
            return await operation(before)
        except StorageUnavailable as error:
            before = error
            raise

    retrying = AsyncRetrying(
        retry=retry_if_exception(_worth_another_try), stop=stop_after_attempt(_TRIES), reraise=True,
        wait=wait_random_exponential(multiplier=0.2, max=2.0), before_sleep=_ignore,
    )  # fmt: skip
    return await retrying(once)


def _worth_another_try(error: BaseException) -> bool:
    return isinstance(error, StorageUnavailable) and not isinstance(error, ObjectChanged | UploadGone)


def _ignore(_: RetryCallState) -> None:
    """The first tries are nobody's business."""


def _completion(part_etags: Sequence[str]) -> bytes:
    parts = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>&quot;{etag}&quot;</ETag></Part>"
        for number, etag in enumerate(part_etags, 1)
    )
    return f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()


def _etag_of_parts(part_etags: Sequence[str]) -> str:
    """The ETag that S3 gives to an object made of parts; empty where the parts' own are no MD5 digests."""
    if not all(_MD5.fullmatch(etag) for etag in part_etags):
        return ""
    joined = b"".join(bytes.fromhex(etag) for etag in part_etags)
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(part_etags)}"


def _looks_like_parts(etag: str) -> bool:
    digest, _, count = etag.partition("-")
    return bool(_MD5.fullmatch(digest)) and count.isdigit()
