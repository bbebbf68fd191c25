"""Going back to an older checkpoint: a new commit with its content, first on the storage, then in the ledger.

The new manifests are whole ones, so that they depend on no other manifest, and refer to the same segments, which the
older commit keeps alive until the ledger has taken the new one. What the ledger refuses is deleted again.

Limits: plain keys stay as they are until the job's next attempt follows the new checkpoint.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kelpie_celery.checkpoints import layout
from kelpie_celery.checkpoints.manifest import BadManifest, Header, Manifest, check_places, encode
from kelpie_celery.checkpoints.manifests import Manifests, highest
from kelpie_celery.checkpoints.storage import Storage
from kelpie_celery.errors import CommitGone, JobNotFound, LineMoved, PrefixHeld, StorageError, StorageSetupError
from kelpie_celery.ledger.types import CommitEntry, Line, NewCommit

log = logging.getLogger(__name__)

WHY = "rollback"
_NONCE_BYTES = 4
_ATTEMPT = 0
"""Workers count from 1."""
_TRIES = 5
_REFUSED = (CommitGone, JobNotFound, LineMoved, PrefixHeld)


@dataclass(frozen=True)
class Older:
    """A commit to go back to, in one line."""

    line: Line
    entry: CommitEntry
    manifest: Manifest


@dataclass(frozen=True)
class _Written:
    bucket: str
    key: str
    version: str


ReadLines = Callable[[], Sequence[Line]]
Accept = Callable[[Sequence[NewCommit]], Sequence[Line]]


class Rollback:
    """Takes one job back.

    Args:
        storage: Where the job's checkpoints are.
        job_id: The job.
        read_lines: Reads its lines from the ledger.
        accept: Hands new commits to the ledger; see `kelpie_celery.ledger.lines.Lines.rollback`.
        now: The present time, for people.
    """

    def __init__(
        self, storage: Storage, job_id: str, read_lines: ReadLines, accept: Accept, now: Callable[[], float]
    ) -> None:
        self._storage, self._job_id, self._read_lines = storage, job_id, read_lines
        self._accept, self._now = accept, now

    def to(self, commit: str) -> str:
        """Go back to a commit.

        Returns:
            The id of the new one, which has its content.

        Raises:
            CommitGone: It is not kept.
            PrefixHeld: Another job that is pending or running commits to one of the prefixes.
            LineMoved: The job stores new checkpoints faster than this could be done.
            StorageError: Something of it is gone, or the storage cannot be written to; nothing has changed.
            LedgerUnavailable: It is not known whether the ledger took it.
        """
        for last in (*[False] * (_TRIES - 1), True):
            lines = self._read_lines()
            older = find(self._job_id, lines, commit, Manifests(self._storage))
            try:
                return self._once(older)
            except LineMoved:
                # Its running attempt committed meanwhile: that does not change where to go back to.
                if last:
                    raise
        raise AssertionError("unreachable")

    def _once(self, older: Sequence[Older]) -> str:
        manifests = Manifests(self._storage)
        listed = [highest(manifests.ids(one.line.address.bucket, one.line.address.prefix)) for one in older]
        generation = 1 + max(*listed, *(one.line.generation for one in older))
        id_ = layout.commit_id(generation, _ATTEMPT, secrets.token_hex(_NONCE_BYTES))
        commits, written = [], []
        try:
            for one in older:
                manifest = self._renewed(one, id_, generation, older)
                _, data = encode(manifest, None)
                bucket = one.line.address.bucket
                # Noted before it is sent: an answer that is lost does not tell whether it was stored.
                written.append(_Written(bucket, manifest.key, ""))
                written[-1] = _Written(bucket, manifest.key, self._storage.put(bucket, manifest.key, data))
                commits.append(_new_commit(one, manifest))
        except BaseException:
            self._take_back(written)
            raise
        try:
            self._accept(commits)
        except _REFUSED:
            self._take_back(written)
            raise
        return id_

    def _renewed(self, one: Older, id_: str, generation: int, older: Sequence[Older]) -> Manifest:
        lines = tuple((other.line.address.bucket, other.line.address.prefix) for other in older)
        header = Header(id_, generation, self._job_id, _ATTEMPT, WHY, self._now(), lines)
        return replace(one.manifest, header=header, key=layout.manifest_key(one.line.address.prefix, id_))

    def _take_back(self, written: Sequence[_Written]) -> None:
        for one in written:
            try:
                self._storage.delete(one.bucket, one.key, one.version)
            except StorageError as error:
                extra = {"action": "rollback_leftover", "bucket": one.bucket, "key": one.key, "error": str(error)}
                log.warning("a manifest that nothing refers to stays on the storage", extra=extra)


def find(job_id: str, lines: Sequence[Line], commit: str, manifests: Manifests) -> list[Older]:
    """The commit to go back to, in every line, with all that it consists of looked up.

    Raises:
        PrefixHeld: Another live job holds one of the lines.
        CommitGone: The commit is not kept in one of them.
        StorageSetupError: Something of it is gone from the storage, or cannot be read.
        StorageUnavailable: The storage is away.
    """
    found = []
    for line in lines:
        address = line.address
        if line.holder_lives and line.holder != job_id:
            raise PrefixHeld(line.holder or "?", address.bucket, address.prefix)
        entry = next((entry for entry in line.kept if entry.id == commit), None)
        if entry is None:
            raise CommitGone(job_id, commit, address.url)
        manifest = load(line, entry, manifests)
        missing = manifests.missing(address.bucket, address.prefix, manifest)
        if missing:
            raise StorageSetupError(
                f"checkpoint {commit} is not whole: {len(missing)} of the {len(manifest.segments())} objects with its"
                f" content are gone from s3://{address.bucket}, {missing[0]!r} among them; choose another checkpoint",
                bucket=address.bucket, key=missing[0],
            )  # fmt: skip
        found.append(Older(line, entry, manifest))
    return found


def load(line: Line, entry: CommitEntry, manifests: Manifests) -> Manifest:
    """The manifest of a commit that the ledger keeps.

    Raises:
        StorageSetupError: It is gone, cannot be read, or leads to content that is not its line's.
        StorageUnavailable: The storage is away.
    """
    bucket = line.address.bucket
    try:
        manifest = manifests.load(bucket, entry.manifest)
        if manifest is not None:
            check_places(manifest, line.address.prefix)
        why = "" if manifest else "is gone from the storage"
    except BadManifest as error:
        manifest, why = None, str(error)
    if manifest is None:
        raise StorageSetupError(
            f"the manifest of checkpoint {entry.id} cannot be had: s3://{bucket}/{entry.manifest} {why}; choose another"
            " checkpoint", bucket=bucket, key=entry.manifest,
        )  # fmt: skip
    return manifest


def _new_commit(one: Older, manifest: Manifest) -> NewCommit:
    header, head = manifest.header, one.line.head
    return NewCommit(
        one.line.address, header.id, header.generation, manifest.key, WHY, len(manifest.files), manifest.total_bytes, 0,
        head.id if head else "",
    )  # fmt: skip
