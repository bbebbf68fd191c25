"""Sending the changed files of a directory, in an order that leaves the newest for last.

Programs that write several files write the one that names the others (`latest`, an index) last. So the `STRICTLY`
newest files become visible strictly in the order in which they were written, each after all older ones; what is older
than those goes before them, in parallel.

Limits: the order is all that several files have in common here; a death in the middle leaves some of them new.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from kelpie_worker.sync.bodies import FileChanged
from kelpie_worker.sync.errors import DiskFull
from kelpie_worker.sync.known import Address, KnownFiles, LocalFile
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.stable_read import Captured, capture, space_for_copies
from kelpie_worker.sync.threads import in_thread, run_bounded
from kelpie_worker.sync.upload import PARTS_AT_ONCE, Uploader

STRICTLY = 64


class Sender:
    """Sends files and notes them.

    Args:
        uploader: Of the attempt.
        known: Where what was sent is noted.
        scratch: For copies.
        pack: Whether what is stored is gzipped.
    """

    def __init__(self, uploader: Uploader, known: KnownFiles, scratch: Path, *, pack: bool) -> None:
        self._uploader, self._known = uploader, known
        self._scratch, self._pack = scratch, pack
        self._names = itertools.count()

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
            one = partial(self._one, patience, captured, skipped)
            await run_bounded(files[:-STRICTLY], one, PARTS_AT_ONCE)
            await run_bounded(files[-STRICTLY:], one, 1)
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
        copy_to = self._scratch / f"copy-{next(self._names)}" if copy or self._pack else None
        return await capture(file.path, copy_to=copy_to, pack=self._pack)

    async def _one(
        self, patience: Patience, ready: dict[Address, Captured], skipped: list[LocalFile], file: LocalFile
    ) -> None:
        try:
            captured = ready.pop(file.address, None) or await self._capture(file, copy=False)
        except FileChanged:
            skipped.append(file)
            return
        try:
            if captured.stamp == file.stamp:
                self._known.note_stored(file, await self._uploader.upload(captured, *file.address, patience))
            else:
                skipped.append(file)  # written to since the commit was decided: it belongs to the next one
        except FileChanged:
            skipped.append(file)
        finally:
            captured.close()


def _close_all(captured: list[Captured]) -> None:
    for one in captured:
        one.close()
