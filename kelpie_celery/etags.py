"""What S3's ETags say of an object's content.

The ETag of an object that was stored in one request is the MD5 of its content; of one that was made of parts it is the
MD5 of their MD5s, and their number.

Limits: some storages, and some ways of encryption, give ETags of the same look that are no MD5: that an ETag differs
proves nothing by itself.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

_MD5 = re.compile(r"[0-9a-f]{32}")
_OF_PARTS = re.compile(r"[0-9a-f]{32}-[1-9][0-9]{0,4}")


def etag_of_parts(part_etags: Sequence[str]) -> str:
    """The ETag that S3 gives to an object made of parts; empty where the parts' own are no MD5 digests."""
    if not all(_MD5.fullmatch(etag) for etag in part_etags):
        return ""
    joined = b"".join(bytes.fromhex(etag) for etag in part_etags)
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(part_etags)}"


def looks_like_md5(etag: str) -> bool:
    """Whether an ETag may be the MD5 of an object that was stored in one request."""
    return bool(_MD5.fullmatch(etag))


def looks_like_parts(etag: str) -> bool:
    """Whether an ETag may be one that `etag_of_parts` gives."""
    return bool(_OF_PARTS.fullmatch(etag))


class Etag:
    """The ETag of what it is fed.

    Args:
        part_bytes: How large the parts are; 0 when there are none.
    """

    def __init__(self, part_bytes: int) -> None:
        self._part_bytes, self._left = part_bytes, part_bytes
        self._parts: list[str] = []
        self._part = hashlib.md5(usedforsecurity=False)

    def update(self, data: memoryview) -> None:
        """Feed it some bytes."""
        while self._part_bytes and len(data) >= self._left:
            self._part.update(data[: self._left])
            data = data[self._left :]
            self._end_part()
        self._part.update(data)
        self._left -= len(data)

    def _end_part(self) -> None:
        self._parts.append(self._part.hexdigest())
        self._part, self._left = hashlib.md5(usedforsecurity=False), self._part_bytes

    def value(self) -> str:
        """The ETag of all of it."""
        if not self._part_bytes:
            return self._part.hexdigest()
        if self._left < self._part_bytes:
            self._end_part()
        return etag_of_parts(self._parts)
