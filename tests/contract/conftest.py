"""Storages for the suites of the storage side: one in memory and a real server, one suite for both."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kelpie_celery.local.servers import SeaweedServer
from kelpie_celery.patterns import compile_pattern
from kelpie_celery.transfers import Role, Stage
from kelpie_worker.sync.bodies import BytesBody
from kelpie_worker.sync.config import StorageConfig
from kelpie_worker.sync.object_store import ObjectStore
from kelpie_worker.sync.plan import Placed
from kelpie_worker.sync.store import open_store
from tests.contract.fakes_s3 import HandFence, MemoryStore


def config_of(env: dict[str, str], **changes: int) -> StorageConfig:
    """The configuration of a local server."""
    return StorageConfig(
        endpoint_url=env["AWS_ENDPOINT_URL"],
        access_key=env["AWS_ACCESS_KEY_ID"],
        secret_key=env["AWS_SECRET_ACCESS_KEY"],
        **changes,  # type: ignore[arg-type]  # all of the tests' are numbers
    )


@dataclass
class Shelf:
    """A storage with an empty bucket, and short ways to look at it."""

    store: ObjectStore
    bucket: str
    fence: HandFence

    async def seed(self, key: str, data: bytes = b"") -> None:
        await self.store.put(self.bucket, key, BytesBody(data), HandFence())

    async def content(self, key: str) -> bytes:
        found = await self.store.head(self.bucket, key)
        assert found is not None, f"{key} is not there"
        data = bytearray()

        async def take(chunk: bytes) -> None:
            data.extend(chunk)

        await self.store.fetch(self.bucket, key, take, etag=found.etag, start_byte=0, length_bytes=found.size_bytes)
        return bytes(data)

    async def keys(self, prefix: str = "") -> list[str]:
        return sorted([found.key async for found in self.store.list(self.bucket, prefix)])

    def block(
        self, path: Path, prefix: str = "p/", *, role: Role = "checkpoint", stage: Stage = "during",
        pattern: str | None = None,
    ) -> Placed:  # fmt: skip
        compiled = compile_pattern(pattern) if pattern else None
        return Placed(stage, role, self.bucket, prefix, path, compiled)


@pytest.fixture
def fence() -> HandFence:
    return HandFence()


@pytest.fixture(scope="session")
def shelf_bucket(s3_server: SeaweedServer) -> str:
    """One bucket for all tests of this process: making one takes the server longer than emptying it."""
    bucket = f"shelf-{uuid.uuid4().hex[:8]}"
    s3_server.create_bucket(bucket)
    return bucket


@pytest.fixture(params=["memory", "seaweed"])
async def shelf(request: pytest.FixtureRequest, fence: HandFence) -> AsyncIterator[Shelf]:
    """A storage with an empty bucket."""
    if request.param == "memory":
        bucket = f"memory-{uuid.uuid4().hex[:8]}"
        yield Shelf(MemoryStore(bucket), bucket, fence)
        return
    bucket, s3 = request.getfixturevalue("shelf_bucket"), request.getfixturevalue("s3")
    async with open_store(config_of(request.getfixturevalue("s3_server").env(), page_keys=50)) as store:
        shelf = Shelf(store, bucket, fence)
        yield shelf
        keys = [{"Key": key} for key in await shelf.keys()]
    for start in range(0, len(keys), 1000):
        s3.delete_objects(Bucket=bucket, Delete={"Objects": keys[start : start + 1000]})


@pytest.fixture
def memory() -> MemoryStore:
    """A storage in memory, for what a real server cannot be brought to do."""
    return MemoryStore("bucket")
