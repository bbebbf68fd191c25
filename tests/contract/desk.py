"""Attempts of jobs as the suites of the storage side run them: a session over a storage and a ledger in memory.

A `Desk` is one machine. What it commits is looked at by restoring it into a folder that no attempt knows of.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kelpie_celery.checkpoints import content, layout
from kelpie_celery.checkpoints.manifest import Extent, FileEntry, Header, Manifest, encode
from kelpie_celery.clock import Clock
from kelpie_celery.definition import JobDefinition, parse_definition
from kelpie_celery.errors import KelpieError
from kelpie_celery.ledger.types import CommitEntry, LineAddress, NewCommit
from kelpie_celery.settings import load_settings
from kelpie_worker.sync import CommitReport, Dirs, RestoreReport, SyncSession
from kelpie_worker.sync.checkpoints import Checkpoints
from kelpie_worker.sync.committed import CommittedRestore
from kelpie_worker.sync.manifests import Manifests
from kelpie_worker.sync.object_store import ObjectStore
from kelpie_worker.sync.plan import Placed
from kelpie_worker.sync.progress import Meter
from kelpie_worker.sync.retry import Patience
from tests.contract.fake_journal import MemoryLedger
from tests.contract.shelf import Shelf

JOB = "3c6a2a10-7f2b-4f8e-9f43-2f1b7a1f0a11"
MIB = 1024 * 1024
SETTINGS = {
    "KELPIE_REDIS_URL": "redis://127.0.0.1:1/0", "KELPIE_QUIET_S": "0.1", "KELPIE_COMMIT_INTERVAL_S": "0",
    "KELPIE_STORAGE_RETRY_S": "10", "KELPIE_GC_GRACE_S": "100",
}  # fmt: skip


def job(**more: Any) -> JobDefinition:
    return parse_definition({"command": "true", "container_group_id": "g", **more})


def tree(directory: Path) -> dict[str, bytes]:
    """The regular files below a directory."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def said(caplog: Any, action: str) -> list[Any]:
    """What was logged under an action."""
    return [record for record in caplog.records if getattr(record, "action", "") == action]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what nothing tells of."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def cancelled(task: asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class Desk:
    """One machine, with its directories; attempts of any jobs run there one after the other.

    Attributes:
        ck: The directory of the checkpoint.
        reports: Of each commit that was made here.
        ledger: What all machines share.
    """

    def __init__(self, home: Path, shelf: Shelf, ledger: MemoryLedger | None = None) -> None:
        self.home, self.shelf, self.fence, self.bucket = home, shelf, shelf.fence, shelf.bucket
        self.ledger = ledger or MemoryLedger()
        self.work, self.scratch = home / "work", home / "scratch"
        for folder in (self.work, self.scratch):
            folder.mkdir(parents=True)
        self.ck = self.work / "ckpt"
        self.dirs = Dirs(self.work, self.work / "input", self.work / "output", self.ck)
        self.reports: list[CommitReport] = []
        self.report = RestoreReport()
        self.clock: Clock | None = None
        self._news = asyncio.Event()
        self._attempts = 0

    # -- definitions --------------------------------------------------------------------------------------------------

    def block(self, prefix: str = "ck", path: str = "ckpt", *, down: bool = False, **more: Any) -> dict[str, Any]:
        direction = "download" if down else "upload"
        return {"bucket": self.bucket, "prefix": prefix, "local_path": path, "direction": direction, **more}

    def checkpoint(self, *, compression: bool = False, before: dict[str, Any] | None = None, **during: Any) -> Any:
        """A job that restores from and commits to one prefix."""
        blocks = {"before": [self.block(down=True, **(before or {}))], "during": [self.block(**during)]}
        return job(sync=blocks, compression=compression)

    # -- attempts -----------------------------------------------------------------------------------------------------

    def open(
        self, definition: JobDefinition | None = None, attempt: int | None = None, *, job_id: str = JOB,
        nonce: str = "", **settings: Any,
    ) -> SyncSession:  # fmt: skip
        """The next attempt of a job, which owns it from now on."""
        self._attempts = attempt or self._attempts + 1
        token = self.ledger.claim(job_id, self._attempts, nonce)

        @asynccontextmanager
        async def store() -> AsyncIterator[ObjectStore]:
            yield self.shelf.store

        values = SETTINGS | {f"KELPIE_{name.upper()}": str(value) for name, value in settings.items()}
        return SyncSession.open(
            load_settings(values), definition or self.checkpoint(), token=token, journal=self.ledger.journal(token),
            fence=self.fence, dirs=self.dirs, scratch=self.scratch, on_commit=self._note, clock=self.clock, store=store,
        )  # fmt: skip

    async def _note(self, report: CommitReport) -> None:
        self.reports.append(report)
        self._news.set()

    @asynccontextmanager
    async def attempt(
        self, definition: JobDefinition | None = None, number: int | None = None, *, job_id: str = JOB, nonce: str = "",
        **settings: Any,
    ) -> AsyncIterator[SyncSession]:  # fmt: skip
        """An attempt that has restored, and cleans up behind itself."""
        async with self.open(definition, number, job_id=job_id, nonce=nonce, **settings) as sync:
            self.report = await sync.restore()
            try:
                yield sync
            finally:
                await sync.end_watch()
                await asyncio.to_thread(sync.clean)

    @asynccontextmanager
    async def watching(
        self, sync: SyncSession, processes: Callable[[], Sequence[int]] = list
    ) -> AsyncIterator[asyncio.Task[None]]:
        """The time in which the command runs."""
        task = asyncio.create_task(sync.watch(processes))
        try:
            yield task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, KelpieError):
                await task

    async def next_report(self) -> CommitReport:
        async with asyncio.timeout(20):
            await self._news.wait()
        self._news.clear()
        return self.reports[-1]

    def write(
        self, name: str, data: bytes | bytearray = b"x", mtime: float | None = None, *, at: Path | None = None
    ) -> Path:
        path = (at or self.ck) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if mtime is not None:
            os.utime(path, (mtime, mtime))
        return path

    # -- what a worker that lies may do -------------------------------------------------------------------------------

    async def plant(self, **what: Any) -> None:
        """A commit as a worker that lies might make it, accepted by the ledger."""
        token = self.ledger.claim(JOB, 1)
        id_ = layout.commit_id(1, 1, token.nonce)
        header = Header(id_, 1, JOB, 1, "quiet", 0.0, ((self.bucket, "ck/"),))
        manifest, data = encode(Manifest(header, layout.manifest_key("ck/", id_), **what), None)
        await self.shelf.seed(manifest.key, data)
        new = NewCommit(self.address(), id_, 1, manifest.key, "quiet", len(manifest.files), 0, 0)
        await self.ledger.journal(token).commit([new], {})
        self._attempts = 1

    async def planted(self, data: bytes = b"evil", key: str = "ck.kelpie/data/evil", **changes: Any) -> FileEntry:
        """A file's entry whose content is on the storage."""
        await self.shelf.seed(key, data)
        extent = Extent(key, 0, len(data), len(data), content.RAW, content.digest(data))._replace(**changes)
        return FileEntry(extent.length, 0o644, 0, (extent,))

    # -- what is there ------------------------------------------------------------------------------------------------

    def address(self, prefix: str = "ck/") -> LineAddress:
        return LineAddress("", self.bucket, prefix)

    def kept(self, prefix: str = "ck/") -> list[CommitEntry]:
        return list(self.ledger.line(self.address(prefix)).kept)

    async def manifest(self, prefix: str = "ck/") -> Manifest:
        """That of the ledger's head."""
        key = self.kept(prefix)[-1].manifest
        found = await Manifests(self.shelf.store, self.bucket).load(key)
        assert found is not None, f"{key} is not there"
        return found

    async def restored_into(self, target: Path, prefix: str = "ck/") -> None:
        """Bring the ledger's head into a folder."""
        block = Placed("before", "checkpoint", self.bucket, prefix, target)
        restore = CommittedRestore(self.shelf.store, Patience(0.0, "test"), Meter("test"))
        await restore.restore([(block, await self.manifest(prefix))], {})

    async def committed(self, prefix: str = "ck/") -> dict[str, bytes]:
        """The files of the ledger's head."""
        with tempfile.TemporaryDirectory(dir=self.home) as folder:
            await self.restored_into(Path(folder) / "back", prefix)
            return tree(Path(folder) / "back")

    async def plain(self, prefix: str = "ck/") -> dict[str, bytes]:
        """What lies under the plain keys of a prefix."""
        return {key.removeprefix(prefix): await self.shelf.content(key) for key in await self.shelf.keys(prefix)}

    async def segments(self, prefix: str = "ck") -> list[str]:
        return await self.shelf.keys(f"{prefix}.kelpie/data/")

    async def manifests(self, prefix: str = "ck") -> list[str]:
        return await self.shelf.keys(f"{prefix}.kelpie/commits/")


def parts(sync: SyncSession) -> Checkpoints:
    """What a session is put together of, for what nobody but a test reaches into."""
    assert sync._checkpoints is not None
    return sync._checkpoints


def is_proven(sync: SyncSession) -> bool:
    """Whether what the disk holds was seen to be quiet."""
    watch = parts(sync)._watch
    return watch._times.is_proven and watch._proven == watch._look()
