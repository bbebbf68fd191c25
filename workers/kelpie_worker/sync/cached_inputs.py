"""A restore's way to the machine's cache of inputs: off the event loop, safe to cancel, and only where it is wanted.

The threads are the cache's own, and few: a copy of many gigabytes must not hold up what others do in theirs.

Limits: the default directories are looked for when a cache is opened; a cache that cannot be had is warned of once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from kelpie_celery.settings import Settings
from kelpie_worker.sync.cache import CacheAddress, InputCache
from kelpie_worker.sync.cloning import Cancelled
from kelpie_worker.sync.download import Wanted

log = logging.getLogger(__name__)

AT_ONCE = 2
_USUAL = Path("/var/cache/kelpie")
_HOME = "inputs-v1"
_WRITABLE_BY_OTHERS = 0o022


class CachedInputs:
    """The cache as one restore uses it.

    Args:
        cache: The machine's.
        endpoint: Of the storage; empty for AWS.

    Attributes:
        hits: Files that came out of the cache.
        hit_bytes: Their bytes, as the storage counts them.
    """

    def __init__(self, cache: InputCache, endpoint: str) -> None:
        self._cache, self._endpoint = cache, endpoint
        self.hits = self.hit_bytes = 0

    async def take(self, wanted: Wanted, *, read_only: bool) -> bool:
        """Put an object's file in its place; whether the cache had it."""
        place = partial(self._cache.place, self._address(wanted), wanted.path, read_only=read_only)
        found = await _stoppable(lambda cancelled: place(cancelled=cancelled))
        if found:
            self.hits += 1
            self.hit_bytes += wanted.object.size_bytes
        return found

    async def keep(self, wanted: Wanted, *, read_only: bool) -> None:
        """Keep what was brought down and verified; before the job can write to it."""
        add = partial(self._cache.add, self._address(wanted), wanted.path, read_only=read_only)
        await _stoppable(lambda cancelled: add(cancelled=cancelled))

    async def make_room(self, needed_bytes: Mapping[Path, int]) -> None:
        """Give up what stands in the way of what is to be brought down, by directory."""

        def make_room(cancelled: Cancelled) -> bool:
            with contextlib.suppress(OSError):
                device = self._cache.home.stat().st_dev
                here = [size for path, size in needed_bytes.items() if path.stat().st_dev == device]
                self._cache.make_room(sum(here), cancelled)
            return True

        await _stoppable(make_room)

    def _address(self, wanted: Wanted) -> CacheAddress:
        found = wanted.object
        return CacheAddress(self._endpoint, wanted.bucket, found.key, found.etag, found.size_bytes, wanted.unpack)


def cache_directories(settings: Settings) -> list[Path]:
    """Where the cache may be, the best place first; empty without one."""
    if not settings.cache_bytes:
        return []
    if settings.cache_dir is not None:
        return [settings.workdir.absolute() / settings.cache_dir]
    return [_USUAL, Path(tempfile.gettempdir()) / "kelpie-cache"]


def open_cached_inputs(settings: Settings) -> CachedInputs | None:
    """The cache that the settings ask for; None without one. Blocking."""
    failure: OSError | None = None
    for directory in cache_directories(settings):
        try:
            return CachedInputs(InputCache(_home_in(directory), settings.cache_bytes), settings.aws_endpoint_url or "")
        except OSError as error:
            failure = failure or error
    if failure:
        _warn_once(str(failure))
    return None


def _home_in(directory: Path) -> Path:
    """A folder of the cache's own in a directory that others may see.

    Raises:
        OSError: It cannot be had, or somebody else could change it: they could give jobs whatever input they like.
    """
    directory.mkdir(parents=True, exist_ok=True)
    home = directory / _HOME
    home.mkdir(mode=0o700, exist_ok=True)
    # The directory itself, too: who may write to that may put a folder of their own in our folder's place.
    _ensure_ours(directory.resolve(), {os.geteuid(), 0})
    _ensure_ours(home, {os.geteuid()})
    return home


def _ensure_ours(folder: Path, owners: set[int]) -> None:
    status = folder.lstat()
    shared = status.st_mode & _WRITABLE_BY_OTHERS and not status.st_mode & stat.S_ISVTX
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in owners or shared:
        raise PermissionError(f"{folder} belongs to somebody else, or others may write to it; see KELPIE_CACHE_DIR")


@functools.cache
def _warn_once(error: str) -> None:
    log.warning("there is no cache of inputs", extra={"action": "cache_failed", "error": error})


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(AT_ONCE, thread_name_prefix="kelpie-cache")


async def _stoppable(work: Callable[[Cancelled], bool]) -> bool:
    """Run ``work`` in a thread; when cancelled, tell it to stop, and leave once it has."""
    stop = threading.Event()
    running = _threads().submit(work, stop.is_set)
    waiting = asyncio.wrap_future(running)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        stop.set()
        # What waits behind another attempt's copy is not waited for.
        while not running.cancel() and not waiting.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([waiting])
        raise
