"""Finds and deletes what nothing refers to any more below a checkpoint prefix, for a person who asks for it.

Workers collect the garbage of their own lines while they run; what their jobs leave at their end stays, and is found
here. Where the ledger knows the line, what its kept commits refer to stays, and those that were dropped a moment ago.
Where it has forgotten the line, the newest whole commit stays, which a restore would take.

Only segments and manifests are ever deleted, and on a bucket with versions the hidden versions of them. Records of
jobs, objects that are not kelpie's, and uploads in parts stay.

Limits: looked at and deleted in two steps; the line is looked at again in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kelpie_celery.checkpoints import layout, sweep
from kelpie_celery.checkpoints.manifest import BadManifest
from kelpie_celery.checkpoints.manifests import Manifests
from kelpie_celery.checkpoints.storage import REQUESTS, Found, Storage
from kelpie_celery.errors import StorageError, StorageSetupError
from kelpie_celery.ledger.types import Line
from kelpie_celery.transfers import control_prefix

KINDS = ("content", "manifest", "record", "other", "hidden")
"""What there is: see `layout.kind_of`; and ``hidden``, versions that only a bucket with versions shows."""

OnDeleted = Callable[[int, int], None]
"""Told how many of how many objects are deleted; from any thread, one at a time."""
ReadLine = Callable[[], Line]
Living = Callable[[Set[str]], Sequence[str]]
"""Which of some jobs are pending or running."""

_BATCH = 256


@dataclass(frozen=True)
class Tally:
    """How many objects of one kind there are, and how many of them are garbage."""

    objects: int = 0
    bytes: int = 0
    garbage_objects: int = 0
    garbage_bytes: int = 0


@dataclass(frozen=True)
class Garbage:
    """What lies below one prefix, and what of it may go.

    Attributes:
        line: The line as the ledger knew it then.
        forgotten: Whether the ledger knows nothing of it.
        kept: Ids of the commits whose objects stay.
        due: Those that the ledger dropped long enough ago.
        found: What may be deleted.
        jobs: Those that made any content that is there.
        tallies: By kind; see `KINDS`.
        versions: Whether hidden versions were looked for.
    """

    line: Line
    forgotten: bool
    kept: tuple[str, ...]
    due: tuple[str, ...]
    found: tuple[Found, ...]
    jobs: frozenset[str]
    tallies: dict[str, Tally]
    versions: bool

    @property
    def bytes(self) -> int:
        """How much room is gained."""
        return sum(found.size_bytes for found in self.found)


class Collector:
    """Collects the garbage below one prefix.

    Args:
        storage: Where it is.
        read_line: Reads the line from the ledger.
        living: Asks the ledger.
    """

    def __init__(self, storage: Storage, read_line: ReadLine, living: Living) -> None:
        self._storage, self._read_line, self._living = storage, read_line, living

    def look(self, older_than_s: float, *, forgotten: bool) -> Garbage:
        """Find out what may go.

        Args:
            older_than_s: What is younger stays, seconds.
            forgotten: Whether to go on where the ledger knows nothing of the line.

        Raises:
            StorageSetupError: A live job keeps its checkpoints there; the ledger knows nothing of the line; or what
                has to stay cannot be told.
            StorageUnavailable: The storage is away.
        """
        address = self._quiet_line(frozenset()).address
        listed, versions = self._list(address.bucket, control_prefix(address.prefix))
        jobs = frozenset(filter(None, (layout.job_of_segment(address.prefix, found.key) for found in listed)))
        # After the listing: what was accepted meanwhile is referred to.
        line = self._quiet_line(jobs)
        manifests, due = Manifests(self._storage), list[str]()
        if line.generation:
            kept, due = _live(line, older_than_s)
        elif forgotten or not any(_is_ours(address.prefix, found) for found in listed):
            kept = self._newest_whole(line, listed, manifests)
        else:
            raise _unknown(line)
        referred = self._referred(line, kept, manifests)
        dead = [
            found
            for found in listed
            if _is_ours(address.prefix, found)
            and sweep.is_orphan(found.key, found.modified, referred, line.now, older_than_s)
        ]
        tallies = _tallies(address.prefix, listed, set(dead))
        return Garbage(line, not line.generation, tuple(kept), tuple(due), tuple(dead), jobs, tallies, versions)

    def _list(self, bucket: str, prefix: str) -> tuple[list[Found], bool]:
        """Everything there is, hidden versions too where the storage knows and shows them. One listing at a time."""
        try:
            found = list(self._storage.versions(bucket, prefix))
        except StorageSetupError:
            # It knows no versions, or does not let them be listed.
            return list(self._storage.list(bucket, prefix)), False
        if any(one.is_current for one in found):
            return found, True
        # A storage that takes no notice of the question answers with something else than versions.
        plain = list(self._storage.list(bucket, prefix))
        return (plain, False) if plain else (found, True)

    def _quiet_line(self, jobs: Set[str]) -> Line:
        """The line, once it is sure that no live job uses it: not its holder, nor one that has yet to commit."""
        line = self._read_line()
        alive = [line.holder] if line.holder_lives and line.holder else list(self._living(jobs))
        if alive:
            raise StorageSetupError(
                f"job {alive[0]} is pending or running and keeps its checkpoints below {line.address.url}; its worker"
                " collects the garbage there: wait for its end, or cancel it",
                bucket=line.address.bucket, key=line.address.prefix,
            )  # fmt: skip
        return line

    def _newest_whole(self, line: Line, listed: Iterable[Found], manifests: Manifests) -> list[str]:
        address = line.address
        keys = [found.key for found in listed if found.is_current]
        ids = [layout.id_of_manifest(key) for key in keys if layout.kind_of(address.prefix, key) == "manifest"]

        def is_whole(id_: str) -> bool:
            manifest = manifests.load(address.bucket, layout.manifest_key(address.prefix, id_))
            return manifest is not None and manifests.is_whole(address.bucket, address.prefix, manifest)

        try:
            found = sweep.newest((id_ for id_ in ids if id_), is_whole)
        except BadManifest as error:
            raise StorageSetupError(
                f"below {address.url} something cannot be read that may be the newest checkpoint, so nothing may be"
                f" deleted: {error}", bucket=address.bucket, key=address.prefix,
            ) from error  # fmt: skip
        if found is None and ids:
            raise StorageSetupError(
                f"none of the {len(ids)} checkpoints below {address.url} is whole, so it cannot be told what to keep;"
                " if you need none of them, delete them with a tool of the storage's",
                bucket=address.bucket, key=address.prefix,
            )  # fmt: skip
        return [found] if found else []

    @staticmethod
    def _referred(line: Line, kept: Sequence[str], manifests: Manifests) -> set[str]:
        """What the commits that stay refer to.

        Raises:
            StorageSetupError: The manifest of one that is kept cannot be had.
        """
        bucket, referred = line.address.bucket, set[str]()
        dropped = {one.commit.id for one in line.dropped}
        entries = {entry.id: entry.manifest for entry in (*line.kept, *(one.commit for one in line.dropped))}
        for id_ in kept:
            key = entries.get(id_) or layout.manifest_key(line.address.prefix, id_)
            try:
                manifest = manifests.load(bucket, key)
                why = "" if manifest or id_ in dropped else "is gone"
            except BadManifest as error:
                manifest, why = None, str(error)
            if why:
                raise StorageSetupError(
                    f"nothing below {line.address.url} may be deleted, as it cannot be told what checkpoint {id_}"
                    f" needs: its manifest s3://{bucket}/{key} {why}", bucket=bucket, key=key,
                )  # fmt: skip
            # A dropped commit without a manifest has been collected already.
            referred |= manifest.refers_to() if manifest else set()
        return referred

    def delete(self, garbage: Garbage, progress: OnDeleted | None = None) -> int:
        """Delete what was found.

        Returns:
            How many objects, or versions of such, were deleted.

        Raises:
            StorageSetupError: The line has changed since it was looked at, or the storage refuses.
            StorageUnavailable: The storage is away; what is left is found again.
        """
        line, address = self._quiet_line(garbage.jobs), garbage.line.address
        if (line.generation, line.kept) != (garbage.line.generation, garbage.line.kept):
            raise StorageSetupError(
                f"a checkpoint came to {address.url} since it was looked at; nothing was deleted: look again",
                bucket=address.bucket, key=address.prefix,
            )  # fmt: skip
        done = 0
        for batch in _in_order(address.prefix, garbage.found):
            try:
                self._delete(address.bucket, batch)
            except StorageError as error:
                text = f"{error}; about {done} of {len(garbage.found)} objects were deleted: try again"
                raise type(error)(text, bucket=error.bucket, key=error.key) from error
            done += len(batch)
            if progress is not None:
                progress(done, len(garbage.found))
        return done

    def _delete(self, bucket: str, batch: Sequence[Found]) -> None:
        with ThreadPoolExecutor(REQUESTS, thread_name_prefix="kelpie-gc") as pool:
            try:
                for _ in pool.map(lambda found: self._storage.delete(bucket, found.key, found.version), batch):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _in_order(prefix: str, found: Iterable[Found]) -> list[list[Found]]:
    """In batches: manifests first, so that none is there without its content; then content; delete markers last.

    A marker that went before what it hides would bring that back for a moment.
    """
    ranked: dict[int, list[Found]] = {0: [], 1: [], 2: []}
    for one in found:
        rank = 2 if one.is_marker else int(layout.kind_of(prefix, one.key) != "manifest")
        ranked[rank].append(one)
    return [ones[at : at + _BATCH] for ones in ranked.values() for at in range(0, len(ones), _BATCH)]


def _live(line: Line, older_than_s: float) -> tuple[list[str], list[str]]:
    """Ids of the commits that stay, and of those whose time is over."""
    dropped = [sweep.DroppedCommit(one.commit.id, one.at) for one in line.dropped]
    alive = sweep.live((commit.id for commit in line.kept), dropped, line.now, older_than_s)
    return sorted(alive), sweep.due(dropped, line.now, older_than_s)


def _tallies(prefix: str, listed: Iterable[Found], dead: Set[Found]) -> dict[str, Tally]:
    counts: Counter[tuple[str, str]] = Counter()
    for found in listed:
        kind = layout.kind_of(prefix, found.key) if found.is_current else "hidden"
        counts.update({(kind, "objects"): 1, (kind, "bytes"): found.size_bytes})
        if found in dead:
            counts.update({(kind, "garbage_objects"): 1, (kind, "garbage_bytes"): found.size_bytes})
    fields = ("objects", "bytes", "garbage_objects", "garbage_bytes")
    return {kind: Tally(*(counts[kind, field] for field in fields)) for kind in KINDS}


def _is_ours(prefix: str, found: Found) -> bool:
    return layout.kind_of(prefix, found.key) in ("content", "manifest")


def _unknown(line: Line) -> StorageSetupError:
    address = line.address
    return StorageSetupError(
        f"the ledger knows no checkpoint below {address.url} on {address.endpoint or 'AWS'}: it has forgotten the"
        " prefix, or KELPIE_REDIS_URL or AWS_ENDPOINT_URL is not what the workers had; where you are sure that no job"
        " uses the prefix, --forgotten keeps its newest whole checkpoint and deletes the others",
        bucket=address.bucket, key=address.prefix,
    )  # fmt: skip
