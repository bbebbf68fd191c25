"""Which digest goes with a body: CRC32, whose verification a storage confirms, or MD5 where it does not.

Both are headers known before the body is sent, so a body that was damaged on its way is refused. A CRC32 costs a sixth
of an MD5. A storage that verified it says it again in its answer; one that does not know it ignores or refuses it.

Limits: what was found out holds for one store; the next one asks again.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from kelpie_worker.sync.answers import Answer
from kelpie_worker.sync.object_store import Body

log = logging.getLogger(__name__)

CRC32 = "x-amz-checksum-crc32"
MD5 = "Content-MD5"


def with_crc32(body: Body) -> Mapping[str, str]:
    """The header that announces a body's CRC32."""
    return {CRC32: base64.b64encode(body.crc32().to_bytes(4, "big")).decode()}


def with_md5(body: Body) -> Mapping[str, str]:
    """The header that announces a body's MD5, which every storage verifies."""
    return {MD5: base64.b64encode(body.md5()).decode()}


@dataclass
class Integrity:
    """What is known of one storage.

    Attributes:
        crc32: Whether it verifies CRC32, as far as is known.
    """

    crc32: bool = True
    _parts: dict[str, dict[int, str]] = field(default_factory=dict)

    def give_up_crc32(self, endpoint: str, why: str) -> None:
        """From now on MD5 is used."""
        if self.crc32:
            self.crc32 = False
            extra = {"action": "checksum_md5", "endpoint": endpoint, "why": why}
            log.info("the storage does not verify CRC32 checksums; MD5 is used", extra=extra)

    # S3 wants the checksums of all parts again at the end of an upload that was begun with checksums.

    def began(self, upload_id: str) -> None:
        """An upload in parts was begun with CRC32 checksums."""
        self._parts[upload_id] = {}

    def note_part(self, upload_id: str, number: int, crc32: str) -> None:
        """The storage told the checksum (base64) of a part."""
        if crc32 and upload_id in self._parts:
            self._parts[upload_id][number] = crc32

    def of_parts(self, upload_id: str) -> Mapping[int, str]:
        """What was noted of an upload's parts."""
        return self._parts.get(upload_id, {})

    def ended(self, upload_id: str) -> None:
        """An upload in parts is complete, or was given up."""
        self._parts.pop(upload_id, None)


def confirmed(answer: Answer) -> str:
    """The CRC32 (base64) that a storage says it has verified; empty when it says nothing."""
    return str(answer.headers.get(CRC32, ""))
