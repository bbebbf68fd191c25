"""A storage as the suites look at it: one bucket, and short ways to its keys and contents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kelpie_celery.patterns import compile_pattern
from kelpie_celery.transfers import Role, Stage
from kelpie_worker.sync.bodies import BytesBody
from kelpie_worker.sync.config import StorageConfig
from kelpie_worker.sync.object_store import ObjectStore
from kelpie_worker.sync.plan import Placed
from tests.contract.fakes_s3 import HandFence

Versions = Callable[[], list[str]]
"""The keys of all versions of objects that are there, hidden or not."""


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
        await self.store.fetch(
            self.bucket, key, data.extend, etag=found.etag, start_byte=0, length_bytes=found.size_bytes
        )
        return bytes(data)

    async def keys(self, prefix: str = "") -> list[str]:
        return sorted([found.key async for found in self.store.list(self.bucket, prefix)])

    def block(
        self, path: Path, prefix: str = "p/", *, role: Role = "checkpoint", stage: Stage = "during",
        pattern: str | None = None,
    ) -> Placed:  # fmt: skip
        compiled = compile_pattern(pattern) if pattern else None
        return Placed(stage, role, self.bucket, prefix, path, compiled)
