"""In which order a job spoke and changed its checkpoint, as the kernel tells it; for words that were read together.

A job's word is about what was there when it said it. Of several lines that are read at once only the last one has a
time. But where nothing changed from the first of them to the last, that time does for all.

Limits: writes through a mapping are not heard.
"""

from __future__ import annotations

import re
import threading

SAID, CHANGED, UNKNOWN = "S", "C", "?"
_MOST = 100
_BROKEN = re.compile(r"SC+S|\?")


class Order:
    """Collects what happened; filled by one thread, emptied by another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._happened = ""

    def note(self, what: str) -> None:
        """The next thing that happened: `SAID`, `CHANGED`, or `UNKNOWN` where events were missed."""
        with self._lock:
            if not self._happened.endswith((what, UNKNOWN)):
                # Once there is one, nothing will do before all this is taken.
                self._happened = UNKNOWN if what == UNKNOWN or len(self._happened) > _MOST else self._happened + what

    def doubt(self) -> None:
        """Something may have happened at any time until now: what is here of the job's words is in no known order."""
        with self._lock:
            if SAID in self._happened:
                self._happened = UNKNOWN

    def take(self) -> str:
        """All since the last call; parts may be joined."""
        with self._lock:
            happened, self._happened = self._happened, ""
        return happened


def nothing_between(happened: str) -> bool:
    """Whether a job spoke, and nothing changed from its first word to its last one."""
    return SAID in happened and not _BROKEN.search(happened)
