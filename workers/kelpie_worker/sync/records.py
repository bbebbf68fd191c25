"""Our own records beside a job's prefix: the listing of its outputs, and the marker that says that it completed.

They lie under ``<prefix>.kelpie/jobs/<job id>/``, where the prefix is that of the first ``after`` block, else of the
first ``during`` block. The marker is what an attempt adopts when the one before it did everything but report.

Limits: a job without such a block has no records. A marker of more than 16 MiB or a listing of more than 256 MiB
(about a million files) is not read. That an output is there is told by its size and ETag; its content is not fetched.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any

from kelpie_celery.errors import StorageSetupError
from kelpie_celery.listings import MAX_LISTING_BYTES, OutputFile, OutputListing
from kelpie_worker.sync.bodies import BytesBody
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.object_store import ObjectChanged, ObjectStore, StoredObject
from kelpie_worker.sync.paths import control_prefix
from kelpie_worker.sync.plan import Placed, Plan
from kelpie_worker.sync.verify import Expected, missing

log = logging.getLogger(__name__)

_MAX_BYTES = 16 * 1024 * 1024
_VERSION = 1


class Records:
    """The records of one job.

    Args:
        store: The storage.
        home: The block beside whose prefix they lie.
        job_id: The job.
        definition_digest: Of its definition; a marker of another definition is not this job's.
        after: The blocks that its outputs belong to.
    """

    def __init__(
        self, store: ObjectStore, home: Placed, job_id: str, definition_digest: str, after: Sequence[Placed] = ()
    ) -> None:
        self._after = after
        self._store, self._job_id, self._definition_digest = store, job_id, definition_digest
        self.bucket = home.bucket
        self._folder = f"{control_prefix(home.prefix)}jobs/{job_id}/"

    async def read_marker(self) -> dict[str, Any] | None:
        """The marker of an attempt that completed, with its ``result``; None when there is none, or none of use.

        It is of use only while every output that it vouches for is on the storage.

        Raises:
            StorageError: The storage cannot be asked.
        """
        data = await self._read(f"{self._folder}completed.json", _MAX_BYTES)
        if data is None:
            return None
        try:
            marker = json.loads(data)
        except ValueError:
            marker = None
        if not isinstance(marker, dict) or not isinstance(marker.get("result"), dict):
            self._refuse("cannot be read")
            return None
        if (marker.get("job_id"), marker.get("definition")) != (self._job_id, self._definition_digest):
            self._refuse("is another job's")
            return None
        damage = await self._damage(marker.get("outputs"))
        if damage:
            self._refuse(damage)
            return None
        return marker

    async def _damage(self, outputs: object) -> str:
        """What keeps a marker's outputs from being adopted; empty when nothing does."""
        if not isinstance(outputs, dict):
            return "does not name its outputs"
        if "listing" not in outputs:
            return "does not name its listing" if self._after else ""
        key = str(outputs["listing"]).removeprefix(f"s3://{self.bucket}/")
        if not key.startswith(self._folder):
            return "names a listing elsewhere"
        data = await self._read(key, MAX_LISTING_BYTES)
        if data is None:
            return "names a listing that is not there"
        if hashlib.sha256(data).hexdigest() != outputs.get("sha256"):
            return "names a listing that has changed"
        try:
            files = OutputListing.from_json(data).files
        except ValueError:
            return "names a listing that cannot be read"
        lost = await missing(self._store, [self._expected(file) for file in files])
        return f"names outputs that are gone or have changed: {len(lost)} of {len(files)}" if lost else ""

    def _expected(self, file: OutputFile) -> Expected:
        prefixes = [block.prefix for block in self._after if block.bucket == file.bucket]
        prefix = max((one for one in prefixes if file.key.startswith(one)), key=len, default=file.key)
        return file.bucket, prefix, StoredObject(file.key, file.size_bytes, file.etag)

    def _refuse(self, why: str) -> None:
        extra = {"action": "marker_refused", "job_id": self._job_id, "why": why}
        log.warning("a completion marker is of no use", extra=extra)

    async def write_marker(self, attempt: int, result: dict[str, Any], listing: OutputListing, fence: Fence) -> None:
        """Say that the job completed; call it after everything else is stored."""
        marker = {
            "version": _VERSION, "job_id": self._job_id, "attempt": attempt, "definition": self._definition_digest,
            "outputs": listing.summary(), "result": result,
        }  # fmt: skip
        body = json.dumps(marker, sort_keys=True, separators=(",", ":")).encode()
        await self._store.put(self.bucket, f"{self._folder}completed.json", BytesBody(body), fence)

    def listing_key(self, attempt: int) -> str:
        """Where the listing of an attempt's outputs is stored."""
        return f"{self._folder}outputs-{attempt}.json"

    async def write_listing(self, listing: OutputListing, fence: Fence) -> None:
        """Store a listing where it says."""
        await self._store.put(listing.bucket, listing.key, BytesBody(listing.to_json()), fence)

    async def _read(self, key: str, max_bytes: int) -> bytes | None:
        found = await self._store.head(self.bucket, key)
        if found is None or found.size_bytes > max_bytes:
            return None
        data = bytearray()

        try:
            await self._store.fetch(
                self.bucket, key, data.extend, etag=found.etag, start_byte=0, length_bytes=found.size_bytes
            )
        except (ObjectChanged, StorageSetupError):
            return None  # replaced or deleted since; the next attempt may look again
        return bytes(data)


def home_of(plan: Plan) -> Placed | None:
    """The block beside whose prefix a job's records lie."""
    return next(iter(plan.after + plan.during), None)
