"""The checkpoints that a job keeps, as its lines together tell.

A job with several checkpoint prefixes commits to all of them at once, so a checkpoint is one id over several lines.
Lines can differ all the same: one of them was another job's before, or the definition has changed since.

Limits: what the ledger says; the storage is not asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kelpie_celery.ledger.types import CommitEntry, Line


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be gone back to.

    Attributes:
        id: Of its commit, the same below all prefixes.
        job_id: The job that made it: perhaps an earlier one with the same prefix.
        attempt: Its attempt.
        why: ``quiet``, ``report``, ``marker``, ``exit``, ``sigterm`` or ``rollback``.
        at: When the ledger took it, seconds since the epoch by Redis's clock.
        files: Below all prefixes that have it.
        bytes: Of all these files.
        sent_bytes: What of them was uploaded for it.
        prefixes: Where it is kept, as ``s3://bucket/prefix/``.
        head_of: Of which of them it is the newest, which a job goes on from.
        is_head: Whether that is all of the job's prefixes.
        is_everywhere: Whether it is kept below all of the job's prefixes.
    """

    id: str
    job_id: str
    attempt: int
    why: str
    at: float
    files: int
    bytes: int
    sent_bytes: int
    prefixes: tuple[str, ...]
    head_of: tuple[str, ...]
    is_head: bool
    is_everywhere: bool


def checkpoints_of(lines: Sequence[Line]) -> list[Checkpoint]:
    """The checkpoints of a job's lines, the newest first."""
    kept: dict[str, list[tuple[Line, CommitEntry]]] = {}
    for line in lines:
        for commit in line.kept:
            kept.setdefault(commit.id, []).append((line, commit))
    found = [_checkpoint(id_, places, len(lines)) for id_, places in kept.items()]
    # The generation comes first in an id, with as many digits in all of them.
    return sorted(found, key=lambda one: (one.id.partition("-")[0], one.at), reverse=True)


def _checkpoint(id_: str, places: Sequence[tuple[Line, CommitEntry]], lines: int) -> Checkpoint:
    commits = [commit for _, commit in places]
    head_of = tuple(line.address.url for line, commit in places if line.head is not None and line.head.id == commit.id)
    return Checkpoint(
        id_, commits[0].job_id, commits[0].attempt, commits[0].why, max(commit.at for commit in commits),
        sum(commit.files for commit in commits), sum(commit.bytes for commit in commits),
        # Each line carries what was sent for the whole commit.
        max(commit.sent_bytes for commit in commits), tuple(line.address.url for line, _ in places), head_of,
        is_head=len(head_of) == lines, is_everywhere=len(places) == lines,
    )  # fmt: skip
