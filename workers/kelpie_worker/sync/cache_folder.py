"""The folder that holds a cache's entries: shared by several processes, bounded, and never half.

    objects/<aa>/<digest>/<size>-<mtime>-<inode>-<boot>     one entry, a folder with one file
    objects/<aa>/<digest>/seal -> <ctime>-<BLAKE3>          when its content was last known to be what was put in
    tmp/<random>-<bytes>/                                   an entry in the making, locked by its maker
    lock            held while entries are counted or evicted; says how many bytes are kept, or more than that

An entry appears and disappears by one rename. What a process that died left in ``tmp`` goes when the folder is opened.
The name of an entry's file says what it was when it was put in: whoever writes to it makes it another one, and it is
dropped. So is one of an earlier boot, since its bytes may not have reached the disk. Size and time can be put back, the
time of the last change (ctime) cannot; but making and deleting a hard link moves that, too. So where it has moved, the
content is read and compared with the digest in the seal, before anybody gets it.

Limits: blocking calls, for a thread. What the disk itself damages is not noticed. Whoever does not get the lock within
`LOCK_S` gets an error.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from kelpie_worker.sync.cloning import Cancelled, CopyCancelled, never

log = logging.getLogger(__name__)

OVERHEAD_BYTES = 8192
"""What an entry takes beside its content, about."""
_FREE_BYTES, _FREE_SHARE = 1 << 30, 0.1
_LOW_WATER = 0.9
_DIGITS = 20
LOCK_S = 10.0
"""How long the lock is waited for, seconds."""
_LOCK_POLL_S = 0.02
_SEAL = "seal"
_PIECE_BYTES = 8 * 1024 * 1024
"""Large enough for a digest to be computed by several cores at once."""
_TRIES = 5


class Stamp(NamedTuple):
    """What tells that a file is the one that was put into the cache; its text is the file's name there."""

    size_bytes: int
    mtime_ns: int
    inode: int
    boot: str

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """The stamp of a file as it is now."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, _boot())

    @classmethod
    def from_name(cls, name: str) -> Stamp | None:
        """What `name` gave; None for anything else."""
        try:
            size, mtime, inode, boot = name.split("-")
            return cls(int(size), int(mtime), int(inode), boot)
        except ValueError:
            return None

    @property
    def name(self) -> str:
        """The stamp as the name of a file."""
        return "-".join(map(str, self))


class _Entry(NamedTuple):
    used_ns: int
    folder: Path
    file: Path
    cost_bytes: int


class CacheFolder:
    """See the module.

    Args:
        home: A directory of its own, which exists.
        max_bytes: How much it may hold.
    """

    def __init__(self, home: Path, max_bytes: int) -> None:
        self._home, self._max_bytes = home, max_bytes
        self._objects, self._temporary = home / "objects", home / "tmp"
        for folder in (self._objects, self._temporary):
            folder.mkdir(exist_ok=True)
        self._sweep()

    # -- entries --------------------------------------------------------------------------------------------------

    def folder(self, digest: str) -> Path:
        """Where an entry is, if it is."""
        return self._objects / digest[:2] / digest

    def intact(self, digest: str, cancelled: Cancelled = never) -> Path | None:
        """The file of an entry; None, and no entry any more, when it is not what was put in.

        Raises:
            CopyCancelled: It was told to stop while the content was read.
        """
        folder = self.folder(digest)
        try:
            names = [name for name in os.listdir(folder) if not name.startswith(_SEAL)]  # noqa: PTH208 -- names are wanted
        except FileNotFoundError:
            return None
        file = folder / names[0] if len(names) == 1 else None
        if file is not None and is_as_put_in(file, file.lstat()) and _is_sealed(file, cancelled):
            return file
        self.drop(digest)
        return None

    def drop(self, digest: str) -> None:
        """Remove an entry that is not what was put in."""
        log.warning("a cached input has changed, and is dropped", extra={"action": "cache_dropped", "digest": digest})
        self._remove(self.folder(digest))

    def touch(self, digest: str) -> None:
        """Note that an entry was used."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.folder(digest))

    def publish(self, place: Path, digest: str) -> None:
        """Make an entry of a folder that `reserved` gave; where somebody else was quicker, theirs stays."""
        folder = self.folder(digest)
        folder.parent.mkdir(exist_ok=True)
        try:
            place.rename(folder)
        except OSError:
            if not folder.exists():
                raise

    @contextlib.contextmanager
    def reserved(self, size_bytes: int, cancelled: Cancelled = never) -> Iterator[Path | None]:
        """A folder for an entry in the making, whose bytes count already; None where they find no room.

        What is still there at the end goes away.
        """
        cost_bytes = size_bytes + OVERHEAD_BYTES
        place = self._temporary / f"{secrets.token_hex(8)}-{cost_bytes}"
        with self._locked(cancelled) as noted:
            if not self._reserve(noted, cost_bytes):
                lock = None
            else:
                place.mkdir(mode=0o700)
                # Locked before anybody who sweeps can see it.
                lock = _locked_folder(place)
        if lock is None:
            yield None
            return
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)
            os.close(lock)

    # -- how much there is ----------------------------------------------------------------------------------------

    def make_room(self, needed_bytes: int, cancelled: Cancelled = never) -> bool:
        """Evict what is least recently used until so much can be written, and enough stays free; whether it can be."""
        if self._lacks(needed_bytes) <= 0:
            return True
        with self._locked(cancelled):
            for entry in sorted(self._entries()):
                if self._lacks(needed_bytes) <= 0:
                    break
                with contextlib.suppress(FileNotFoundError):
                    # A file that a job holds a link to takes its space with or without us.
                    if entry.file.lstat().st_nlink == 1:
                        self._remove(entry.folder)
        return self._lacks(needed_bytes) <= 0

    def _lacks(self, needed_bytes: int) -> float:
        usage = shutil.disk_usage(self._home)
        return needed_bytes + max(_FREE_BYTES, usage.total * _FREE_SHARE) - usage.free

    def _reserve(self, noted: int, cost_bytes: int) -> bool:
        try:
            # Never fewer than there are, and more where entries were dropped.
            total = int(os.pread(noted, _DIGITS, 0))
        except ValueError:
            total = self._max_bytes
        if total + cost_bytes > self._max_bytes:
            total = self._shrink(self._max_bytes - cost_bytes)
        fits = total + cost_bytes <= self._max_bytes
        # Of one length, so that it is overwritten in place: to truncate a file makes ext4 write it out at once.
        os.pwrite(noted, b"%0*d" % (_DIGITS, total + cost_bytes if fits else total), 0)
        return fits

    def _shrink(self, limit_bytes: int) -> int:
        """Count what there is, and evict down to ``limit_bytes``, and a little more, so that it need not be soon again.

        Returns:
            The bytes that are left, with those of entries in the making.
        """
        entries = sorted(self._entries(), reverse=True)
        total = sum(entry.cost_bytes for entry in entries) + self._in_the_making()
        if total > limit_bytes:
            limit_bytes = min(limit_bytes, int(self._max_bytes * _LOW_WATER))
        while entries and total > limit_bytes:
            entry = entries.pop()
            self._remove(entry.folder)
            total -= entry.cost_bytes
        return total

    def _entries(self) -> Iterator[_Entry]:
        for shelf in self._objects.iterdir():
            for folder in shelf.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    used_ns = folder.lstat().st_mtime_ns
                    names = [name for name in os.listdir(folder) if not name.startswith(_SEAL)]  # noqa: PTH208
                    stamp = Stamp.from_name(names[0]) if names else None
                    if stamp is None:
                        self._remove(folder)
                    else:
                        yield _Entry(used_ns, folder, folder / names[0], stamp.size_bytes + OVERHEAD_BYTES)

    def _in_the_making(self) -> int:
        costs = (place.name.rpartition("-")[2] for place in self._temporary.iterdir())
        return sum(int(cost) for cost in costs if cost.isdecimal())

    # -- order ----------------------------------------------------------------------------------------------------

    def _remove(self, folder: Path) -> None:
        gone = self._temporary / f"{secrets.token_hex(8)}-gone"
        with contextlib.suppress(FileNotFoundError):
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what processes that died were making, or removing."""
        with self._locked():
            for place in self._temporary.iterdir():
                with contextlib.suppress(OSError):
                    lock = _locked_folder(place)
                    shutil.rmtree(place, ignore_errors=True)
                    os.close(lock)

    @contextlib.contextmanager
    def _locked(self, cancelled: Cancelled = never) -> Iterator[int]:
        """Hold the lock; gives its file.

        Raises:
            TimeoutError: Somebody else holds it for longer than anybody should.
            CopyCancelled: It was told to stop.
        """
        lock = os.open(self._home / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            waited_s = 0.0
            while not _try_lock(lock):
                if cancelled():
                    raise CopyCancelled
                if waited_s > LOCK_S:
                    raise TimeoutError(errno.ETIMEDOUT, "another process holds the lock", os.fspath(self._home))
                threading.Event().wait(_LOCK_POLL_S)  # nothing tells of a lock of another process's
                waited_s += _LOCK_POLL_S
            yield lock
        finally:
            os.close(lock)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def seal(file: Path, cancelled: Cancelled = never, *, linked: bool) -> None:
    """Note that an entry's content is what was put in, as the file is now.

    Args:
        file: The entry's.
        cancelled: Asked again and again while it is read.
        linked: Whether it has, or is to get, hard links: then its content counts from now on, and is read.
    """
    ctime_ns = file.lstat().st_ctime_ns
    _write_seal(file, ctime_ns, _content_of(file, cancelled) if linked else "")


def is_linkable(file: Path) -> bool:
    """Whether an entry's content can be told when a hard link has moved its time."""
    return bool(_read_seal(file)[1])


def _is_sealed(file: Path, cancelled: Cancelled) -> bool:
    """Whether the content is what was put in; the seal is renewed where it had to be read."""
    ctime_ns, content = _read_seal(file)
    for _ in range(_TRIES):
        before = file.lstat()
        if before.st_ctime_ns == ctime_ns:
            return True
        if not content or _content_of(file, cancelled) != content:
            return False
        if file.lstat().st_ctime_ns == before.st_ctime_ns:
            _write_seal(file, before.st_ctime_ns, content)
            return True
    return False


def _content_of(file: Path, cancelled: Cancelled) -> str:
    digest, piece = blake3(max_threads=blake3.AUTO), bytearray(min(_PIECE_BYTES, file.stat().st_size) or 1)
    with file.open("rb", buffering=0) as opened:
        while count := opened.readinto(piece):
            if cancelled():
                raise CopyCancelled
            digest.update(memoryview(piece)[:count])
    return digest.hexdigest(length=16)


def _read_seal(file: Path) -> tuple[int, str]:
    try:
        ctime_ns, _, content = os.readlink(file.with_name(_SEAL)).partition("-")  # noqa: PTH115 -- text, no path
        return int(ctime_ns), content
    except (FileNotFoundError, ValueError):
        return -1, ""


def _write_seal(file: Path, ctime_ns: int, content: str) -> None:
    """A link whose target says it: there at once, or not at all."""
    made = file.with_name(f"{_SEAL}-{secrets.token_hex(8)}")
    os.symlink(f"{ctime_ns}-{content}", made)  # noqa: PTH211
    made.replace(file.with_name(_SEAL))


def is_as_put_in(file: Path, status: os.stat_result) -> bool:
    """Whether an entry's file is still the one that its name says."""
    return Stamp.of(status).name == file.name


def _locked_folder(folder: Path) -> int:
    """A descriptor that locks a folder, until it is closed.

    Raises:
        OSError: Somebody else has locked it.
    """
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


@cache
def _boot() -> str:
    """Which start of the machine this is (8 hex digits); empty where nobody tells."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return ""
