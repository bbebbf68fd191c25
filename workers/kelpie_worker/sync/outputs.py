"""The final upload: everything that the ``after`` blocks' directories hold, verified, or an error.

What went up while the command ran is not sent again, if its content is still the same. A directory that does not exist
counts as empty, with a warning. Limits: nothing is deleted on the storage; an earlier attempt may have left objects
that this one did not write: the listing says which are the job's.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from kelpie_celery.errors import StorageUnavailable
from kelpie_celery.listings import OutputFile
from kelpie_worker.sync.batches import Batching, Direct, Done, divided, in_batches
from kelpie_worker.sync.bodies import FileChanged
from kelpie_worker.sync.etags import is_content_of
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.known import Address, KnownFile, KnownFiles, LocalFile, wanted
from kelpie_worker.sync.notices import Notices
from kelpie_worker.sync.object_store import ObjectStore
from kelpie_worker.sync.plan import Placed
from kelpie_worker.sync.progress import Meter, OnProgress
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.snapshot import Snapshot, take
from kelpie_worker.sync.stable_read import capture, capture_small, digest
from kelpie_worker.sync.threads import in_thread
from kelpie_worker.sync.upload import PARTS_AT_ONCE, Uploader
from kelpie_worker.sync.verify import missing

log = logging.getLogger(__name__)

_ROUNDS = 5


class Outputs:
    """Sends the outputs of one attempt.

    Args:
        store: The storage.
        fence: Of the attempt.
        known: What went up while the command ran.
        where: Where the content of a directory is now.
        scratch: For what is packed.
        pack: Whether files are gzipped.
        give_up_s: Patience with a storage that gives no sign of life, seconds.
        meter: Counts what is sent.
        notices: Of the attempt.
        on_progress: Told every ten seconds.
    """

    def __init__(
        self, store: ObjectStore, fence: Fence, known: KnownFiles, where: Callable[[Path], Path], scratch: Path, *,
        pack: bool, give_up_s: float, meter: Meter, notices: Notices, on_progress: OnProgress | None,
    ) -> None:  # fmt: skip
        self._store, self._known, self._where, self._notices = store, known, where, notices
        self._scratch, self._pack, self._on_progress = scratch, pack, on_progress
        self._meter = Meter("outputs", parent=meter)
        self._patience = Patience(give_up_s, "outputs_wait")
        self._uploader = Uploader(store, fence, self._meter.add)
        self._done: dict[Address, KnownFile] = {}
        self._names = itertools.count()

    async def upload(self, blocks: Sequence[Placed]) -> tuple[OutputFile, ...]:
        """Send everything.

        Raises:
            StorageSetupError: The storage refuses for good.
            StorageUnavailable: It stayed away.
            LocalFileError: A file cannot be read.
            LeaseLost: The attempt lost its job.
        """
        began_s = asyncio.get_running_loop().time()
        snapshots = await in_thread(lambda: {block.path: self._take(block) for block in blocks})
        files = wanted(blocks, snapshots, pack=self._pack)
        batching = self._send_together if isinstance(self._store, Batching) else None
        self._meter.total_bytes = sum(file.stamp.size_bytes for file in files.values())
        async with self._meter.reporting(self._on_progress):
            for _ in range(_ROUNDS):
                batches = divided(files.values(), self._size_of_small, PARTS_AT_ONCE)
                await in_batches(batches, batching, self._persist, PARTS_AT_ONCE)
                if not await self._patience.persist(self._lost):
                    break
            else:
                raise StorageUnavailable("outputs go missing on the storage as fast as they are stored", bucket="")
        stored = tuple(
            OutputFile(bucket, key, done.object.size_bytes, done.sent_sha256, done.object.etag)
            for (bucket, key), done in sorted(self._done.items())
        )
        log.info(
            "outputs stored",
            extra={"action": "outputs_stored", "files": len(stored), "bytes": sum(file.size_bytes for file in stored),
                   "duration_s": round(asyncio.get_running_loop().time() - began_s, 3)},
        )  # fmt: skip
        return stored

    def _take(self, block: Placed) -> Snapshot:
        place = self._where(block.path)
        snapshot = take(place)
        if not snapshot.exists:
            log.warning(
                "an output directory does not exist, or is a link; nothing is stored for it",
                extra={"action": "output_missing", "path": str(block.path)},
            )
        self._notices.look(block.path, snapshot, place=place)
        return snapshot

    # -- small files, which go in batches; see ``batches`` ----------------------------------------------------------

    def _size_of_small(self, file: LocalFile) -> int | None:
        """The size of a file that is sent as it is."""
        known = self._known.get(file.address)
        perhaps_there = known and known.stamp and known.stamp.is_same_content(file.stamp)
        return None if self._pack or perhaps_there or file.address in self._done else file.stamp.size_bytes

    async def _send_together(self, batch: Sequence[LocalFile], done: Done) -> None:
        sent: dict[Address, KnownFile] = {}

        def work(direct: Direct) -> None:
            with done:
                for file in batch:
                    sent[file.address] = self._send_directly(direct, file)
                    self._patience.sign_of_life()
                    done.count += 1

        await self._uploader.together({file.block.bucket for file in batch}, work, self._patience)
        self._done |= sent

    def _send_directly(self, direct: Direct, file: LocalFile) -> KnownFile:
        captured = capture_small(self._where(file.block.path) / file.relative)
        try:
            (body,) = captured.bodies(self._uploader.on_sent)
            stored = direct.put(*file.address, body)
        finally:
            captured.close()
        return KnownFile(
            file.block, file.relative, stored, captured.stamp, captured.source_sha256, captured.sent.sha256
        )

    # -- one file, whatever it is -----------------------------------------------------------------------------------

    async def _persist(self, file: LocalFile) -> None:
        if file.address not in self._done:
            await self._patience.persist(partial(self._store_one, file))

    async def _store_one(self, file: LocalFile) -> None:
        path = self._where(file.block.path) / file.relative
        known = self._known.get(file.address)
        if known and known.stamp and known.stamp.is_same_content(file.stamp):
            proven = await _proven(path, known)
            if proven:
                self._done[file.address] = proven
                return
        copy_to = self._scratch / f"output-{next(self._names)}" if self._pack else None
        captured = await capture(path, copy_to=copy_to, pack=self._pack)
        try:
            stored = await self._uploader.upload(captured, *file.address, self._patience)
        finally:
            captured.close()
        self._done[file.address] = KnownFile(
            file.block, file.relative, stored.object, captured.stamp, captured.source_sha256, stored.sent.sha256
        )

    async def _lost(self) -> bool:
        expected = [(bucket, done.block.prefix, done.object) for (bucket, _), done in self._done.items()]
        lost = await missing(self._store, expected)
        for address in lost:
            del self._done[address]
            self._known.forget(address)
        return bool(lost)


async def _proven(path: Path, known: KnownFile) -> KnownFile | None:
    """What is known, if the file still is what is stored; completed by its digests where it was not sent."""
    try:
        sha256 = (await digest(path)).sha256
    except FileChanged:
        return None
    if known.source_sha256:
        return known if sha256 == known.source_sha256 else None
    if not await is_content_of(path, known.object):
        return None  # packed, or its ETag is no digest
    return replace(known, source_sha256=sha256, sent_sha256=sha256)
