"""A value that is read anew when it is old, and never waited for longer than a moment.

Limits: what hangs holds one thread, not one for each who asks.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from kelpie_celery.clock import Clock

log = logging.getLogger(__name__)

T = TypeVar("T")

FRESH_S = 5.0
WAIT_S = 2.0


@dataclass(frozen=True)
class Known(Generic[T]):
    """What is known.

    Attributes:
        value: The value of the last time that reading it succeeded; None before.
        age_s: How long ago that began, in seconds.
        up: Whether the last try succeeded, and no other one is overdue.
    """

    value: T | None
    age_s: float | None
    up: bool


class Fresh(Generic[T]):
    """Reads a value for many who ask.

    Args:
        read: Reads it; may fail, and may hang.
        clock: Of this machine.
        fresh_s: For so long a try counts, successful or not, in seconds.
        wait_s: So long a try is waited for, in seconds.
    """

    def __init__(
        self, read: Callable[[], T], clock: Clock, *, fresh_s: float = FRESH_S, wait_s: float = WAIT_S
    ) -> None:
        self._read, self._clock, self._fresh_s, self._wait_s = read, clock, fresh_s, wait_s
        self._lock = threading.Lock()
        self._under_way: threading.Event | None = None
        self._value: T | None = None
        self._read_at: float | None = None
        self._tried_at: float | None = None
        self._up = False

    def get(self) -> Known[T]:
        """The value, fresh if that can be had within ``wait_s``. Any thread."""
        with self._lock:
            tried_at = self._tried_at
            if tried_at is not None and self._clock.boottime() - tried_at < self._fresh_s:
                return self._known(overdue=False)
            event = self._under_way or self._begin()
        overdue = not event.wait(self._wait_s)
        with self._lock:
            return self._known(overdue=overdue)

    def _begin(self) -> threading.Event:
        event = threading.Event()
        threading.Thread(target=self._try, args=(event,), name="kelpie-metrics-read", daemon=True).start()
        # Not before: where no thread can be started, nobody would ever begin again.
        self._under_way = event
        return event

    def _try(self, event: threading.Event) -> None:
        began, value, up = self._clock.boottime(), None, False
        try:
            value, up = self._read(), True
        except Exception as e:  # whatever it was, a scrape is told that there is nothing new
            log.debug("nothing new for the metrics", extra={"action": "metrics_missed", "error": str(e)})
        finally:
            with self._lock:
                self._up, self._tried_at, self._under_way = up, self._clock.boottime(), None
                if up:
                    self._value, self._read_at = value, began
            event.set()

    def _known(self, *, overdue: bool) -> Known[T]:
        age_s = None if self._read_at is None else max(0.0, self._clock.boottime() - self._read_at)
        return Known(self._value, age_s, self._up and not overdue)
