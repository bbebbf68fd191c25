"""A storage as a person's commands use it: boto3, synchronous, one request after the other unless threads share it.

Workers have their own adapter (fenced, asyncio). boto3 is imported when the first request is made: it takes half a
second. As with workers, only the settings count: neither profiles nor files in ``~/.aws``.

Limits: botocore repeats a request a few times; content that breaks off on its way is the caller's to ask for again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kelpie_celery.checkpoints.storage_errors import mapped, no_credentials
from kelpie_celery.errors import StorageSetupError, StorageUnavailable
from kelpie_celery.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REQUESTS = 8
"""How many threads may share a storage; staging has as many again for the parts of large files."""
_CHUNK_BYTES = 256 * 1024
_TRIES = 5
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 10.0, 60.0
_DEFAULT_REGION = "us-east-1"
_MOST_DIGITS = 20


@dataclass(frozen=True)
class Found:
    """An object of a listing, or one version of one.

    Attributes:
        key: Its key.
        size_bytes: 0 for a delete marker.
        modified: Seconds since the epoch, by the storage.
        version: Its id on a versioned bucket; empty: whatever is there.
        is_marker: It is no content, but hides older versions.
        is_current: A listing without versions shows it.
        etag: Without its quotes; empty where versions were listed.
    """

    key: str
    size_bytes: int
    modified: float
    version: str = ""
    is_marker: bool = False
    is_current: bool = True
    etag: str = ""


class Storage:
    """One storage; may be shared by `REQUESTS` threads.

    Args:
        make: Makes the client, once.
    """

    def __init__(self, make: Callable[[], S3Client]) -> None:
        self._make, self._making = make, threading.Lock()
        self._client: S3Client | None = None

    def client(self) -> S3Client:
        """The client itself, for what needs more than this class gives; whoever uses it maps its errors."""
        return self._s3()

    def _s3(self) -> S3Client:
        with self._making:
            if self._client is None:
                self._client = self._make()
            return self._client

    def list(self, bucket: str, prefix: str) -> Iterator[Found]:
        """Every object under a prefix, in the order of keys.

        Raises:
            StorageError: The storage cannot be asked.
        """
        s3 = self._s3()
        with mapped("listing", bucket, prefix):
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
                for found in page.get("Contents", ()):
                    etag = found.get("ETag", "").strip('"')
                    yield Found(found["Key"], found["Size"], found["LastModified"].timestamp(), etag=etag)

    def versions(self, bucket: str, prefix: str) -> Iterator[Found]:
        """Every version of every object under a prefix, those that delete markers hide and the markers among them.

        Raises:
            StorageSetupError: The storage knows no versions, or does not let them be listed.
            StorageUnavailable: It is away.
        """
        s3 = self._s3()
        with mapped("listing versions", bucket, prefix):
            for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=prefix):
                for found in page.get("Versions", ()):
                    modified, version = found["LastModified"].timestamp(), found.get("VersionId", "")
                    yield Found(found["Key"], found["Size"], modified, version, is_current=found["IsLatest"])
                for marker in page.get("DeleteMarkers", ()):
                    modified = marker["LastModified"].timestamp()
                    yield Found(
                        marker["Key"], 0, modified, marker.get("VersionId", ""), is_marker=True, is_current=False
                    )

    def read(self, bucket: str, key: str, max_bytes: int) -> bytes | None:
        """A whole object; None when it does not exist.

        Raises:
            StorageSetupError: It is larger than that, or the storage refuses.
            StorageUnavailable: The storage is away.
        """
        s3 = self._s3()
        with mapped("reading", bucket, key):
            try:
                answer = s3.get_object(Bucket=bucket, Key=key)
            except s3.exceptions.NoSuchKey:
                return None
            if answer["ContentLength"] > max_bytes:
                answer["Body"].close()
                text = f"s3://{bucket}/{key} has {answer['ContentLength']} bytes, more than anything of kelpie's has"
                raise StorageSetupError(text, bucket=bucket, key=key)
            with closing(answer["Body"]) as body:
                return body.read()

    def fetch(
        self, bucket: str, key: str, start_byte: int, length_bytes: int, take: Callable[[memoryview], None],
        *, of_bytes: int | None = None,
    ) -> None:  # fmt: skip
        """A range of an object, as far as the object goes, handed over piece by piece.

        Args:
            bucket: The bucket.
            key: Of the object.
            start_byte: Where the range begins.
            length_bytes: How long it is.
            take: Keeps nothing of what it is given; what it raises passes, but for ``OSError``.
            of_bytes: How large the whole object is to be; one that was replaced by another size is not read.

        Raises:
            StorageSetupError: It does not exist or does not reach that far, or the storage refuses.
            StorageUnavailable: The storage is away, the content broke off, or the object has another size by now.
        """
        s3 = self._s3()
        with mapped("reading", bucket, key):
            range_ = f"bytes={start_byte}-{start_byte + length_bytes - 1}"
            answer = s3.get_object(Bucket=bucket, Key=key, Range=range_)
            # Not the body's own context: that gives the bare stream, which does not tell when it breaks off.
            with closing(answer["Body"]) as body:
                has_bytes = _whole_bytes(answer.get("ContentRange", ""))
                if of_bytes is not None and has_bytes is not None and has_bytes != of_bytes:
                    text = f"s3://{bucket}/{key} has {has_bytes} bytes now instead of {of_bytes}: it was replaced"
                    raise StorageUnavailable(f"{text} meanwhile; run it again", bucket=bucket, key=key)
                for chunk in body.iter_chunks(_CHUNK_BYTES):
                    take(memoryview(chunk))

    def put(self, bucket: str, key: str, data: bytes) -> str:
        """Store an object.

        Returns:
            The id of its version; empty on a bucket without versions.

        Raises:
            StorageError: It may be stored, or not.
        """
        s3 = self._s3()
        with mapped("writing", bucket, key):
            return s3.put_object(Bucket=bucket, Key=key, Body=data).get("VersionId", "")

    def delete(self, bucket: str, key: str, version: str = "") -> None:
        """Delete an object, or one version of it for ever; harmless when it does not exist.

        Raises:
            StorageError: It may be there still.
        """
        s3 = self._s3()
        with mapped("deleting", bucket, key):
            if version:
                s3.delete_object(Bucket=bucket, Key=key, VersionId=version)
            else:
                s3.delete_object(Bucket=bucket, Key=key)


def _whole_bytes(content_range: str) -> int | None:
    """The size of an object by what the storage says of a range of it: ``bytes 0-9/20``; None where it does not."""
    total = content_range.rpartition("/")[2]
    return int(total) if total.isascii() and total.isdigit() and len(total) < _MOST_DIGITS else None


def open_storage(settings: Settings) -> Storage:
    """The storage that the settings name; nothing is sent, and nothing imported, before the first request."""
    return Storage(lambda: _checked_client(settings))


def open_client(settings: Settings, *, tries: int = 1, read_timeout_s: float = 20.0) -> S3Client:
    """A boto3 client of that storage, for what `Storage` does not do.

    Args:
        settings: The settings.
        tries: How often a request is sent at most.
        read_timeout_s: For each read.

    Raises:
        StorageSetupError: There are no credentials, or the region is none.
    """
    return _checked_client(settings, tries, read_timeout_s)


def _checked_client(settings: Settings, tries: int = _TRIES, read_timeout_s: float = _READ_TIMEOUT_S) -> S3Client:
    bundle = os.environ.get("AWS_CA_BUNDLE")
    if bundle and not os.access(bundle, os.R_OK):
        raise StorageSetupError("AWS_CA_BUNDLE names no file that can be read; correct it", bucket="")
    from botocore.exceptions import InvalidRegionError  # noqa: PLC0415 -- half a second

    try:
        return _client(settings, tries, read_timeout_s)
    except InvalidRegionError:
        raise StorageSetupError("AWS_REGION is no name of a region; correct it", bucket="") from None


def _client(settings: Settings, tries: int, read_timeout_s: float) -> S3Client:
    if not settings.aws_access_key_id or not settings.aws_secret_access_key:
        raise no_credentials("")
    import boto3  # noqa: PLC0415 -- half a second
    import botocore.session  # noqa: PLC0415 -- as above
    from botocore.config import Config  # noqa: PLC0415 -- as above

    endpoint, token = settings.aws_endpoint_url, settings.aws_session_token
    config = Config(  # type: ignore[call-arg]  # the stubs lack ignore_configured_endpoint_urls
        signature_version="s3v4", connect_timeout=_CONNECT_TIMEOUT_S, read_timeout=read_timeout_s,
        retries={"total_max_attempts": tries, "mode": "standard"}, max_pool_connections=2 * REQUESTS,
        s3={"addressing_style": "path" if endpoint else "auto"}, ignore_configured_endpoint_urls=True,
        request_checksum_calculation="when_required", response_checksum_validation="when_required",
    )  # fmt: skip
    alone = {"profile": (None, None, None, None), "config_file": (None, None, os.devnull, None)}
    session = boto3.Session(
        settings.aws_access_key_id.get_secret_value(), settings.aws_secret_access_key.get_secret_value(),
        token.get_secret_value() if token else None, settings.aws_region or _DEFAULT_REGION,
        botocore_session=botocore.session.Session(session_vars=alone),
    )  # fmt: skip
    return session.client("s3", endpoint_url=endpoint, config=config)
