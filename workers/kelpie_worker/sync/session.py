"""Everything that one attempt does with files and storage, in the order of its life.

    async with SyncSession.open(...) as sync:
        marker = await sync.find_marker()
        await sync.restore()
        ...the command runs beside sync.watch()...
        await sync.commit("exit")
        if sync.move_outputs_aside(): the next job may start
        await sync.upload_outputs()
        await sync.write_marker(result)
        await sync.end_watch()
        sync.clean()

Limits: one attempt, one event loop. A job without storage never connects, and never imports aiobotocore.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kelpie_celery.clock import Clock, SystemClock
from kelpie_celery.definition import JobDefinition
from kelpie_celery.settings import Settings
from kelpie_worker.sync.commit import CommitReport, OnCommit, PlainCommit
from kelpie_worker.sync.config import StorageConfig
from kelpie_worker.sync.dirs import Aside, empty, prepare, remove_stale_asides
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.object_store import ObjectStore
from kelpie_worker.sync.outputs import OutputListing, Outputs
from kelpie_worker.sync.plan import Dirs, Plan, place
from kelpie_worker.sync.progress import Meter, OnProgress
from kelpie_worker.sync.records import Records, home_of
from kelpie_worker.sync.restore import GIVE_UP_S, PlainRestore, RestoreReport
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.store import open_store
from kelpie_worker.sync.threads import in_thread

log = logging.getLogger(__name__)

OpenStore = Callable[[], AbstractAsyncContextManager[ObjectStore]]


class SyncSession:
    """See the module; made by `open`, used as an async context manager."""

    def __init__(
        self, plan: Plan, settings: Settings, definition: JobDefinition, job_id: str, attempt: int, fence: Fence,
        scratch: Path, clock: Clock, open_store: OpenStore, on_commit: OnCommit | None, on_progress: OnProgress | None,
    ) -> None:  # fmt: skip
        self._plan, self._settings, self._definition = plan, settings, definition
        self._job_id, self._attempt, self._fence = job_id, attempt, fence
        self._clock, self._open_store = clock, open_store
        self._on_commit, self._on_progress = on_commit, on_progress
        self._scratch_home, self._scratch = scratch, scratch
        self._meter = Meter("attempt")
        self._stack = contextlib.AsyncExitStack()
        self._store: ObjectStore | None = None
        self._commit: PlainCommit | None = None
        self._records: Records | None = None
        self._aside: Aside | None = None
        self._listing = OutputListing()
        self._watching: asyncio.Future[None] | None = None

    @classmethod
    def open(
        cls, settings: Settings, definition: JobDefinition, *, job_id: str, attempt: int, fence: Fence, dirs: Dirs,
        scratch: Path, on_commit: OnCommit | None = None, on_progress: OnProgress | None = None,
        clock: Clock | None = None, store: OpenStore | None = None,
    ) -> SyncSession:  # fmt: skip
        """A session for one attempt.

        Args:
            settings: The worker's.
            definition: The job's.
            job_id: The job.
            attempt: The attempt's number.
            fence: The attempt's lease.
            dirs: The worker's directories.
            scratch: A folder that exists and is kelpie's own; emptied of what the session put there at its end.
            on_commit: Told of each checkpoint that became durable.
            on_progress: Told every ten seconds of a long transfer.
            clock: For times in reports, and to know the storage's time.
            store: Opens the storage; by default the one that the settings name.

        Raises:
            LocalPathError: A ``local_path`` must not be touched.
        """
        clock = clock or SystemClock()
        plan = place(definition, dirs, scratch)
        opener = store or partial(open_store, StorageConfig.from_settings(settings), clock)
        return cls(plan, settings, definition, job_id, attempt, fence, scratch, clock, opener, on_commit, on_progress)

    async def __aenter__(self) -> Self:
        if self._plan.blocks:
            self._scratch = Path(tempfile.mkdtemp(prefix="sync-", dir=self._scratch_home))
            self._stack.callback(shutil.rmtree, self._scratch, ignore_errors=True)
            try:
                await self._connect(await self._stack.enter_async_context(self._open_store()))
            except BaseException:
                await self._stack.aclose()
                raise
        return self

    async def _connect(self, store: ObjectStore) -> None:
        settings, home = self._settings, home_of(self._plan)
        self._store = store
        self._commit = PlainCommit(
            store, self._plan.during, self._fence, self._scratch, self._clock,
            compression=self._definition.compression, quiet_s=settings.settle_s,
            min_interval_s=settings.commit_interval_s, give_up_s=settings.storage_retry_s, meter=self._meter,
            on_commit=self._on_commit, on_progress=self._on_progress,
        )  # fmt: skip
        if home:
            self._records = Records(store, home, self._job_id, self._definition.digest(), self._plan.after)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.end_watch()
        finally:
            await self._stack.aclose()

    # -- what it knows --------------------------------------------------------------------------------------------

    @property
    def local_paths(self) -> list[Path]:
        """The directories that the attempt uses, resolved."""
        return self._plan.paths

    @property
    def commits(self) -> int:
        """Checkpoints that this attempt made durable."""
        return self._commit.commits if self._commit else 0

    @property
    def bytes_sent(self) -> int:
        """Bytes of files that were handed to the network."""
        return self._meter.done_bytes

    # -- before the command ---------------------------------------------------------------------------------------

    async def find_marker(self) -> dict[str, Any] | None:
        """The marker of an earlier attempt that completed; its ``result`` is what the job's result is to be.

        Raises:
            StorageError: The storage cannot be asked.
        """
        if self._records is None:
            return None
        return await Patience(GIVE_UP_S, "marker_waits").persist(self._records.read_marker)

    async def restore(self) -> RestoreReport:
        """Empty the job's directories, and fill those of the ``before`` blocks.

        Raises:
            StorageSetupError: See `kelpie_worker.sync.restore.Restore`.
            StorageUnavailable: Likewise.
            DiskFull: Likewise.
            LocalFileError: A directory cannot be made or emptied.
        """
        await in_thread(self._prepare)
        if self._store is None or self._commit is None:
            return RestoreReport()
        restorer = PlainRestore(self._store, compression=self._definition.compression, on_progress=self._on_progress)
        report = await restorer.restore(self._plan.before)
        await self._commit.prime(report)
        return report

    def _prepare(self) -> None:
        for directory in self._plan.roots:
            remove_stale_asides(directory)
        # Outputs of an earlier job must not be taken for this one's.
        for directory in self._plan.paths:
            prepare(directory)

    # -- beside the command ---------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Store checkpoints and outputs as they settle, until cancelled.

        Raises:
            StorageSetupError: The storage refuses for good.
            LeaseLost: The attempt lost its job.
        """
        if self._commit is None or not self._plan.during:
            await asyncio.Event().wait()
            return
        watching = self._watching = asyncio.ensure_future(self._commit.watch())
        try:
            await asyncio.shield(watching)
        except asyncio.CancelledError:
            # A checkpoint that is half sent when the command ends is not thrown away: the last commit waits for it.
            self._commit.wind_down()
            raise

    async def end_watch(self) -> None:
        """End what `watch` still does in the background, and wait until it has ended; call it before `clean`.

        Whatever it failed with, the last commit has met as well. No checkpoint is stored any more; what was moved aside
        may still go up.
        """
        if self._commit:
            self._commit.close()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    def request_commit(self) -> None:
        """The job says that its checkpoint is whole: store it now, and from now on only when it says so."""
        if self._commit:
            self._commit.request_commit()

    # -- after the command ----------------------------------------------------------------------------------------

    async def commit(self, why: str) -> CommitReport:
        """Store the last checkpoint, whole and verified.

        Raises:
            StorageError: It failed; see `kelpie_worker.sync.commit.Commit`.
            LocalFileError: A file cannot be read.
            LeaseLost: The attempt lost its job.
        """
        if self._commit is None or not self._plan.during:
            return CommitReport(why, 0, 0, 0, 0.0, self._clock.now())
        return await self._commit.commit(why)

    def move_outputs_aside(self) -> bool:
        """Free the job's directories for the next one, by renaming what they hold; quick.

        Returns:
            Whether that worked. If not, the directories are in use until `upload_outputs` is done and `clean` called.
        """
        if self._aside is None:
            if self._commit:
                self._commit.close()
            self._aside = Aside(self._plan.roots, self._scratch_home)
        return self._aside.moved

    async def upload_outputs(self) -> OutputListing:
        """Store everything that the ``after`` blocks' directories hold, verified, and a listing of it.

        Raises:
            StorageError: It failed; see `kelpie_worker.sync.outputs.Outputs.upload`.
            LocalFileError: A file cannot be read.
            LeaseLost: The attempt lost its job.
        """
        if self._store is None or self._commit is None or self._records is None or not self._plan.after:
            return self._listing
        outputs = Outputs(
            self._store, self._fence, self._commit.known, self._where, self._scratch, pack=self._definition.compression,
            give_up_s=self._settings.storage_retry_s, meter=self._meter, notices=self._commit.notices,
            on_progress=self._on_progress,
        )  # fmt: skip
        files = await outputs.upload(self._plan.after)
        listing = OutputListing(files, self._records.bucket, self._records.listing_key(self._attempt))
        write = partial(self._records.write_listing, listing, self._fence)
        await Patience(self._settings.storage_retry_s, "outputs_wait").persist(write)
        self._listing = listing
        return listing

    def _where(self, directory: Path) -> Path:
        return self._aside.where(directory) if self._aside else directory

    async def write_marker(self, result: dict[str, Any]) -> None:
        """Say on the storage that the job completed with ``result``; everything else must be stored.

        Raises:
            StorageError: It failed.
            LeaseLost: The attempt lost its job.
        """
        if self._records:
            write = partial(self._records.write_marker, self._attempt, result, self._listing, self._fence)
            await Patience(self._settings.storage_retry_s, "marker_waits").persist(write)

    def clean(self) -> None:
        """Delete what the job's directories hold; blocking, and safe to call at any time, more than once.

        What was moved aside is deleted there: the directories may be the next job's by now.
        """
        if self._commit:
            self._commit.close()
        if self._aside:
            self._aside.remove()
        if self._aside is None or not self._aside.moved:
            for directory in self._plan.paths:
                try:
                    empty(directory)
                except OSError as error:
                    log.warning(
                        "cannot empty a directory",
                        extra={"action": "clean_failed", "path": str(directory), "error": str(error)},
                    )
