"""The few XML documents of S3's that pass over the wire.

Limits: answers are searched, not parsed; a document that says nothing of what is looked for gives an empty string.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence


def completion(part_etags: Sequence[str], checksums: Mapping[int, str]) -> bytes:
    """What ends an upload in parts.

    Args:
        part_etags: In the order of the parts.
        checksums: CRC32 (base64) by number, of the parts that the storage has verified one of.
    """
    parts = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>&quot;{etag}&quot;</ETag>{_checksum(checksums.get(number))}</Part>"
        for number, etag in enumerate(part_etags, 1)
    )
    return f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()


def _checksum(crc32: str | None) -> str:
    return f"<ChecksumCRC32>{crc32}</ChecksumCRC32>" if crc32 else ""


def value_of(document: bytes, name: str) -> str:
    """The content of an element; an ETag comes without its quotes."""
    found = re.search(f"<{name}>([^<]*)</{name}>", document.decode(errors="replace"))
    return html.unescape(found[1]).strip().strip('"') if found else ""
