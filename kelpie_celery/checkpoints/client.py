"""What a client may do with checkpoints: look at them, bring one down, go back to one, collect what is left over.

Limits: synchronous. The ledger tells which checkpoints there are; where it is asked with another address of the storage
than the workers use, it knows of none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from functools import cached_property, partial
from pathlib import Path

from kelpie_celery._calls import Calls
from kelpie_celery.checkpoints.address import endpoint_of, lines_of
from kelpie_celery.checkpoints.collect import Collector, Garbage, OnDeleted
from kelpie_celery.checkpoints.download import Downloaded, OnBytes, check_directory, download
from kelpie_celery.checkpoints.kept import Checkpoint, checkpoints_of
from kelpie_celery.checkpoints.manifests import Manifests
from kelpie_celery.checkpoints.rollback import Rollback, load
from kelpie_celery.checkpoints.storage import Storage, open_storage
from kelpie_celery.checkpoints.unpacking import Source, contents_of, folders_of
from kelpie_celery.clock import Clock
from kelpie_celery.definition import from_json
from kelpie_celery.errors import CommitGone, LedgerUnavailable, NoCheckpoint
from kelpie_celery.job import Job, JobId
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.records import JobRecord
from kelpie_celery.ledger.types import CommitEntry, Line, LineAddress, NewCommit, encodable
from kelpie_celery.settings import Settings

OLDER_THAN_S = 86_400.0
"""What is younger is no garbage, unless somebody says otherwise."""


class CheckpointClient:
    """The part of a client that is about checkpoints; see `kelpie_celery.client.Kelpie`."""

    settings: Settings
    _clock: Clock
    _calls: Calls
    _ledger: Ledger

    def checkpoints(self, job_id: JobId) -> list[Checkpoint]:
        """The checkpoints that a job can go back to, the newest first; of the ledger alone.

        Raises:
            JobNotFound: No record has this id.
        """
        return checkpoints_of(self._job_lines(self._job_record(job_id)))

    def checkpoint(self, job_id: JobId, commit: str) -> Checkpoint:
        """One of them.

        Raises:
            JobNotFound: No record has this id.
            NoCheckpoint: The job keeps none.
            CommitGone: It does not keep this one.
        """
        record = self._job_record(job_id)
        found = checkpoints_of(self._job_lines(record))
        if not found:
            raise NoCheckpoint(self._why_none(record))
        for one in found:
            if one.id == commit:
                return one
        raise CommitGone(record.id, commit, ", ".join(dict.fromkeys(url for one in found for url in one.prefixes)))

    def download_checkpoint(
        self, job_id: JobId, directory: str | Path, commit: str | None = None, *, progress: OnBytes | None = None
    ) -> Downloaded:
        """Bring a checkpoint down, whole and verified.

        Args:
            job_id: The job.
            directory: A new or an empty one. Of a job with several checkpoint prefixes each gets a folder in it.
            commit: Id of the checkpoint; by default the newest.
            progress: Told how many of how many bytes have come.

        Raises:
            JobNotFound: No record has this id.
            NoCheckpoint: The job keeps none.
            CommitGone: It does not keep this one.
            DirectoryError: The directory cannot be filled.
            StorageError: Something is gone from the storage, or that cannot be reached.
        """
        directory = Path(directory)
        check_directory(directory)
        chosen = self._chosen(self._job_record(job_id), commit)
        manifests, folders = Manifests(self._storage), folders_of([line.address for line, _ in chosen])
        sources = [
            Source(line.address, load(line, entry, manifests), folder)
            for (line, entry), folder in zip(chosen, folders, strict=True)
            if entry is not None
        ]
        done = download(self._storage, contents_of(sources), directory, self._clock, progress)
        return done.of(sources, [line.address.url for line, entry in chosen if entry is None])

    def _chosen(self, record: JobRecord, commit: str | None) -> list[tuple[Line, CommitEntry | None]]:
        """What to bring down of each line; None of one that does not keep the commit."""
        lines = self._job_lines(record)
        if not any(line.kept for line in lines):
            raise NoCheckpoint(self._why_none(record))
        if commit is None:
            return [(line, line.head) for line in lines]
        chosen = [(line, next((one for one in line.kept if one.id == commit), None)) for line in lines]
        if not any(entry for _, entry in chosen):
            raise CommitGone(record.id, commit, ", ".join(line.address.url for line in lines))
        return chosen

    def rollback(self, job_id: JobId, commit: str) -> str:
        """Make the state of an older checkpoint the newest again, as a new checkpoint.

        A running attempt of the job is stopped, and the job goes on from there once the attempt's lease is over; of an
        ended job, or one that is being canceled, the next job with its prefix does.

        Returns:
            The id of the new checkpoint.

        Raises:
            JobNotFound: No record has this id.
            NoCheckpoint: The job keeps none.
            CommitGone: It does not keep this one below all of its prefixes.
            PrefixHeld: Another job that is pending or running commits to one of them.
            LineMoved: The job stored checkpoints faster than this could be done.
            StorageError: Something of it is gone, or the storage cannot be written to; nothing has changed.
            LedgerUnavailable: It is not known whether the job was rolled back.
        """
        record = self._job_record(job_id)
        if not any(line.kept for line in self._job_lines(record)):
            raise NoCheckpoint(self._why_none(record))
        accept = partial(self._accept_rollback, record.id, commit)
        return Rollback(
            self._storage, record.id, lambda: self._job_lines(record), accept, self._clock.now
        ).to(commit)  # fmt: skip

    def _accept_rollback(self, job_id: str, of: str, commits: Sequence[NewCommit]) -> Sequence[Line]:
        try:
            return self._calls.make("roll the job back", lambda: self._ledger.rollback(job_id, of, commits))
        except LedgerUnavailable as error:
            raise LedgerUnavailable(
                f"{error}; whether job {job_id} was rolled back is not known: look at its checkpoints before you do it"
                " again"
            ) from error.__cause__

    def find_garbage(
        self, bucket: str, prefix: str, *, older_than_s: float = OLDER_THAN_S, forgotten: bool = False
    ) -> Garbage:
        """What lies below a checkpoint prefix, and what of it nothing refers to any more; deletes nothing.

        Args:
            bucket: The bucket.
            prefix: As in a job definition; ends with ``/``.
            older_than_s: What is younger is no garbage, seconds.
            forgotten: Where the ledger has forgotten the prefix: all but the newest whole checkpoint is garbage.

        Raises:
            StorageSetupError: A live job keeps its checkpoints there; the ledger has forgotten the prefix; or it cannot
                be told what has to stay.
            StorageUnavailable: The storage is away.
        """
        collector = self._collector(LineAddress(self._endpoint, bucket, prefix))
        return collector.look(older_than_s, forgotten=forgotten)

    def delete_garbage(self, garbage: Garbage, *, progress: OnDeleted | None = None) -> int:
        """Delete what `find_garbage` found, if nothing has come to the prefix since.

        Returns:
            How many objects were deleted, or versions of such.

        Raises:
            StorageError: The line has changed, or the storage refuses or is away; what is left is found again.
        """
        address = garbage.line.address
        done = self._collector(address).delete(garbage, progress)
        self._calls.make("note what was deleted", lambda: self._ledger.collected(address, garbage.due))
        return done

    def _collector(self, address: LineAddress) -> Collector:
        return Collector(self._storage, lambda: self._lines([address])[0], self._living)

    # -- what they share -------------------------------------------------------------------------------------------

    @cached_property
    def _storage(self) -> Storage:
        return open_storage(self.settings)

    @property
    def _endpoint(self) -> str:
        return endpoint_of(self.settings.aws_endpoint_url)

    def _job_record(self, job_id: JobId) -> JobRecord:
        known = job_id.id if isinstance(job_id, Job) else encodable(job_id)
        return self._calls.make(f"read job {known}", lambda: self._ledger.get(known))

    def _job_lines(self, record: JobRecord) -> list[Line]:
        # Taken as it is in the record, which was valid when it was submitted.
        transfers = from_json(json.dumps(record.definition)).transfers()
        return self._lines(lines_of(transfers, self._endpoint))

    def _lines(self, addresses: Sequence[LineAddress]) -> list[Line]:
        return self._calls.make("read the checkpoints", lambda: self._ledger.lines(addresses))

    def _living(self, job_ids: Set[str]) -> list[str]:
        wanted = sorted(job_ids)
        records = self._calls.make("read the jobs", lambda: self._ledger.get_many(wanted))
        return [record.id for record in records if not record.status.ended]

    def why_no_checkpoints(self, job_id: JobId) -> str:
        """Why `checkpoints` is empty, in words.

        Raises:
            JobNotFound: No record has this id.
        """
        return self._why_none(self._job_record(job_id))

    def _why_none(self, record: JobRecord) -> str:
        lines = self._job_lines(record)
        if not lines:
            return f"job {record.id} keeps no checkpoints: its definition has no block for them"
        below = ", ".join(line.address.url for line in lines)
        if not record.num_commits:
            return f"job {record.id} has stored no checkpoint{'' if record.status.ended else ' yet'} below {below}"
        return (
            f"job {record.id} stored {record.num_commits} checkpoints, but the ledger knows none below {below} on"
            f" {self._endpoint or 'AWS'}: set AWS_ENDPOINT_URL to what its workers have, or they are too long ago"
        )
