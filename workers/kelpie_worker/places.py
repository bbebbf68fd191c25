"""What two attempts of one worker must not share: slots (GPUs) and directories.

Limits: one process. Waiting is by short polls in asyncio, since the holders live in other threads' loops; an attempt
that waits holds its lease meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

_POLL_S = 0.05


class Slots:
    """The worker's slots, each with the GPUs that its command may see (None: as they are)."""

    def __init__(self, gpus: Sequence[str | None]) -> None:
        self._gpus = list(gpus)
        self._lock = threading.Lock()
        self._free = list(range(len(self._gpus)))

    def __len__(self) -> int:
        return len(self._gpus)

    def gpus(self, slot: int) -> str | None:
        """What ``CUDA_VISIBLE_DEVICES`` is for a slot."""
        return self._gpus[slot]

    def _take(self) -> int | None:
        with self._lock:
            return self._free.pop(0) if self._free else None

    async def acquire(self) -> int:
        """Wait for a free slot."""
        while (slot := self._take()) is None:
            await asyncio.sleep(_POLL_S)
        return slot

    def release(self, slot: int) -> None:
        """Give a slot back; giving it back twice changes nothing."""
        with self._lock:
            if slot not in self._free:
                self._free.append(slot)


class Directories:
    """Directories in use; one that lies within another is the same place."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[object, tuple[Path, ...]] = {}

    def _try(self, owner: object, paths: Sequence[Path]) -> bool:
        with self._lock:
            for held in (path for other, paths in self._held.items() if other is not owner for path in paths):
                if any(path == held or held in path.parents or path in held.parents for path in paths):
                    return False
            self._held[owner] = tuple(paths)
            return True

    async def acquire(self, owner: object, paths: Sequence[Path]) -> None:
        """Wait until no other attempt uses any of these."""
        resolved = [path.resolve() for path in paths]
        while not self._try(owner, resolved):
            await asyncio.sleep(_POLL_S)

    def release(self, owner: object) -> None:
        """Let others have them; giving them back twice changes nothing."""
        with self._lock:
            self._held.pop(owner, None)


class Places:
    """Slots and directories of one worker process."""

    def __init__(self, gpus: Sequence[str | None]) -> None:
        self.slots = Slots(gpus)
        self.directories = Directories()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Place]:
        """A slot, waited for; given back at the end with its directories, or before by ``Place.leave``."""
        place = Place(self, await self.slots.acquire())
        try:
            yield place
        finally:
            place.leave()


class Place:
    """What one attempt holds."""

    def __init__(self, places: Places, slot: int) -> None:
        self._places = places
        self.slot = slot
        self._left = False

    @property
    def gpus(self) -> str | None:
        """What ``CUDA_VISIBLE_DEVICES`` is here; None leaves it as it is."""
        return self._places.slots.gpus(self.slot)

    async def take(self, directories: Sequence[Path]) -> None:
        """Wait until no other attempt uses any of these, and hold them."""
        await self._places.directories.acquire(self, directories)

    def directory(self, path: Path) -> Path:
        """A directory of the older bucket fields, as this slot has it: the first slot's is the one that is set."""
        return path.with_name(f"{path.name}-{self.slot}") if self.slot else path

    def leave(self) -> None:
        """Give everything back, once: the slot may be somebody else's by the second call."""
        if not self._left:
            self._left = True
            self._places.directories.release(self)
            self._places.slots.release(self.slot)
