"""Where the whole log of each attempt is stored: ``<prefix><job id>/<attempt>-<nonce>.log``.

The nonce is there as a Redis that lost its last second may give an attempt's number twice: a late writer can spoil
nothing that anybody refers to. Limits: the prefix is the job's, else its container group's (``KELPIE_LOG_BUCKET``),
else there is none.
"""

from __future__ import annotations

from dataclasses import dataclass

from kelpie_celery.definition import JobDefinition
from kelpie_celery.ledger.types import FencingToken
from kelpie_celery.overlaps import log_in_the_way
from kelpie_celery.settings import Settings

DEFAULT_PREFIX = "logs/"


@dataclass(frozen=True)
class LogPlace:
    """A bucket and a prefix for logs."""

    bucket: str
    prefix: str

    def key(self, token: FencingToken) -> str:
        """The key of an attempt's log."""
        return f"{self.of_attempt(token.job_id, token.attempt)}{token.nonce[:8]}.log"

    def of_attempt(self, job_id: str, attempt: int) -> str:
        """What the keys of logs of that attempt begin with."""
        return f"{self.of_job(job_id)}{attempt}-"

    def of_job(self, job_id: str) -> str:
        """What the keys of a job's logs begin with."""
        return f"{self.prefix}{job_id}/"


def log_place(definition: JobDefinition, settings: Settings) -> LogPlace | None:
    """Where a job's logs go."""
    if definition.log_bucket and definition.log_prefix:
        return LogPlace(definition.log_bucket, definition.log_prefix)
    if settings.log_bucket:
        return LogPlace(settings.log_bucket, settings.log_prefix or DEFAULT_PREFIX)
    return None


def why_not(definition: JobDefinition, bucket: str, key: str) -> str:
    """Why a log must not be stored there; empty where it may.

    At submit the job's own prefix is looked at, but neither its id nor its group's prefix is known then.
    """
    block = log_in_the_way(definition.transfers(), bucket, key)
    return f"it would lie among what belongs to {block.stage}[{block.index}] ({block.prefix})" if block else ""
