"""Brings the outputs of a job down: those that its record vouches for, each with its digest.

A job that completed has a listing of its outputs on the storage, whose SHA-256 is in the job's record. Where that is
gone, and with ``as_is``, what lies below its output prefixes is taken instead.

Limits: of a job that has not completed nothing is fetched unless ``as_is`` is given: some of its outputs may be
missing, and some may be an earlier job's. Of nested prefixes the inner one says where a file goes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kelpie_celery.checkpoints.download import OnBytes
from kelpie_celery.checkpoints.names import relative_path
from kelpie_celery.checkpoints.storage import Storage, open_storage
from kelpie_celery.clock import SystemClock
from kelpie_celery.definition import from_json
from kelpie_celery.errors import NoOutputs, StorageSetupError
from kelpie_celery.job import JobId
from kelpie_celery.ledger.records import JobRecord
from kelpie_celery.lifecycle import Status
from kelpie_celery.listings import MAX_LISTING_BYTES, OutputFile, OutputListing
from kelpie_celery.patterns import compile_pattern
from kelpie_celery.staging import packing
from kelpie_celery.staging.fetching import Fetched, below, fetch
from kelpie_celery.staging.wanted import Wanted
from kelpie_celery.transfers import Transfer

if TYPE_CHECKING:
    from kelpie_celery.client import Kelpie

_SCHEME = "s3://"


@dataclass(frozen=True)
class JobOutputs:
    """What was fetched of a job.

    Attributes:
        job_id: The job.
        status: How it stood.
        fetched: What came where.
        is_verified: Every file is what the job stored, by the SHA-256 that the job's record vouches for.
        prefixes: Where the outputs lie; of several each has a folder of its name.
    """

    job_id: str
    status: Status
    fetched: Fetched
    is_verified: bool
    prefixes: tuple[str, ...]


def fetch_outputs(
    kelpie: Kelpie, job: JobId, directory: str | Path, *, as_is: bool = False, force: bool = False,
    progress: OnBytes | None = None,
) -> JobOutputs:  # fmt: skip
    """Bring a job's outputs down; what is there already is not fetched again.

    Args:
        kelpie: The client; its settings name the storage.
        job: The job.
        directory: Made if it is missing. Of a job with several output prefixes each gets a folder in it.
        as_is: Take whatever lies below the output prefixes now.
        force: Replace files that hold something else.
        progress: Told how many of how many bytes are done.

    Raises:
        JobNotFound: No record has this id.
        NoOutputs: The job has none, or has not completed; says what there is.
        DirectoryError: A file holds something else, or cannot be written.
        StorageError: An output is gone or is another one, or the storage refuses or is away.
    """
    record = kelpie.get(job)
    found = _Outputs(open_storage(kelpie.settings), record)
    wanted, is_verified = found.wanted(as_is=as_is)
    done = fetch(found.storage, wanted, Path(directory), SystemClock(), force=force, progress=progress)
    return JobOutputs(record.id, record.status, done, is_verified, tuple(found.prefixes))


class _Outputs:
    """The outputs of one job."""

    def __init__(self, storage: Storage, record: JobRecord) -> None:
        self.storage, self._record = storage, record
        # Taken as it is in the record, which was valid when it was submitted.
        definition = from_json(json.dumps(record.definition))
        self._packs = definition.compression
        self._blocks: Sequence[Transfer] = definition.transfers().after
        self._folders = _folders(self._blocks)
        if not self._blocks:
            raise NoOutputs(f"job {record.id} stores no outputs: its definition has no `after` block")

    @property
    def prefixes(self) -> list[str]:
        """Where they lie, each once."""
        return list(dict.fromkeys(f"{_SCHEME}{block.bucket}/{block.prefix}" for block in self._blocks))

    def wanted(self, *, as_is: bool) -> tuple[list[Wanted], bool]:
        """What is to be fetched, and whether the job's record vouches for it."""
        completed = self._record.status is Status.COMPLETED
        if completed and not as_is:
            listing = self._listing()
            if listing is not None:
                return [self._listed(file) for file in listing.files], all(file.sha256 for file in listing.files)
        lying = list(self._lying())
        if as_is and lying:
            return lying, False
        raise NoOutputs(self._why_not(lying, completed=completed, as_is=as_is))

    def _listing(self) -> OutputListing | None:
        """The listing that the record vouches for; None where it is gone.

        Raises:
            StorageSetupError: It is another one.
        """
        said: Any = (self._record.result or {}).get("outputs")
        outputs: Mapping[str, Any] = said if isinstance(said, Mapping) else {}
        url = str(outputs.get("listing", ""))
        if not url:
            return None
        bucket, _, key = url.removeprefix(_SCHEME).partition("/")
        data = self.storage.read(bucket, key, MAX_LISTING_BYTES)
        if data is None:
            return None
        try:
            if hashlib.sha256(data).hexdigest() == outputs.get("sha256"):
                return OutputListing.from_json(data)
        except ValueError:
            pass
        raise StorageSetupError(
            f"{url} is not the listing that job {self._record.id} stored (its SHA-256 is another one): it was replaced"
            " or damaged since; --as-is (as_is=True) fetches what lies there now",
            bucket=bucket, key=key,
        )  # fmt: skip

    def _listed(self, file: OutputFile) -> Wanted:
        bucket, key = file.bucket, file.key
        homes = [block for block in self._blocks if block.bucket == bucket and key.startswith(block.prefix)]
        if not homes:
            raise StorageSetupError(
                f"the listing of job {self._record.id} names {_SCHEME}{bucket}/{key}, which is below none of its output"
                " prefixes; look at who may write to the bucket",
                bucket=bucket, key=key,
            )  # fmt: skip
        home = max(homes, key=lambda block: len(block.prefix))
        relative = relative_path(bucket, home.prefix, key)
        if not relative or relative.endswith("/"):
            raise StorageSetupError(
                f"the listing of job {self._record.id} names {_SCHEME}{bucket}/{key}, which can be no file; look at who"
                " may write to the bucket", bucket=bucket, key=key,
            )  # fmt: skip
        return self._placed(Wanted(bucket, key, relative, file.size_bytes, file.etag, file.sha256), home)

    def _lying(self) -> Iterator[Wanted]:
        """What lies below the prefixes now."""
        found: dict[tuple[str, str], Wanted] = {}
        # The innermost prefix last: it says where a file goes.
        for block in sorted(self._blocks, key=lambda block: len(block.prefix)):
            pattern = compile_pattern(block.pattern) if block.pattern is not None else None
            for one in below(self.storage, block.bucket, block.prefix):
                name = packing.unpacked(one.relative) if self._packed(one.key) else one.relative
                if pattern is None or pattern.matches(name):
                    found[one.bucket, one.key] = self._placed(one, block)
        yield from found.values()

    def _packed(self, key: str) -> bool:
        return self._packs and packing.is_packed(key)

    def _placed(self, one: Wanted, home: Transfer) -> Wanted:
        """The same in the folder of its prefix, and under the name that it has when it is unpacked."""
        unpack = self._packed(one.relative)
        name = packing.unpacked(one.relative) if unpack else one.relative
        folder = self._folders[home.bucket, home.prefix]
        return replace(one, relative=f"{folder}/{name}" if folder else name, unpack=unpack)

    def _why_not(self, lying: Sequence[Wanted], *, completed: bool, as_is: bool) -> str:
        record, where = self._record, ", ".join(self.prefixes)
        total = sum(one.size_bytes for one in lying)
        there = (
            f"{len(lying)} objects ({total} bytes) lie below {where} now" if lying else f"nothing lies below {where}"
        )
        take = "" if as_is or not lying else ", and --as-is (as_is=True) fetches them"
        if completed:
            gone = "" if as_is else f"the listing of job {record.id}'s outputs is gone from the storage; "
            return f"{gone}{there}{take}"
        state = "failed or was canceled" if record.status.ended else "has not ended"
        kept = f"; its checkpoints: kelpie checkpoints list {record.id}" if record.num_commits else ""
        return f"job {record.id} {state} ({record.status.value}), so its outputs are not complete: {there}{take}{kept}"


def _folders(blocks: Sequence[Transfer]) -> dict[tuple[str, str], str]:
    """The folder of each prefix: none for a single one; else its name, after the bucket's where two are the same."""
    places = list(dict.fromkeys((block.bucket, block.prefix) for block in blocks))
    if len(places) == 1:
        return {places[0]: ""}
    prefixes = [prefix.rstrip("/") for _, prefix in places]
    if len(set(prefixes)) == len(prefixes):
        return dict(zip(places, prefixes, strict=True))
    return {(bucket, prefix): f"{bucket}/{prefix}".rstrip("/") for bucket, prefix in places}
