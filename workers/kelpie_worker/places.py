"""What two attempts of one worker must not share: slots (GPUs) and directories.

Directories are not shared with other workers of the machine either, see `kelpie_worker.claims`. Limits: waiting is by
short polls in asyncio, since the holders live in other threads' loops; an attempt that waits holds its lease meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from kelpie_worker.claims import Claim, Claims, overlap

log = logging.getLogger(__name__)

TELL_S = 10.0
"""After such a wait for directories it is told, seconds: a job, and with it a slot, may wait there for days."""
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
    """Directories in use; one that lies within another is the same place.

    Args:
        claims: Tells the other workers of this machine; without it they are not asked.
    """

    def __init__(self, claims: Claims | None = None) -> None:
        self._lock = threading.Lock()
        self._held: dict[object, tuple[Path, ...]] = {}
        self._claims = claims
        self._claimed: dict[object, Claim] = {}

    def _try(self, owner: object, paths: Sequence[Path]) -> bool:
        with self._lock:
            for held in (path for other, paths in self._held.items() if other is not owner for path in paths):
                if any(overlap(path, held) for path in paths):
                    return False
            if self._claims is not None and paths:
                claim = self._claims.take(paths)
                if claim is None:
                    return False
                self._claimed[owner] = claim
            self._held[owner] = tuple(paths)
            return True

    async def acquire(
        self, owner: object, paths: Sequence[Path], on_wait: Callable[[bool], None] | None = None
    ) -> None:
        """Wait until no other attempt uses any of these.

        Args:
            owner: Who holds them then.
            paths: The directories.
            on_wait: Called with True when the wait is long, and after such a one with False.
        """
        resolved = [path.resolve() for path in paths]
        loop = asyncio.get_running_loop()
        tell_at_s: float | None = loop.time() + TELL_S
        told = on_wait or (lambda _waits: None)
        while not self._try(owner, resolved):
            if tell_at_s is not None and loop.time() >= tell_at_s:
                tell_at_s = None
                _tell(resolved)
                told(True)
            await asyncio.sleep(_POLL_S)
        if tell_at_s is None:
            told(False)

    def release(self, owner: object) -> None:
        """Let others have them; giving them back twice changes nothing."""
        with self._lock:
            self._held.pop(owner, None)
            if owner in self._claimed:
                self._claimed[owner].let_go()

    def forget(self, owner: object) -> None:
        """Nothing is left of what the owner had there."""
        self.release(owner)
        with self._lock:
            claim = self._claimed.pop(owner, None)
        if claim:
            claim.close()


def _tell(paths: Sequence[Path]) -> None:
    log.warning(
        "a job waits for directories that another job of this machine uses; let jobs name local_paths of their own,"
        " and give each worker its own INPUT_DIR, OUTPUT_DIR and CHECKPOINT_DIR",
        extra={"action": "directories_wait", "paths": [str(path) for path in paths]},
    )


class Places:
    """Slots and directories of one worker process.

    Args:
        gpus: Of each slot.
        claims: See `Directories`.
    """

    def __init__(self, gpus: Sequence[str | None], claims: Claims | None = None) -> None:
        self.slots = Slots(gpus)
        self.directories = Directories(claims)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Place]:
        """A slot, waited for; given back at the end with its directories, or before by ``Place.leave``."""
        place = Place(self, await self.slots.acquire())
        try:
            yield place
        finally:
            place.leave()
            self.directories.forget(place)


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

    async def take(self, directories: Sequence[Path], on_wait: Callable[[bool], None] | None = None) -> None:
        """Wait until no other attempt uses any of these, and hold them; see `Directories.acquire`."""
        await self._places.directories.acquire(self, directories, on_wait)

    def directory(self, path: Path) -> Path:
        """A directory of the older bucket fields, as this slot has it: the first slot's is the one that is set."""
        return path.with_name(f"{path.name}-{self.slot}") if self.slot else path

    def leave(self) -> None:
        """Give everything back, once: the slot may be somebody else's by the second call."""
        if not self._left:
            self._left = True
            self._places.directories.release(self)
            self._places.slots.release(self.slot)
