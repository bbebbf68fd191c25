"""Outputs of the older bucket fields, which go up while the command runs: each file once it has settled.

Limits: nothing is deleted, and nothing has to be whole before the end; `kelpie_worker.sync.outputs` sees to that, and
tells of names that cannot be stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from kelpie_worker.sync.known import Address, KnownFiles, LocalFile
from kelpie_worker.sync.plan import Placed
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.sending import Sender
from kelpie_worker.sync.settling import Settling
from kelpie_worker.sync.snapshot import Snapshot
from kelpie_worker.sync.threads import in_thread


class EarlyOutputs:
    """Sends outputs as they settle.

    Args:
        blocks: The ``during`` blocks that hold outputs.
        known: What is known to be under plain keys.
        sender: Sends files.
        pack: Whether what is stored is gzipped.
        quiet_s: A file has settled when it has not changed for so long.
        min_interval_s: At least so long from one sending of a file to the next.
    """

    def __init__(
        self, blocks: Sequence[Placed], known: KnownFiles, sender: Sender, *, pack: bool, quiet_s: float,
        min_interval_s: float,
    ) -> None:  # fmt: skip
        self._blocks, self._known, self._sender = blocks, known, sender
        self._pack, self._quiet_s, self._min_interval_s = pack, quiet_s, min_interval_s
        self._settling = Settling()
        self._sent_s: dict[Address, float] = {}
        self.waiting = False
        """Whether something has changed and not settled yet."""

    def observe(self, snapshots: Mapping[Path, Snapshot], now_s: float) -> list[LocalFile]:
        """Take note of a look, and tell what is to be sent now; blocking."""
        if not self._blocks:
            return []
        mine = {block.path: snapshots[block.path] for block in self._blocks}
        self._settling.observe(mine, now_s)
        changed = self._known.differences(self._blocks, snapshots, pack=self._pack).changed
        due = [file for file in changed if self._is_due(file, now_s)]
        self.waiting = len(due) < len(changed)
        return due

    def _is_due(self, file: LocalFile, now_s: float) -> bool:
        last_s = self._sent_s.get(file.address)
        rested = last_s is None or now_s - last_s >= self._min_interval_s
        return rested and self._settling.settled_s(file, now_s) >= self._quiet_s

    async def send(self, files: Sequence[LocalFile], patience: Patience) -> None:
        """Send what is due.

        Raises:
            StorageError: The storage refuses, or stayed away.
            LocalFileError: A file cannot be read.
            LeaseLost: The attempt lost its job.
        """
        now_s = asyncio.get_running_loop().time()
        self._sent_s.update((file.address, now_s) for file in files)
        await self._sender.send(files, patience, copy_first=True)

    async def prime(self, snapshots: Mapping[Path, Snapshot]) -> None:
        """What lies there before the command starts has not changed just now."""
        now_s = asyncio.get_running_loop().time()
        await in_thread(partial(self.observe, snapshots, now_s))
