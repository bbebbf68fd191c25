"""Whether a file on this disk and an object on the storage hold the same.

An object's ETag tells it, where that is an MD5 (see `kelpie_celery.etags`); of one that was made of parts, the size of
its parts is found by trying those that programs use. Where a digest is known, that decides.

Limits: of ETags that are no MD5 nothing can be told: such a file counts as different, and is sent or fetched again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kelpie_celery.errors import DirectoryError
from kelpie_celery.etags import Etag, looks_like_md5, looks_like_parts
from kelpie_celery.staging.tree import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1024 * 1024
SINGLE_BYTES = 32 * MIB
"""Files up to this size are sent in one request."""
PART_BYTES = 8 * MIB
MAX_PARTS = 10_000
_CHUNK_BYTES = MIB
# Of kelpie's workers, the AWS command line and boto3, rclone, s5cmd, and what else is usual.
_USUAL_PARTS = tuple(mebibytes * MIB for mebibytes in (8, 32, 5, 16, 50, 64, 10, 15, 25, 100, 128, 256, 512))


Check = Callable[[], None]
"""Called at each piece of a long piece of work; raises where that is of no use any more."""


def go_on() -> None:
    """Nobody will stop it."""


class Stamp(NamedTuple):
    """What tells that a file was not written to: device, inode, size in bytes, time of the last change in ns."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Of a file that is there.

        Raises:
            DirectoryError: It is gone.
        """
        with reading(path):
            status = path.stat(follow_symlinks=False)
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def check_still(self, path: Path) -> None:
        """See that nobody wrote to the file.

        Raises:
            DirectoryError: Somebody did.
        """
        if Stamp.of(path) != self:
            raise DirectoryError(f"{shown(path)} changed while it was sent; run it again when nothing writes to it")


def part_bytes(size_bytes: int) -> int:
    """How large the parts of an upload of ours are; 0 where it is sent in one request."""
    if size_bytes <= SINGLE_BYTES:
        return 0
    part = PART_BYTES
    while size_bytes > part * MAX_PARTS:
        part *= 2
    return part


def etag_of(path: Path, part_bytes_: int, check: Check = go_on) -> str:
    """The ETag that a file has on the storage when it is cut like that.

    Raises:
        DirectoryError: It cannot be read.
    """
    etag = Etag(part_bytes_)
    _feed(path, etag.update, check)
    return etag.value()


def sha256_of(path: Path, check: Check = go_on) -> str:
    """SHA-256 (hex) of a file.

    Raises:
        DirectoryError: It cannot be read.
    """
    digest = hashlib.sha256()
    _feed(path, digest.update, check)
    return digest.hexdigest()


def is_telling(etag: str, size_bytes: int) -> bool:
    """Whether content can be compared with this ETag."""
    return any(True for _ in _cuts(etag, size_bytes))


def has_etag(path: Path, etag: str, size_bytes: int, check: Check = go_on) -> bool:
    """Whether a file of that size is what an object with this ETag holds; ``check`` may end the reading by raising.

    Raises:
        DirectoryError: It cannot be read.
    """
    return any(etag_of(path, cut, check) == etag for cut in _cuts(etag, size_bytes))


def _cuts(etag: str, size_bytes: int) -> Iterable[int]:
    """Every way that an object with this ETag may have been cut; none where the ETag is no digest."""
    if looks_like_md5(etag):
        yield 0
    elif looks_like_parts(etag):
        count = int(etag.partition("-")[2])
        if count == 1:
            yield max(1, size_bytes)  # whatever the size of a part was
            return
        usual = dict.fromkeys((part_bytes(size_bytes) or PART_BYTES, *_USUAL_PARTS))
        yield from (part for part in usual if -(-size_bytes // part) == count)


def _feed(path: Path, take: Callable[[memoryview], object], check: Check) -> None:
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with reading(path), path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            check()
            take(buffer[:count])


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Errors of the disk as ours.

    Raises:
        DirectoryError: Names the file.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise DirectoryError(f"cannot read {shown(path)}: {why}; check that it is there, its owner and mode") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """The same for what is written.

    Raises:
        DirectoryError: Names the file.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or os.strerror(error.errno or 0)
        text = f"cannot write {shown(path)}: {why}; check the disk's room and the folder's owner"
        raise DirectoryError(text) from error
