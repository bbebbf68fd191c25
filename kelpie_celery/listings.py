"""The listing of a job's outputs, as it lies on the storage beside their prefix.

A worker writes it when everything is stored; the job's record, and the marker that says that it completed, name it with
its SHA-256.

Limits: held in memory as a whole; about 250 bytes a file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

MAX_LISTING_BYTES = 256 * 1024 * 1024
"""What is larger (about a million files) is not read."""


@dataclass(frozen=True)
class OutputFile:
    """One object of a job's outputs; ``sha256`` (hex) and ``etag`` are of the object as it is stored."""

    bucket: str
    key: str
    size_bytes: int
    sha256: str
    etag: str = ""


@dataclass(frozen=True)
class OutputListing:
    """All outputs of a job.

    Attributes:
        files: By bucket and key.
        bucket: Where the listing itself is stored; empty when there is none.
        key: Likewise.
    """

    files: tuple[OutputFile, ...] = ()
    bucket: str = ""
    key: str = ""

    @property
    def total_bytes(self) -> int:
        """The size of all of them."""
        return sum(file.size_bytes for file in self.files)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the listing as it is stored."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def to_json(self) -> bytes:
        """The listing as it is stored."""
        rows = [
            {"bucket": f.bucket, "key": f.key, "size": f.size_bytes, "sha256": f.sha256, "etag": f.etag}
            for f in self.files
        ]
        return json.dumps({"version": 1, "files": rows}, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> OutputListing:
        """What `to_json` gave.

        Raises:
            ValueError: It is no listing.
        """
        try:
            return cls(tuple(_file(row) for row in json.loads(data)["files"]))
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError("not a listing of outputs") from error

    def summary(self) -> dict[str, Any]:
        """A few words for a job's record."""
        where = {"listing": f"s3://{self.bucket}/{self.key}"} if self.key else {}
        return {"files": len(self.files), "bytes": self.total_bytes, "sha256": self.digest, **where}


def _file(row: Any) -> OutputFile:
    """One row of a listing; whoever may write to the bucket may have put anything into it."""
    size_bytes, words = row["size"], [row["bucket"], row["key"], row["sha256"], row.get("etag", "")]
    if type(size_bytes) is not int or size_bytes < 0 or not all(isinstance(word, str) for word in words):
        raise ValueError("a row of another kind")
    bucket, key, sha256, etag = words
    return OutputFile(bucket, key, size_bytes, sha256, etag)
