"""The attempts that run in this worker process, and how the outside world reaches them.

Signals, revokes and pulses come from other threads; an attempt lives in an asyncio loop of a pool thread. Limits: one
process; what must survive it is in the ledger.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import StrEnum

from kelpie_celery.announcing import Announcer
from kelpie_celery.clock import Instant
from kelpie_celery.ledger.types import FencingToken
from kelpie_celery.lifecycle import Phase

DRAINING = "draining"
"""Why a worker fetches nothing: the scaler is about to have its instance removed."""

BY_HAND = "drained by hand"
"""Why a worker fetches nothing: a person said so; nothing but its end undoes it."""


class Stop(StrEnum):
    """Why an attempt is asked to stop."""

    CANCEL = "cancel"
    SHUTDOWN = "shutdown"


class RunningJob:
    """One attempt in this process.

    Attributes:
        asked_at: When the claim that was granted was sent: its lease is trusted from there.
        free_slot: Called once when the next job may start although this attempt still uploads.
        phase: What it does now, as far as it has told; None before it began.
        beats: Its heartbeats so far.
        announcer: Tells Celery's listeners of it; None where nobody listens.
        trusted: Whether its lease holds as far as it knows. Any thread may ask.
        said: What its command said last of itself (JSON with ``progress``, ``message``); empty before it did.
    """

    def __init__(self, token: FencingToken, asked_at: Instant, free_slot: Callable[[], None]) -> None:
        self.token = token
        self.asked_at = asked_at
        self.free_slot = free_slot
        self.phase: Phase | None = None
        self.beats = 0
        self.announcer: Announcer | None = None
        self.trusted: Callable[[], bool] = lambda: True
        self.said = ""
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

    def note(self, phase: Phase, beats: int) -> None:
        """Note what the attempt does now, for whoever looks from another thread."""
        self.phase, self.beats = phase, beats
        if self.announcer:
            self.announcer.note(phase)

    def say(self, progress: float | None, message: str | None) -> None:
        """Note how far the command says it is; a message holds no secret."""
        if self.announcer:
            self.announcer.say(progress, message)

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
        self._held: frozenset[str] = frozenset()

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

    def hold_back(self, why: str, *, on: bool) -> bool:
        """Have this worker fetch nothing for a reason, or for that reason no longer; whether that is a change."""
        with self._lock:
            before = self._held
            self._held = before | {why} if on else before - {why}
        return self._held != before

    def drain_by_hand(self) -> bool:
        """Take nothing more until the process ends; whether that is a change."""
        return self.hold_back(BY_HAND, on=True)

    @property
    def drained_by_hand(self) -> bool:
        """Whether a person had this worker take nothing more."""
        return BY_HAND in self._held

    @property
    def takes_nothing(self) -> bool:
        """Whether no job may begin here, whatever the ledger says: it alone knows whether the scaler's drain holds."""
        return self._shutdown or bool(self._held - {DRAINING})

    @property
    def reasons(self) -> list[str]:
        """Why this worker is to fetch nothing for now."""
        return sorted(self._held)

    @property
    def held_back(self) -> bool:
        """Whether this worker is to fetch nothing for now."""
        return bool(self._held)
