"""Bringing the files of a commit down: extents in parallel, verified by digest, into temporary names, then renamed.

Extents that lie side by side in a segment come with one request. What a manifest says is checked like the key of an
object: no path leads out of the directory, nor does a link.

Memory: the longest extent (8 MiB, 32 MiB of files over 64 GiB) for each of `STREAMS` requests, twice where it is
packed. Limits: times and permission bits are restored, owners are not.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from kelpie_celery.checkpoints import content
from kelpie_celery.checkpoints.manifest import FileEntry
from kelpie_celery.checkpoints.pieces import Run, Scatter, runs
from kelpie_celery.errors import StorageSetupError, UnsafeKey
from kelpie_worker.sync.errors import disk_errors
from kelpie_worker.sync.object_store import ObjectStore
from kelpie_worker.sync.paths import TEMPORARY, check_parents, conflict, is_below, leads_inside, relative_path
from kelpie_worker.sync.progress import Meter
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.threads import in_thread, run_bounded

STREAMS = 6
_DAMAGED_TRIES = 3
_BATCH = 512
_PERMISSIONS = 0o777


@dataclass(frozen=True)
class Target:
    """A file that is to be made: where, and of what."""

    path: Path
    entry: FileEntry


@dataclass
class _Making:
    target: Target
    temporary: Path


class Fetcher:
    """Fetches the content of commits from one bucket."""

    def __init__(self, store: ObjectStore, bucket: str, patience: Patience, meter: Meter) -> None:
        self._store, self._bucket, self._patience, self._meter = store, bucket, patience, meter

    async def fetch(self, targets: Sequence[Target]) -> None:
        """Make all these files; their folders exist.

        Raises:
            StorageSetupError: Content is gone from the storage, or damaged there.
            StorageUnavailable: Patience ran out.
            DiskFull: No room.
        """
        numbers = count()
        making = [_Making(t, t.path.parent / f"{TEMPORARY}{next(numbers)}") for t in targets]
        self._meter.total_bytes += sum(run.length_bytes for run in _runs(making))
        for batch in _in_batches(making):
            await in_thread(partial(_create, batch))
        await run_bounded(_runs(making), self._fetch_run, STREAMS)
        for batch in _in_batches(making):
            await in_thread(partial(_finish, batch))

    async def _fetch_run(self, run: Run) -> None:
        for _ in range(_DAMAGED_TRIES):
            try:
                await self._patience.persist(partial(self._once, run))
            except content.Damaged as error:
                damaged = error
            else:
                return
        raise StorageSetupError(
            f"bucket {self._bucket!r}, object {run.segment!r}: content of the checkpoint {damaged}; roll the job back"
            " to an earlier one with 'kelpie checkpoints rollback'",
            bucket=self._bucket, key=run.segment,
        )  # fmt: skip

    async def _once(self, run: Run) -> None:
        sink = Scatter(run, _write)
        await self._store.fetch(
            self._bucket, run.segment, sink.take, etag="", start_byte=run.start_byte, length_bytes=run.length_bytes
        )
        self._meter.add(run.length_bytes)
        self._patience.sign_of_life()


def _write(path: Path, at: int, raw: bytes | memoryview) -> None:
    with disk_errors(path, len(raw)):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            done = 0
            while done < len(raw):
                done += os.pwrite(fd, memoryview(raw)[done:], at + done)
        finally:
            os.close(fd)


def _runs(making: Iterable[_Making]) -> list[Run]:
    return runs((one.temporary, one.target.entry.extents) for one in making)


def _in_batches(making: Sequence[_Making]) -> Iterator[Sequence[_Making]]:
    for at in range(0, len(making), _BATCH):
        yield making[at : at + _BATCH]


def _create(batch: Sequence[_Making]) -> None:
    for one in batch:
        with disk_errors(one.temporary, one.target.entry.size):
            fd = os.open(one.temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.ftruncate(fd, one.target.entry.size)
            finally:
                os.close(fd)


def _finish(batch: Sequence[_Making]) -> None:
    for one in batch:
        entry = one.target.entry
        with disk_errors(one.target.path):
            one.temporary.chmod(entry.mode & _PERMISSIONS)
            os.utime(one.temporary, ns=(entry.mtime_ns, entry.mtime_ns))
            one.temporary.replace(one.target.path)


def make_folders(root: Path, bucket: str, prefix: str, folders: Iterable[str], files: Iterable[str]) -> None:
    """Make the folders of a commit; blocking.

    Raises:
        UnsafeKey: One has no place below ``root``.
    """
    wanted = {*folders, *(posixpath.dirname(relative) for relative in files)} - {""}
    for folder in sorted(wanted):
        relative = relative_path(bucket, prefix, f"{prefix}{folder}/")
        check_parents(root, relative, bucket=bucket, key=f"{prefix}{folder}")
        with disk_errors(root / relative):
            (root / relative).mkdir(parents=True, exist_ok=True)


def make_links(root: Path, bucket: str, prefix: str, links: Mapping[str, str]) -> list[str]:
    """Make the symbolic links of a commit; blocking.

    Returns:
        Those that lead out of ``root`` and were left out.

    Raises:
        UnsafeKey: One has no place below ``root``: its path leads through another one, or is a folder's.
    """
    clash = conflict(links)
    if clash:
        # What lies below a link is made wherever that leads, and is looked at only when all are there.
        raise _astray(bucket, f"{prefix}{clash[1]}", f"would be made through the link {clash[0]!r}")
    refused: list[str] = []
    made: dict[str, Path] = {}
    for relative, target in links.items():
        key = f"{prefix}{relative}"
        path = check_parents(root, relative_path(bucket, prefix, key), bucket=bucket, key=key)
        if not leads_inside(relative, target):
            refused.append(relative)
            continue
        with disk_errors(path):
            if path.is_dir() and not path.is_symlink():
                raise _astray(bucket, key, "would take the place of a folder")
            path.unlink(missing_ok=True)
            path.symlink_to(target)
        made[relative] = path
    return refused + _undo_what_leads_out(root, made)


def _astray(bucket: str, key: str, what: str) -> UnsafeKey:
    return UnsafeKey(
        f"bucket {bucket!r}: the link {key!r} of the checkpoint {what}; roll the job back to an earlier one with"
        " 'kelpie checkpoints rollback'", bucket=bucket, key=key,
    )  # fmt: skip


def _undo_what_leads_out(root: Path, made: dict[str, Path]) -> list[str]:
    """Links that lead inside by their text may lead out by way of others: remove them, until none does."""
    refused: list[str] = []
    while astray := [relative for relative, path in made.items() if not is_below(path, root)]:
        for relative in astray:
            with disk_errors(made[relative]):
                made.pop(relative).unlink()
        refused += astray
    return refused
