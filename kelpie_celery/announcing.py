"""What Celery's listeners, Flower among them, are told of an attempt that runs: what it does, and its progress.

Celery has no event for progress. An event of a kind of our own would make a state of its own of it: Flower then offers
no Terminate, and overlooks the end. So ``task-started`` is sent again, with the time of the start and with the words as
``result``; the state stays STARTED, and the result of the job replaces the words at its end.

Limits: words that change are sent at most every `NEWS_S`, and again every `AGAIN_S` though nothing changed, for a
Flower that was started meanwhile; both within a pulse (`kelpie_celery.pulse`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from kelpie_celery.clock import Clock
from kelpie_celery.errors import JobFailed
from kelpie_celery.lifecycle import Phase

NEWS_S = 5.0
AGAIN_S = 60.0
MAX_CHARS = 500

Send = Callable[[float, str], None]
"""Sends the words; first the time of the attempt's start, in seconds since the epoch. May block for a while."""


def progress_text(progress: float | None, message: str | None) -> str:
    """``42 %: epoch 3``; a number outside of 0 to 1 is shown as it is. On one line, without control characters."""
    number = ""
    if progress is not None:
        number = f"{progress:.0%}".replace("%", " %") if 0 <= progress <= 1 else f"{progress:g}"
    said = " ".join("".join(c if c.isprintable() else " " for c in message or "").split())
    return ": ".join(part for part in (number, said) if part)


def end_text(error: BaseException) -> str:
    """``JobFailed: exit_code: exit code 3``, ``JobInterrupted: lease_expired: ...``: why a try of a job ended."""
    words = f"{error.reason}: {error.message}" if isinstance(error, JobFailed) else str(error)
    return f"{type(error).__name__}: {words}"


class Announcer:
    """Tells of one attempt.

    Args:
        send: What sends.
        attempt: Its number.
        clock: Where time comes from.
    """

    def __init__(self, send: Send, attempt: int, clock: Clock) -> None:
        self._send, self._attempt, self._clock = send, attempt, clock
        self._started = clock.now()
        self._phase: Phase | None = None
        self._progress: float | None = None
        self._message: str | None = None
        self._told, self._told_at = "", float("-inf")
        self._closed = False
        self._sending = threading.Lock()

    @property
    def words(self) -> str:
        """``attempt 2, executing: 42 %: epoch 3``."""
        state = f"attempt {self._attempt}, {self._phase or 'starting'}"
        # What the job said last is of its command; another attempt's words are not this one's.
        said = progress_text(self._progress, self._message) if self._phase is Phase.EXECUTING else ""
        return (f"{state}: {said}" if said else state)[:MAX_CHARS]

    def note(self, phase: Phase) -> None:
        """The attempt does something else now. Any thread; does not wait."""
        self._phase = phase

    def say(self, progress: float | None, message: str | None) -> None:
        """The command said how far it is; what is None stays as it was. Any thread; does not wait."""
        if progress is not None:
            self._progress = progress
        if message is not None:
            self._message = message

    def tell(self) -> None:
        """Send the words, if they are news or were not sent for long. Blocks while it sends."""
        with self._sending:
            words, now = self.words, self._clock.boottime()
            if self._closed or now - self._told_at < (AGAIN_S if words == self._told else NEWS_S):
                return
            self._told, self._told_at = words, now
            self._send(self._started, words)

    def close(self) -> None:
        """Nothing is sent from here on: what Celery says of the end must be the last word."""
        with self._sending:
            self._closed = True
