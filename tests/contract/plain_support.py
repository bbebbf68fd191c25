"""An attempt with one checkpoint directory on any storage, and a look at what goes to its plain keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from kelpie_celery.definition import JobDefinition, parse_definition
from kelpie_celery.settings import load_settings
from kelpie_worker.sync import Dirs, SyncSession
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.object_store import Body, ObjectStore, StoredObject
from kelpie_worker.sync.progress import OnProgress
from tests.contract.fake_journal import MemoryLedger
from tests.contract.shelf import Shelf

MIB = 1024 * 1024


def is_plain(key: str) -> bool:
    return ".kelpie/" not in key


class Observed:
    """A storage of which is known what goes to plain keys; it can be told to misbehave.

    Attributes:
        sent: Bytes that were sent, by plain key.
        copied: Bytes that the storage copied, by plain key.
        asked: How often each operation was asked for.
        parts: The lengths of the parts of each upload, by number.
        before: Awaited before each operation on a plain key, told its name and the key.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.sent: Counter[str] = Counter()
        self.copied: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.parts: dict[str, dict[int, int]] = {}
        self.before: Callable[[str, str], Awaitable[None]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def _note(self, what: str, key: str) -> None:
        if is_plain(key):
            self.asked[what] += 1
            if self.before:
                await self.before(what, key)

    def _part(self, upload_id: str, number: int, length: int) -> None:
        self.parts.setdefault(upload_id, {})[number] = length

    async def put(self, bucket: str, key: str, body: Body, fence: Fence) -> StoredObject:
        await self._note("put", key)
        if is_plain(key):
            self.sent[key] += body.size_bytes
        return await self._store.put(bucket, key, body, fence)

    async def copy(self, bucket: str, key: str, source_key: str, fence: Fence) -> StoredObject:
        await self._note("copy", key)
        found = await self._store.copy(bucket, key, source_key, fence)
        self.copied[key] += found.size_bytes
        return found

    async def put_part(self, bucket: str, key: str, upload_id: str, number: int, body: Body) -> str:
        await self._note("put_part", key)
        self.sent[key] += body.size_bytes
        self._part(upload_id, number, body.size_bytes)
        return await self._store.put_part(bucket, key, upload_id, number, body)

    async def copy_part(
        self, bucket: str, key: str, upload_id: str, number: int, source_key: str, start_byte: int, length_bytes: int
    ) -> str:
        await self._note("copy_part", key)
        etag = await self._store.copy_part(bucket, key, upload_id, number, source_key, start_byte, length_bytes)
        self.copied[key] += length_bytes
        self._part(upload_id, number, length_bytes)
        return etag

    async def complete(
        self, bucket: str, key: str, upload_id: str, part_etags: Sequence[str], fence: Fence, *, size_bytes: int
    ) -> StoredObject:
        await self._note("complete", key)
        return await self._store.complete(bucket, key, upload_id, part_etags, fence, size_bytes=size_bytes)

    @property
    def sent_bytes(self) -> int:
        return sum(self.sent.values())


class Desk:
    """Attempts of one job with a checkpoint directory."""

    def __init__(self, shelf: Shelf, tmp_path: Path, prefix: str = "ck") -> None:
        self.shelf, self.prefix = shelf, prefix
        self.store = Observed(shelf.store)
        self.base, self.scratch = tmp_path / "work", tmp_path / "scratch"
        self.base.mkdir()
        self.scratch.mkdir()
        self.ledger = MemoryLedger()
        self.checkpoint = self.base / "ckpt"

    def job(
        self, *, after: bool = False, compression: bool = False, restored: str | None = None, **fields: str
    ) -> JobDefinition:
        block = {"bucket": self.shelf.bucket, "prefix": self.prefix, "local_path": "ckpt"}
        upload = {**block, "direction": "upload"}
        download = {**block, "direction": "download", **({"pattern": restored} if restored else {})}
        sync: dict[str, Any] = {"before": [download], "during": [{**upload, **fields}]}
        if after:
            sync["after"] = [upload]
        document = {"command": "true", "container_group_id": "g", "compression": compression, "sync": sync}
        return parse_definition(document)

    def open(
        self, definition: JobDefinition | None = None, *, attempt: int = 1, on_progress: OnProgress | None = None
    ) -> SyncSession:
        settings = load_settings({
            "KELPIE_REDIS_URL": "redis://127.0.0.1:1/0", "KELPIE_QUIET_S": "0.1", "KELPIE_COMMIT_INTERVAL_S": "0",
            "KELPIE_PLAIN_INTERVAL_S": "0", "KELPIE_STORAGE_RETRY_S": "10",
        })  # fmt: skip

        @asynccontextmanager
        async def store() -> AsyncIterator[ObjectStore]:
            yield cast("ObjectStore", self.store)

        token = self.ledger.claim("job", attempt)
        dirs = Dirs(self.base, self.base / "input", self.base / "output", self.checkpoint)
        return SyncSession.open(
            settings, definition or self.job(), token=token, journal=self.ledger.journal(token),
            fence=self.shelf.fence, dirs=dirs, scratch=self.scratch, store=store,
            on_progress=on_progress,
        )  # fmt: skip

    def write(self, name: str, data: bytes, *, append: bool = False) -> Path:
        path = self.checkpoint / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab" if append else "wb") as file:
            file.write(data)
        return path

    async def plain(self) -> dict[str, bytes]:
        keys = await self.shelf.keys(f"{self.prefix}/")
        return {key.removeprefix(f"{self.prefix}/"): await self.shelf.content(key) for key in keys}

    def local(self) -> dict[str, bytes]:
        files = [path for path in self.checkpoint.rglob("*") if path.is_file()]
        return {path.relative_to(self.checkpoint).as_posix(): path.read_bytes() for path in files}
