"""The seam between the Celery task of a job and the runtime that runs its command.

Limits: one implementation ships (``kelpie_worker.runner``); the other is the tests' own.
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
