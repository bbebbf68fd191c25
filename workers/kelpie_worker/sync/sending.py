"""Sending the changed files of a directory, in an order that leaves the newest for last.

Programs that write several files write the one that names the others (`latest`, an index) last. So the `STRICTLY`
newest files become visible strictly in the order in which they were written, each after all older ones; what is older
than those goes before them, in parallel.

Limits: the order is all that several files have in common here; a death in the middle leaves some of them new.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

from kelpie_worker.sync.bodies import FileChanged
from kelpie_worker.sync.errors import DiskFull
from kelpie_worker.sync.etags import is_content_of
from kelpie_worker.sync.known import Address, KnownFiles, LocalFile
from kelpie_worker.sync.object_store import StoredObject
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.stable_read import Captured, capture, space_for_copies
from kelpie_worker.sync.threads import in_thread, run_bounded
from kelpie_worker.sync.traffic import Traffic
from kelpie_worker.sync.upload import PARTS_AT_ONCE, Stored, Uploader

STRICTLY = 64
_names = itertools.count()
"""Of copies; senders share a folder."""


async def in_order(files: Sequence[LocalFile], one: Callable[[LocalFile], Awaitable[None]], at_once: int) -> None:
    """Do ``one`` with each file, so that the newest become visible last; see the module.

    Args:
        files: The oldest first.
        one: Makes a file visible.
        at_once: How many at once, of those that are not among the newest.
    """
    await run_bounded(files[:-STRICTLY], one, at_once)
    await run_bounded(files[-STRICTLY:], one, 1)


class Sender:
    """Sends files and notes them.

    Args:
        uploader: Of the attempt.
        known: Where what was sent is noted.
        scratch: For copies.
        pack: Whether what is stored is gzipped.
        traffic: Told which files are on their way.
    """

    def __init__(
        self, uploader: Uploader, known: KnownFiles, scratch: Path, *, pack: bool, traffic: Traffic | None = None
    ) -> None:
        self._uploader, self._known, self._traffic = uploader, known, traffic or Traffic()
        self._scratch, self._pack = scratch, pack

    async def send(self, files: Sequence[LocalFile], patience: Patience, *, copy_first: bool) -> list[LocalFile]:
        """Send files.

        Args:
            files: The oldest first.
            patience: With a storage that is away.
            copy_first: Take copies of all of them before the first is sent, where the disk has room: then what is
                stored is the state of one moment, however slow the line.

        Returns:
            Those that were not sent, since they are not as they were seen, or do not hold still.
        """
        captured = await self._copy_all(files) if copy_first else dict[Address, Captured]()
        skipped: list[LocalFile] = []
        try:
            with self._traffic.uploading(file.path for file in files):
                one = partial(self._one, patience, captured, skipped)
                await in_order(files, one, PARTS_AT_ONCE)
        finally:
            await in_thread(partial(_close_all, list(captured.values())))
        return skipped

    async def _copy_all(self, files: Sequence[LocalFile]) -> dict[Address, Captured]:
        if sum(file.stamp.size_bytes for file in files) > await in_thread(partial(space_for_copies, self._scratch)):
            return {}
        captured: dict[Address, Captured] = {}
        try:
            for file in files:
                with contextlib.suppress(FileChanged):
                    captured[file.address] = await self._capture(file, copy=True)
        except BaseException as error:
            _close_all(list(captured.values()))
            if isinstance(error, DiskFull):
                return {}
            raise
        return captured

    async def _capture(self, file: LocalFile, *, copy: bool) -> Captured:
        copy_to = self._scratch / f"copy-{next(_names)}" if copy or self._pack else None
        return await capture(file.path, copy_to=copy_to, pack=self._pack)

    async def _one(
        self, patience: Patience, ready: dict[Address, Captured], skipped: list[LocalFile], file: LocalFile
    ) -> None:
        if not await self.send_one(file, patience, ready=ready.pop(file.address, None)):
            skipped.append(file)

    async def send_one(
        self, file: LocalFile, patience: Patience, *, ready: Captured | None = None, there: StoredObject | None = None
    ) -> bool:
        """Send one file.

        Args:
            file: The file.
            patience: With a storage that is away.
            ready: The file as it was captured before.
            there: What is under its key already: it is not sent if it is the same.

        Returns:
            Whether it is on the storage now; not when it is not as it was seen, or does not hold still.
        """
        try:
            captured = ready or await self._capture(file, copy=False)
        except FileChanged:
            return False
        try:
            if captured.stamp != file.stamp:
                return False  # written to since the commit was decided: it belongs to the next one
            if there and await is_content_of(captured.copy or file.path, there):
                self._known.note_stored(file, Stored(there, captured, captured.sent))
            else:
                self._known.note_stored(file, await self._uploader.upload(captured, *file.address, patience))
        except FileChanged:
            return False
        finally:
            captured.close()
        return True


def _close_all(captured: list[Captured]) -> None:
    for one in captured:
        one.close()
