"""Makes commits as an attempt does, by the library alone: content on a storage, heads in the ledger."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from kelpie_celery.checkpoints import content, layout
from kelpie_celery.checkpoints.address import endpoint_of, lines_of
from kelpie_celery.checkpoints.manifest import Extent, FileEntry, Header, Manifest, encode
from kelpie_celery.client import Kelpie
from kelpie_celery.definition import parse_definition
from kelpie_celery.ledger.types import Ending, FencingToken, Granted, Line, LineAddress, NewCommit
from kelpie_celery.lifecycle import Outcome, Reason

Files = Mapping[str, bytes]

MODE, MTIME_NS = 0o640, 1_600_000_000_123_456_789


def during(*prefixes: str, bucket: str = "bkt") -> dict[str, Any]:
    """A definition with these checkpoint prefixes."""
    blocks = [
        {"bucket": bucket, "prefix": prefix, "local_path": f"/data/{prefix}", "direction": "upload"}
        for prefix in prefixes
    ]
    return {"command": "true", "container_group_id": "g", "sync": {"during": blocks}}


@dataclass
class Attempt:
    """An attempt of a job that makes commits.

    Attributes:
        kelpie: The client of its ledger.
        s3: A boto3 client of its storage, or a stand-in.
        token: Of the attempt.
        lines: Of its job.
        manifests: Its last commit, by line.
    """

    kelpie: Kelpie
    s3: Any
    token: FencingToken
    lines: list[LineAddress]

    def __post_init__(self) -> None:
        self.manifests: dict[LineAddress, Manifest] = {}
        self._known: dict[tuple[LineAddress, bytes], tuple[Extent, ...]] = {}
        self._sizes: dict[str, int] = {}
        self._counter = count(1)
        found = self.kelpie.app.ledger.lines(self.lines)
        self._bases = {line.address: line.head.id if line.head else "" for line in found}
        self._generation = max((line.generation for line in found), default=0)

    @classmethod
    def of(cls, kelpie: Kelpie, s3: Any, definition: dict[str, Any]) -> Attempt:
        """Submit a job and claim it."""
        job_id = kelpie.submit(definition).id
        granted = kelpie.app.ledger.claim(job_id, uuid.uuid4().hex, "machine-1", "w@m", None, may_run=True)
        assert isinstance(granted, Granted)
        endpoint = endpoint_of(kelpie.settings.aws_endpoint_url)
        transfers = parse_definition(kelpie.get(job_id).definition).transfers()
        return cls(kelpie, s3, granted.token, lines_of(transfers, endpoint))

    @property
    def job_id(self) -> str:
        return self.token.job_id

    def commit(
        self, *files: Files, why: str = "quiet", links: Mapping[str, str] | None = None,
        folders: Sequence[str] = (), accept: bool = True,
    ) -> str:  # fmt: skip
        """Store the files of each line, in the order of the definition, and move the heads; the id of the commit."""
        self._generation += 1
        id_ = layout.commit_id(self._generation, self.token.attempt, self.token.nonce)
        places = tuple((line.bucket, line.prefix) for line in self.lines)
        commits = []
        for line, content_ in zip(self.lines, files, strict=True):
            entries = {path: self._entry(line, data) for path, data in content_.items()}
            header = Header(id_, self._generation, self.job_id, self.token.attempt, why, 1_700_000_000.0, places)
            key = layout.manifest_key(line.prefix, id_)
            used = {extent.segment for entry in entries.values() for extent in entry.extents}
            sizes = {segment: self._sizes[segment] for segment in used}
            manifest = Manifest(header, key, entries, dict(links or {}), tuple(folders), sizes)
            manifest, data = encode(manifest, self.manifests.get(line))
            self.s3.put_object(Bucket=line.bucket, Key=key, Body=data)
            self.manifests[line] = manifest
            commits.append(
                NewCommit(line, id_, self._generation, key, why, len(entries), manifest.total_bytes, 100,
                          self._bases[line])
            )  # fmt: skip
        if accept:
            self.kelpie.app.ledger.commit(self.token, commits, {"why": why})
        return id_

    def _entry(self, line: LineAddress, data: bytes) -> FileEntry:
        extents = self._known.get((line, data))
        if extents is None:
            extents = self._known[line, data] = tuple(self._store(line, data))
        return FileEntry(len(data), MODE, MTIME_NS, extents)

    def _store(self, line: LineAddress, data: bytes) -> list[Extent]:
        extents = []
        for at in range(0, len(data), content.WINDOW_BYTES):
            raw = data[at : at + content.WINDOW_BYTES]
            packed = content.pack(raw)
            home = layout.segments_of(line.prefix, self.job_id, self.token.attempt, self.token.nonce)
            key, stored = f"{home}{next(self._counter)}", bytes(packed.data)
            self.s3.put_object(Bucket=line.bucket, Key=key, Body=stored)
            self._sizes[key] = len(stored)
            extents.append(Extent(key, 0, len(stored), len(raw), packed.codec, content.digest(raw)))
        return extents

    def end(self) -> None:
        """The job completes."""
        self.kelpie.app.ledger.end_attempt(self.token, Ending(Outcome.COMPLETED, Reason.DONE, result={}))

    def end_canceled(self) -> None:
        """The job is canceled."""
        self.kelpie.app.ledger.end_attempt(self.token, Ending(Outcome.CANCELED, Reason.CANCELED))

    def line(self, number: int = 0) -> Line:
        """One of its lines, as the ledger knows it."""
        return self.kelpie.app.ledger.lines([self.lines[number]])[0]
