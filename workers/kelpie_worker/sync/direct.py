"""S3 as a batch of small files has it: blocking requests in the batch's own transfer thread.

Limits: nothing is tried twice, and what a storage does about checksums is found out elsewhere: where it does not
confirm one, this counts as failed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence

from kelpie_worker.sync.config import StorageConfig
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.integrity import CRC32, Integrity, confirmed, with_crc32, with_md5
from kelpie_worker.sync.object_store import Body, Sink, StoredObject
from kelpie_worker.sync.request import Request
from kelpie_worker.sync.s3_errors import Doing
from kelpie_worker.sync.wire import Lane


def range_request(
    doing: Doing, base_url: str, timeout_s: float, *, etag: str, start_byte: int, length_bytes: int,
    sink: Sink | None = None,
) -> Request:  # fmt: skip
    """GET for a range of an object that must not have changed."""
    headers = {"If-Match": f'"{etag}"'} if etag else {}
    if length_bytes:
        headers["Range"] = f"bytes={start_byte}-{start_byte + length_bytes - 1}"
    return Request(doing, "GET", base_url, timeout_s, plain=headers, sink=sink, length_bytes=length_bytes)


class S3Direct:
    """See ``kelpie_worker.sync.batches.Direct``.

    Args:
        lane: Sends requests.
        bases: The URLs of the buckets.
        endpoint: For messages.
        config: The storage.
        integrity: What is known of it.
        fence: Of the attempt.
    """

    def __init__(
        self, lane: Lane, bases: Mapping[str, str], endpoint: str, config: StorageConfig, integrity: Integrity,
        fence: Fence | None,
    ) -> None:  # fmt: skip
        self._lane, self._bases, self._endpoint, self._config = lane, bases, endpoint, config
        self._integrity, self._fence = integrity, fence

    def fetch_each(
        self, bucket: str, wanted: Sequence[StoredObject], arrived: Callable[[int], None]
    ) -> Generator[memoryview, None, None]:
        """Whole objects, in order."""
        base_url, timeout_s = self._bases[bucket], self._config.read_timeout_s
        requests = []
        for one in wanted:
            doing = Doing("download", bucket, one.key, self._endpoint)
            request = range_request(
                doing, base_url, timeout_s, etag=one.etag, start_byte=0, length_bytes=one.size_bytes
            )
            requests.append((request, one.etag))
        return self._lane.bodies(requests, arrived)

    def put(self, bucket: str, key: str, body: Body) -> StoredObject:
        """Store an object in one request, with a digest that the storage verifies."""
        doing = Doing("upload", bucket, key, self._endpoint)
        if self._fence is None:
            raise ValueError("a batch without a fence stores nothing")
        if self._fence.remaining_s() < self._lane.least_trust_s:
            raise doing.unavailable("the lease has to be renewed first")
        with_crc = self._integrity.crc32
        answer = self._lane.send(
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
