"""Where the objects of commits lie: beside the prefix that they belong to, never below it.

For the prefix ``runs/a/``:

    runs/a.kelpie/data/<job id>/<attempt>-<nonce>/<counter>    a segment: content, written once
    runs/a.kelpie/commits/<commit id>.json.zst                 the manifest of one commit
    runs/a.kelpie/jobs/<job id>/...                            what a job says of its end (``sync/records.py``)

A commit's id is ``<generation>-<attempt>-<nonce>``, so that a listing shows commits in the order of their generations.

Limits: names only; nothing here looks at a storage.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from kelpie_celery.transfers import control_prefix

_NONCE_CHARS = 8
_GENERATION_DIGITS = 10
_MANIFEST = ".json.zst"
_SEGMENT = re.compile(r"data/([^/]+)/\d+-[0-9A-Za-z]{1,8}/[^/]+")
_RECORD = re.compile(r"jobs/[^/]+/[^/]+")
_ID = re.compile(r"(\d{10})-(\d+)-([0-9A-Za-z]{1,8})")


def data_prefix(prefix: str) -> str:
    """Where the segments of all attempts lie."""
    return f"{control_prefix(prefix)}data/"


def commits_prefix(prefix: str) -> str:
    """Where the manifests lie."""
    return f"{control_prefix(prefix)}commits/"


def is_of_commits(prefix: str, key: str) -> bool:
    """Whether a key is where the segments and manifests of a prefix lie: nothing else is deleted with a commit."""
    return key.startswith((data_prefix(prefix), commits_prefix(prefix)))


def segments_of(prefix: str, job_id: str, attempt: int, nonce: str) -> str:
    """Where the segments of one attempt lie; the nonce keeps two attempts that were given one number apart."""
    return f"{data_prefix(prefix)}{job_id}/{attempt}-{nonce[:_NONCE_CHARS]}/"


def commit_id(generation: int, attempt: int, nonce: str) -> str:
    """The id of a commit; no other commit of the same lines has it."""
    return f"{generation:0{_GENERATION_DIGITS}d}-{attempt}-{nonce[:_NONCE_CHARS]}"


def manifest_key(prefix: str, id_: str) -> str:
    """Where the manifest of a commit lies."""
    return f"{commits_prefix(prefix)}{id_}{_MANIFEST}"


class CommitName(NamedTuple):
    """What the id of a commit says."""

    generation: int
    attempt: int
    nonce: str


def parse_id(id_: str) -> CommitName | None:
    """The parts of a commit's id; None when it is none."""
    found = _ID.fullmatch(id_)
    return CommitName(int(found[1]), int(found[2]), found[3]) if found else None


def id_of_manifest(key: str) -> str | None:
    """The commit that a key under `commits_prefix` is the manifest of; None for anything else."""
    name = key.rpartition("/")[2]
    if not name.endswith(_MANIFEST):
        return None
    id_ = name.removesuffix(_MANIFEST)
    return id_ if parse_id(id_) else None


Kind = Literal["content", "manifest", "record", "other"]


def kind_of(prefix: str, key: str) -> Kind:
    """What an object below `control_prefix` is; ``other`` is nothing of ours."""
    relative = key.removeprefix(control_prefix(prefix))
    if _SEGMENT.fullmatch(relative):
        return "content"
    if relative.startswith("commits/") and relative.count("/") == 1 and id_of_manifest(key):
        return "manifest"
    return "record" if _RECORD.fullmatch(relative) else "other"


def job_of_segment(prefix: str, key: str) -> str | None:
    """The job that made a segment; None for any other key."""
    found = _SEGMENT.fullmatch(key.removeprefix(control_prefix(prefix)))
    return found[1] if found else None
