"""An S3 client in memory, as far as ``kelpie checkpoints`` uses one; its answers and errors are botocore's."""

# ruff: noqa: N803 -- boto3's names

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any

from botocore.exceptions import ClientError
from botocore.response import StreamingBody

from kelpie_celery.checkpoints.storage import Storage

_PAGE = 3
"""Small, so that there are several pages."""


@dataclass
class Version:
    """One version of an object; without data it is a delete marker."""

    id: str
    data: bytes | None
    modified: float


def refused(code: str, status: int, message: str = "no") -> ClientError:
    """An answer of the storage that is an error."""
    answer: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "Operation")


class NoSuchKey(ClientError):
    """As botocore's clients make one."""

    def __init__(self) -> None:
        super().__init__(
            {"Error": {"Code": "NoSuchKey"}, "ResponseMetadata": {"HTTPStatusCode": 404}},  # type: ignore[typeddict-item]  # what is read of it
            "GetObject",
        )


class _Exceptions:
    NoSuchKey = NoSuchKey


@dataclass
class FakeS3:
    """Buckets by name; each key has its versions, the newest last.

    Attributes:
        now: When what is stored next is stored.
        versioned: Whether buckets keep versions.
        knows_versions: Whether versions can be asked for.
        before: Called with operation and key before each request; may raise.
        body: May replace what is sent of an object; what is missing then is missing on the way.
    """

    now: float = 1_700_000_000.0
    versioned: bool = False
    knows_versions: bool = True
    before: Callable[[str, str], None] = lambda _operation, _key: None
    body: Callable[[str, bytes], bytes] = lambda _key, data: data
    objects: dict[tuple[str, str], list[Version]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.exceptions = _Exceptions
        self._ids = count(1)

    @property
    def storage(self) -> Storage:
        """What the commands take for a storage."""
        return Storage(lambda: self)  # type: ignore[arg-type, return-value]  # a stand-in

    def listed(self, bucket: str = "bkt") -> list[str]:
        """What a plain listing shows."""
        return sorted(key for (home, key) in self.objects if home == bucket and self._current(home, key))

    def _current(self, bucket: str, key: str) -> Version | None:
        versions = self.objects.get((bucket, key))
        return versions[-1] if versions and versions[-1].data is not None else None

    # -- the client --------------------------------------------------------------------------------------------------

    def put_object(self, *, Bucket: str, Key: str, Body: bytes) -> dict[str, Any]:
        self.before("put", Key)
        versions = self.objects.setdefault((Bucket, Key), [])
        if not self.versioned:
            versions.clear()
        versions.append(Version(f"v{next(self._ids)}" if self.versioned else "null", Body, self.now))
        return {"VersionId": versions[-1].id} if self.versioned else {}

    def get_object(self, *, Bucket: str, Key: str, Range: str = "") -> dict[str, Any]:
        self.before("get", Key)
        found = self._current(Bucket, Key)
        if found is None or found.data is None:
            raise NoSuchKey
        first, last = 0, len(found.data) - 1
        if Range:
            first, asked = (int(n) for n in Range.removeprefix("bytes=").split("-"))
            if first > last:
                raise refused("InvalidRange", 416)
            last = min(last, asked)
        body, length = self.body(Key, found.data)[first : last + 1], last + 1 - first
        found_at = {"ContentRange": f"bytes {first}-{last}/{len(found.data)}"} if Range else {}
        return {"Body": StreamingBody(io.BytesIO(body), length), "ContentLength": length, **found_at}

    def delete_object(self, *, Bucket: str, Key: str, VersionId: str = "") -> dict[str, Any]:
        self.before("delete", Key)
        versions = self.objects.get((Bucket, Key), [])
        if VersionId:
            versions[:] = [version for version in versions if version.id != VersionId]
        elif self.versioned:
            versions.append(Version(f"v{next(self._ids)}", None, self.now))
        else:
            versions.clear()
        return {}

    def get_paginator(self, operation: str) -> _Paginator:
        return _Paginator(self, operation)


@dataclass
class _Paginator:
    s3: FakeS3
    operation: str

    def paginate(self, *, Bucket: str, Prefix: str) -> Iterator[dict[str, Any]]:
        self.s3.before(self.operation, Prefix)
        if Bucket == "nonesuch":
            raise refused("NoSuchBucket", 404)
        versions = self.operation == "list_object_versions"
        if versions and not self.s3.knows_versions:
            raise refused("NotImplemented", 501)
        rows = [
            (key, version, version is all_[-1])
            for (bucket, key), all_ in sorted(self.s3.objects.items())
            for version in reversed(all_)
            if bucket == Bucket and key.startswith(Prefix)
        ]
        if not versions:
            rows = [row for row in rows if row[2] and row[1].data is not None]
        for at in range(0, max(len(rows), 1), _PAGE):
            yield self._page(rows[at : at + _PAGE], versions=versions)

    def _page(self, rows: list[tuple[str, Version, bool]], *, versions: bool) -> dict[str, Any]:
        page: dict[str, Any] = {"IsTruncated": False}
        for key, version, latest in rows:
            row = {"Key": key, "LastModified": datetime.fromtimestamp(version.modified, UTC)}
            if versions:
                row |= {"VersionId": version.id, "IsLatest": latest}
            if version.data is None:
                page.setdefault("DeleteMarkers", []).append(row)
            else:
                page.setdefault("Versions" if versions else "Contents", []).append(row | {"Size": len(version.data)})
        return page
