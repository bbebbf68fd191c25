"""The seam between the Celery task of a job and the runtime that runs its command.

Limits: one implementation ships (``kelpie_worker.runner``); the others are the tests' own.
"""

from __future__ import annotations

from typing import Protocol

from kelpie_celery.ledger.types import Ending, Granted
from kelpie_celery.running import RunningJob


class AttemptRunner(Protocol):
    """Runs attempts in a worker process, several at once, each in a thread of its own."""

    slots: int
    """How many commands may run at once."""

    def run(self, granted: Granted, job: RunningJob) -> Ending:
        """Run one attempt to its end; the caller reports the ending to the ledger.

        Raises:
            LeaseLost: Another attempt owns the job; nothing is left running.
        """

    @property
    def untold(self) -> bool:
        """Whether the platform may take this worker for what it is not: a busy one for a drained one, or vice versa."""

    def tend(self, group: str, *, draining: bool, streak: int) -> bool:
        """Called with each pulse: look after this worker's standing on the platform. Never waits for anybody.

        Args:
            group: The container group.
            draining: The worker is to claim nothing any more, and may be deleted first.
            streak: How many jobs in a row failed on this machine and succeeded elsewhere.

        Returns:
            Whether the platform knows by now what was said last (or there is none to tell, or it was tried in vain).
        """
