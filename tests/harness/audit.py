"""Looks at every commit that lies on the storage, also at those that no restore ever asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kelpie_celery.checkpoints import content, layout
from kelpie_celery.checkpoints.manifest import Manifest, Stored, decode, resolve

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class Audit:
    """The commits of one line; what is read is kept in memory."""

    def __init__(self, s3: S3Client, bucket: str, prefix: str) -> None:
        self._s3, self._bucket, self._prefix = s3, bucket, prefix
        self._objects: dict[str, bytes] = {}

    def manifests(self) -> Iterator[Manifest]:
        """The manifest of each commit, the oldest first; also of those that the ledger did not take."""
        pages = self._s3.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=layout.commits_prefix(self._prefix)
        )
        for key in sorted(entry["Key"] for page in pages for entry in page.get("Contents", ())):
            yield resolve(reversed(list(self._chain(key))))

    def _chain(self, key: str) -> Iterator[Stored]:
        parent: str | None = key
        while parent is not None:
            stored = decode(parent, self._object(parent))
            yield stored
            parent = stored.parent

    def put(self, manifest: Manifest, directory: Path) -> None:
        """Put the files of a commit into a directory, which must not exist."""
        directory.mkdir(parents=True)
        for relative, entry in manifest.files.items():
            path = directory / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                for extent in entry.extents:
                    stored = self._object(extent.segment)[extent.at : extent.at + extent.stored]
                    file.write(content.unpack(extent.codec, stored, extent.length, extent.digest))

    def _object(self, key: str) -> bytes:
        if key not in self._objects:
            self._objects[key] = self._s3.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        return self._objects[key]
