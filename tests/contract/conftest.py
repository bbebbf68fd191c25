"""Storages for the suites of the storage side: one in memory and a real server, one suite for both."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kelpie_celery.local.servers import SeaweedServer
from kelpie_worker.sync.store import open_store
from tests.contract.desk import Desk
from tests.contract.fakes_s3 import BatchingMemory, HandFence, MemoryStore
from tests.contract.shelf import Shelf, Versions, config_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.fixture
def fence() -> HandFence:
    return HandFence()


@pytest.fixture(scope="session")
def shelf_bucket(s3_server: SeaweedServer) -> str:
    """One bucket for all tests of this process: making one takes the server longer than emptying it."""
    bucket = f"shelf-{uuid.uuid4().hex[:8]}"
    s3_server.create_bucket(bucket)
    return bucket


@pytest.fixture
def versions(shelf: Shelf, request: pytest.FixtureRequest) -> Versions:
    """Lets the bucket, which is then this test's own, keep versions."""
    bucket = shelf.bucket
    if isinstance(shelf.store, MemoryStore):
        memory = shelf.store
        memory.versioned.add(bucket)
        return lambda: sorted([*memory.objects[bucket], *memory.versions[bucket]])
    s3: S3Client = request.getfixturevalue("s3")
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    return lambda: sorted(found["Key"] for found in s3.list_object_versions(Bucket=bucket).get("Versions", []))


@pytest.fixture(params=["memory", "seaweed"])
async def shelf(request: pytest.FixtureRequest, fence: HandFence) -> AsyncIterator[Shelf]:
    """A storage with an empty bucket."""
    if request.param == "memory":
        bucket = f"memory-{uuid.uuid4().hex[:8]}"
        yield Shelf(BatchingMemory(bucket), bucket, fence)
        return
    # Once it has kept versions and no longer does, SeaweedFS 4.48 answers 404 for keys that are stored again.
    own = "versions" in request.fixturenames
    bucket, s3 = request.getfixturevalue("s3_bucket" if own else "shelf_bucket"), request.getfixturevalue("s3")
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


@pytest.fixture
async def desk(shelf: Shelf, tmp_path: Path) -> Desk:
    """A machine, on a storage in memory and on a real one."""
    return Desk(tmp_path / "desk", shelf)


@pytest.fixture
async def of_memory(memory: MemoryStore, fence: HandFence, tmp_path: Path) -> Desk:
    """A machine on a storage in memory alone, which is ``memory``."""
    return Desk(tmp_path / "desk", Shelf(memory, "bucket", fence))
