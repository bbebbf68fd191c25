"""The attempts that run in this worker process, and how the outside world reaches them.

Signals, revokes and pulses come from other threads; an attempt lives in an asyncio loop of a pool thread. Limits: one
process; what must survive it is in the ledger.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import StrEnum

from kelpie_celery.clock import Instant
from kelpie_celery.ledger.types import FencingToken


class Stop(StrEnum):
    """Why an attempt is asked to stop."""

    CANCEL = "cancel"
    SHUTDOWN = "shutdown"


class RunningJob:
    """One attempt in this process.

    Attributes:
        asked_at: When the claim that was granted was sent: its lease is trusted from there.
        free_slot: Called once when the next job may start although this attempt still uploads.
    """

    def __init__(self, token: FencingToken, asked_at: Instant, free_slot: Callable[[], None]) -> None:
        self.token = token
        self.asked_at = asked_at
        self.free_slot = free_slot
        # Re-entrant: a signal handler of the main thread may interrupt a holder in that same thread.
        self._lock = threading.RLock()
        self._stop: Stop | None = None
        self._listener: Callable[[Stop], None] | None = None

    @property
    def stop(self) -> Stop | None:
        """Why it was asked to stop, if it was."""
        return self._stop

    def ask_to_stop(self, why: Stop) -> None:
        """Ask the attempt to stop; a cancel outweighs a shutdown. Any thread may call it, at any time."""
        with self._lock:
            if self._stop in (why, Stop.CANCEL):
                return
            self._stop = why
            listener = self._listener
        if listener:
            listener(why)

    def listen(self, listener: Callable[[Stop], None]) -> None:
        """Have ``listener`` called from whatever thread asks; at once if it was asked already."""
        with self._lock:
            self._listener, asked = listener, self._stop
        if asked:
            listener(asked)


class RunningJobs:
    """All attempts of this process, by nonce: a job may be here twice while a lost attempt of it winds down."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._by_nonce: dict[str, RunningJob] = {}
        self._shutdown = False

    def add(self, job: RunningJob) -> None:
        """Register an attempt; one that arrives during a shutdown is asked to stop at once."""
        with self._lock:
            self._by_nonce[job.token.nonce] = job
            shutdown = self._shutdown
        if shutdown:
            job.ask_to_stop(Stop.SHUTDOWN)

    def remove(self, job: RunningJob) -> None:
        """Forget an attempt."""
        with self._lock:
            self._by_nonce.pop(job.token.nonce, None)

    def all(self) -> list[RunningJob]:
        """A picture of this moment."""
        with self._lock:
            return list(self._by_nonce.values())

    def cancel(self, job_id: str) -> bool:
        """Ask every attempt of a job to stop for a cancel; False when there is none here."""
        mine = [job for job in self.all() if job.token.job_id == job_id]
        for job in mine:
            job.ask_to_stop(Stop.CANCEL)
        return bool(mine)

    def shut_down(self) -> None:
        """Ask all, and all that come later, to stop since the worker ends."""
        with self._lock:
            self._shutdown = True
        for job in self.all():
            job.ask_to_stop(Stop.SHUTDOWN)

    @property
    def shutting_down(self) -> bool:
        """Whether the worker ends."""
        return self._shutdown
