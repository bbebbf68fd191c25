"""A handle of a job that was submitted.

Limits: it remembers the id alone; every question goes to Redis.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kelpie_celery.lifecycle import Status

if TYPE_CHECKING:
    from kelpie_celery.client import Kelpie
    from kelpie_celery.ledger.records import JobRecord


@dataclass(frozen=True)
class Job:
    """A job that was submitted.

    Attributes:
        id: Its id, which is also its Celery task id.
        created: False when an earlier job has the same idempotency key and definition: this is that job.
    """

    id: str
    created: bool
    _kelpie: Kelpie = field(repr=False, compare=False)

    @property
    def status(self) -> Status:
        """Where it stands now; asks Redis."""
        return self.get().status

    def get(self) -> JobRecord:
        """Its record now, as `Kelpie.get`."""
        return self._kelpie.get(self.id)

    def wait(self, timeout: float | None = None, *, raise_on_failure: bool = False) -> JobRecord:
        """Wait until it has ended, as `Kelpie.wait`."""
        return self._kelpie.wait(self.id, timeout, raise_on_failure=raise_on_failure)

    def cancel(self) -> str:
        """Cancel it, as `Kelpie.cancel`."""
        return self._kelpie.cancel(self.id)

    def __str__(self) -> str:
        return self.id


JobId = str | Job
"""What names a job wherever the client takes one."""
