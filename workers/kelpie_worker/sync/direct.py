"""S3 as a batch of small files has it: blocking requests in the batch's own transfer thread.

Limits: nothing is tried twice, and what a storage does about checksums is found out elsewhere: where it does not
confirm one, this counts as failed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kelpie_worker.sync.answers import Answer
from kelpie_worker.sync.config import StorageConfig
from kelpie_worker.sync.exchange import Request
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.integrity import CRC32, Integrity, confirmed, with_crc32, with_md5
from kelpie_worker.sync.object_store import Body, Sink, StoredObject
from kelpie_worker.sync.s3_errors import Doing


def range_request(
    doing: Doing, base_url: str, sink: Sink, timeout_s: float, *, etag: str, start_byte: int, length_bytes: int
) -> Request:
    """GET for a range of an object that must not have changed."""
    headers = {"If-Match": f'"{etag}"'} if etag else {}
    if length_bytes:
        headers["Range"] = f"bytes={start_byte}-{start_byte + length_bytes - 1}"
    return Request(doing, "GET", base_url, timeout_s, plain=headers, sink=sink, length_bytes=length_bytes)


class S3Direct:
    """See ``kelpie_worker.sync.batches.Direct``.

    Args:
        send: Sends a request.
        bases: The URLs of the buckets.
        endpoint: For messages.
        config: The storage.
        integrity: What is known of it.
        fence: Of the attempt.
        least_trust_s: With less trust nothing is begun.
    """

    def __init__(
        self, send: Callable[[Request], Answer], bases: Mapping[str, str], endpoint: str, config: StorageConfig,
        integrity: Integrity, fence: Fence | None, least_trust_s: float,
    ) -> None:  # fmt: skip
        self._send, self._bases, self._endpoint, self._config = send, bases, endpoint, config
        self._integrity, self._fence, self._least_trust_s = integrity, fence, least_trust_s

    def fetch(self, bucket: str, key: str, sink: Sink, *, etag: str, start_byte: int, length_bytes: int) -> None:
        """A range of an object."""
        doing = Doing("download", bucket, key, self._endpoint)
        self._send(
            range_request(
                doing,
                self._bases[bucket],
                sink,
                self._config.read_timeout_s,
                etag=etag,
                start_byte=start_byte,
                length_bytes=length_bytes,
            )
        )  # fmt: skip

    def put(self, bucket: str, key: str, body: Body) -> StoredObject:
        """Store an object in one request, with a digest that the storage verifies."""
        doing = Doing("upload", bucket, key, self._endpoint)
        if self._fence is None:
            raise ValueError("a batch without a fence stores nothing")
        if self._fence.remaining_s() < self._least_trust_s:
            raise doing.unavailable("the lease has to be renewed first")
        with_crc = self._integrity.crc32
        answer = self._send(
            Request(
                doing,
                "PUT",
                self._bases[bucket],
                self._config.read_timeout_s,
                body=body,
                fence=self._fence,
                seal=with_crc32 if with_crc else with_md5,
            )
        )  # fmt: skip
        if with_crc and confirmed(answer) != with_crc32(body)[CRC32]:
            raise doing.unavailable("the storage does not confirm what it took")
        return StoredObject(key, body.size_bytes, answer.etag)
