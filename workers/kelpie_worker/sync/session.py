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
from kelpie_celery.ledger.types import FencingToken
from kelpie_celery.listings import OutputListing
from kelpie_celery.settings import Settings
from kelpie_worker.sync.cached_inputs import cache_directories
from kelpie_worker.sync.checkpoints import Checkpoints
from kelpie_worker.sync.commit import CommitReport, OnCommit
from kelpie_worker.sync.config import StorageConfig
from kelpie_worker.sync.dirs import Aside, empty, prepare, remove_stale_asides
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.journal import Journal
from kelpie_worker.sync.log_upload import composed, send_log
from kelpie_worker.sync.object_store import ObjectStore
from kelpie_worker.sync.order import UNKNOWN
from kelpie_worker.sync.outputs import Outputs
from kelpie_worker.sync.plan import Dirs, Plan, place
from kelpie_worker.sync.progress import Meter, OnProgress
from kelpie_worker.sync.records import Records, home_of
from kelpie_worker.sync.restore import GIVE_UP_S, RestoreReport
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.store import open_store
from kelpie_worker.sync.threads import in_thread
from kelpie_worker.sync.traffic import Traffic
from kelpie_worker.sync.watching import Processes

log = logging.getLogger(__name__)

OpenStore = Callable[[], AbstractAsyncContextManager[ObjectStore]]


class SyncSession:
    """See the module; made by `open`, used as an async context manager."""

    def __init__(
        self, plan: Plan, settings: Settings, definition: JobDefinition, token: FencingToken, fence: Fence,
        journal: Journal, scratch: Path, clock: Clock, open_store: OpenStore, on_commit: OnCommit | None,
        on_progress: OnProgress | None, traffic: Traffic,
    ) -> None:  # fmt: skip
        self._plan, self._settings, self._definition = plan, settings, definition
        self._token, self._fence, self._journal = token, fence, journal
        self._clock, self._open_store = clock, open_store
        self._on_commit, self._on_progress, self._traffic = on_commit, on_progress, traffic
        self._scratch_home, self._scratch = scratch, scratch
        self._meter = Meter("attempt")
        self._stack = contextlib.AsyncExitStack()
        self._store: ObjectStore | None = None
        self._checkpoints: Checkpoints | None = None
        self._records: Records | None = None
        self._aside: Aside | None = None
        self._listing = OutputListing()
        self._watching: asyncio.Future[None] | None = None

    @classmethod
    def open(
        cls, settings: Settings, definition: JobDefinition, *, token: FencingToken, fence: Fence, journal: Journal,
        dirs: Dirs, scratch: Path, on_commit: OnCommit | None = None, on_progress: OnProgress | None = None,
        clock: Clock | None = None, store: OpenStore | None = None, traffic: Traffic | None = None,
    ) -> SyncSession:  # fmt: skip
        """A session for one attempt.

        Args:
            settings: The worker's.
            definition: The job's.
            token: Of the attempt.
            fence: Its lease.
            journal: The ledger, as it may use it.
            dirs: The worker's directories.
            scratch: A folder that exists and is kelpie's own; emptied of what the session put there at its end.
            on_commit: Told of each checkpoint that became durable.
            on_progress: Told every ten seconds of a long transfer.
            clock: For times in reports, and to know the storage's time.
            store: Opens the storage; by default the one that the settings name.
            traffic: Told which files are on their way up.

        Raises:
            LocalPathError: A ``local_path`` must not be touched.
        """
        clock = clock or SystemClock()
        plan = place(definition, dirs, scratch, cache_directories(settings))
        opener = store or partial(open_store, StorageConfig.from_settings(settings), clock)
        return cls(
            plan, settings, definition, token, fence, journal, scratch, clock, opener, on_commit, on_progress,
            traffic or Traffic(),
        )  # fmt: skip

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
        home = home_of(self._plan)
        self._store = store
        self._checkpoints = Checkpoints(
            store, self._plan, self._settings, self._token, self._fence, self._journal, self._scratch, self._clock,
            compression=self._definition.compression, meter=self._meter, on_commit=self._on_commit,
            on_progress=self._on_progress, traffic=self._traffic,
        )  # fmt: skip
        if home:
            job_id, digest = self._token.job_id, self._definition.digest()
            self._records = Records(store, home, job_id, digest, self._plan.after)

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
        return self._checkpoints.commits if self._checkpoints else 0

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
        return await self._checkpoints.restore() if self._checkpoints else RestoreReport()

    def _prepare(self) -> None:
        for directory in self._plan.roots:
            remove_stale_asides(directory)
        # Outputs of an earlier job must not be taken for this one's.
        for directory in self._plan.paths:
            prepare(directory)

    # -- beside the command ---------------------------------------------------------------------------------------

    async def watch(self, processes: Processes = list) -> None:
        """Store checkpoints and outputs as they settle, until cancelled.

        Args:
            processes: Tells the pids of the job's processes; None once the command has ended.

        Raises:
            StorageSetupError: The storage refuses for good, or another job commits to the same prefix.
            LeaseLost: The attempt lost its job.
        """
        if self._checkpoints is None or not self._plan.during:
            await asyncio.Event().wait()
            return
        watching = self._watching = asyncio.ensure_future(self._checkpoints.watch(processes))
        try:
            await asyncio.shield(watching)
        except asyncio.CancelledError:
            # A checkpoint that is half sent when the command ends is not thrown away: the last commit waits for it.
            self._checkpoints.wind_down()
            raise

    async def end_watch(self) -> None:
        """End what `watch` still does in the background, and wait until it has ended; call it before `clean`.

        Whatever it failed with, the last commit has met as well. No checkpoint is stored any more; what was moved aside
        may still go up.
        """
        if self._checkpoints:
            self._checkpoints.close()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._checkpoints:
            await self._checkpoints.end()

    def listen_to(self, report: Path) -> None:
        """The file that the job speaks in, whose folder exists: its `order` is told. To be called after the restore."""
        if self._checkpoints:
            self._checkpoints.listen_to(report)

    async def order(self) -> str:
        """In which order the job spoke and changed its checkpoint since the last call; see ``sync.order``."""
        return await self._checkpoints.order() if self._checkpoints else UNKNOWN

    def request_commit(self, reported_ns: int | None = None, *, followed: bool = False) -> None:
        """The job says that its checkpoint is whole: store it now, and from now on only when it says so.

        Args:
            reported_ns: When it said so, by the clock of file times: what changed later belongs to the next checkpoint.
            followed: Whether that is the time of a later word, up to which nobody told of a change.
        """
        if self._checkpoints:
            self._checkpoints.request_commit(reported_ns, followed=followed)

    async def stopping(self) -> None:
        """The command is to be ended: from now on quiet moments prove nothing; reports and markers still count.

        To be awaited before it is told; takes a fraction of a second at most.
        """
        if self._checkpoints:
            await self._checkpoints.stopping()

    # -- after the command ----------------------------------------------------------------------------------------

    async def commit(
        self, why: str, *, in_order: bool = True, plain: bool = True, obeyed: bool = False
    ) -> CommitReport:
        """Store the last checkpoint, whole and verified.

        Args:
            why: The reason.
            in_order: Whether the command ended in order. One that was killed, or that failed, may have been in the
                middle of a write: then only a state that was quiet before is taken.
            plain: Whether the plain keys are brought up to it as well.
            obeyed: Whether it was told to stop, and ended by itself, though with an error.

        Raises:
            StorageError: It failed; see `kelpie_worker.sync.commit.Committer.commit`.
            LocalFileError: A file cannot be read.
            LeaseLost: The attempt lost its job.
        """
        report = None
        if self._checkpoints is not None and self._plan.during:
            report = await self._checkpoints.commit(why, in_order=in_order, plain=plain, obeyed=obeyed)
        return report or CommitReport(why, 0, 0, 0, 0.0, self._clock.now())

    def move_outputs_aside(self) -> bool:
        """Free the job's directories for the next one, by renaming what they hold; quick.

        Returns:
            Whether that worked. If not, the directories are in use until `upload_outputs` is done and `clean` called.
        """
        if self._aside is None:
            if self._checkpoints:
                self._checkpoints.close()
            self._aside = Aside(self._plan.roots, self._scratch_home)
        return self._aside.moved

    async def upload_outputs(self) -> OutputListing:
        """Store everything that the ``after`` blocks' directories hold, verified, and a listing of it.

        Raises:
            StorageError: It failed; see `kelpie_worker.sync.outputs.Outputs.upload`.
            LocalFileError: A file cannot be read.
            LeaseLost: The attempt lost its job.
        """
        if self._store is None or self._checkpoints is None or self._records is None or not self._plan.after:
            return self._listing
        outputs = Outputs(
            self._store, self._fence, self._checkpoints.known, self._where, self._scratch,
            pack=self._definition.compression, give_up_s=self._settings.storage_retry_s, meter=self._meter,
            notices=self._checkpoints.notices, on_progress=self._on_progress,
        )  # fmt: skip
        files = await outputs.upload(self._plan.after)
        listing = OutputListing(files, self._records.bucket, self._records.listing_key(self._token.attempt))
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
            write = partial(self._records.write_marker, self._token.attempt, result, self._listing, self._fence)
            await Patience(self._settings.storage_retry_s, "marker_waits").persist(write)

    @property
    def has_marker(self) -> bool:
        """Whether `write_marker` writes one: a job without a block of outputs or checkpoints has no place for it."""
        return self._records is not None

    async def store_log(self, bucket: str, key: str, compose: Callable[[Path, Callable[[], bool]], None]) -> int:
        """Store the log of the command; its size in bytes. Tried until it is cancelled.

        Args:
            bucket: Where.
            key: Likewise.
            compose: Writes it into a new file, blocking; ends early where its second argument says so.

        Raises:
            StorageSetupError: The storage refuses for good.
            LocalFileError: It cannot be read back.
            DiskFull: Likewise.
            LeaseLost: The attempt lost its job.
        """
        folder = Path(tempfile.mkdtemp(prefix="log-", dir=self._scratch_home))
        try:
            await composed(compose, folder / "log")
            async with contextlib.AsyncExitStack() as stack:
                store = self._store
                if store is None:  # the job has no storage else
                    store = await stack.enter_async_context(self._open_store())
                return await send_log(store, self._fence, folder / "log", bucket, key)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def clean(self) -> None:
        """Delete what the job's directories hold; blocking, and safe to call at any time, more than once.

        What was moved aside is deleted there: the directories may be the next job's by now.
        """
        if self._checkpoints:
            self._checkpoints.close()
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
