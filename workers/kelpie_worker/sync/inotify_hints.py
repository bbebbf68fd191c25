"""What was heard of changes since its owner last asked: filled by one thread, emptied by another.

Limits: bounded memory, 10,000 paths; beyond that only "look everywhere" is kept.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MOST_PATHS = 10_000


@dataclass(frozen=True)
class Events:
    """What changed, as far as anybody was told; hints, all of it.

    Attributes:
        closed: Files that were closed after writing, or moved in, and have not been written to, moved away or deleted
            since.
        created: Files that appeared, and may or may not be finished: found in a new folder, linked, still written to.
        changed: Something changed, be it one of these or not.
        last_events_s: For each root the time of the last change below it, but for those of exempt files.
        overflowed: Changes were missed: whoever needs all must walk.
        blind: Changes are being missed: whoever needs all must walk regularly.
    """

    closed: tuple[Path, ...] = ()
    created: tuple[Path, ...] = ()
    changed: bool = False
    last_events_s: Mapping[Path, float] = field(default_factory=dict)
    overflowed: bool = False
    blind: bool = False

    @property
    def last_event_s(self) -> float:
        """The time of the last change below any root; 0 if there was none."""
        return max(self.last_events_s.values(), default=0.0)


class Hints:
    """Collects events.

    Args:
        roots: All that there are.
        wake: Called by the filling thread when there is something new, once until it is fetched.
        now: The time, in seconds, by a clock that never goes back.
    """

    def __init__(self, roots: Sequence[Path], wake: Callable[[], None], now: Callable[[], float]) -> None:
        self._roots, self._wake, self._now = tuple(roots), wake, now
        self._lock = threading.Lock()
        self._exempt: frozenset[bytes] = frozenset()
        self._last_s: dict[Path, float] = {}
        self._blind = False
        self._woken = False
        self._clear()

    def _clear(self) -> None:
        self._closed: dict[bytes, None] = {}
        self._created: dict[bytes, None] = {}
        self._changed = self._overflowed = self._is_news = False

    # -- what the owner asks ------------------------------------------------------------------------------------------

    def drain(self) -> Events:
        """Take what has come together."""
        with self._lock:
            closed, created, changed, overflowed = self._closed, self._created, self._changed, self._overflowed
            last_s = dict(self._last_s)
            self._clear()
            self._woken = False
        return Events(_paths(closed), _paths(created), changed, last_s, overflowed, self._blind)

    def exempt(self, paths: Iterable[Path]) -> None:
        """Writing to these files and closing them, until the next such call, wakes nobody and is no event."""
        self._exempt = frozenset(os.fsencode(path) for path in paths)

    def is_exempt(self, path: bytes) -> bool:
        """Whether it is one of these."""
        return path in self._exempt

    # -- what the thread says -----------------------------------------------------------------------------------------

    def closed(self, path: bytes, roots: Sequence[Path]) -> None:
        """A file was closed by one that could write to it."""
        with self._lock:
            self._finish(path)
            self._touch_unless_exempt(path, roots)

    def moved_in(self, path: bytes, roots: Sequence[Path]) -> None:
        """A file has taken this place, finished."""
        with self._lock:
            self._finish(path)
            self._touch(roots)

    def created(self, path: bytes, roots: Sequence[Path]) -> None:
        """A file has appeared."""
        with self._lock:
            if path not in self._closed:
                self._keep(self._created, path)
            self._touch(roots)

    def written(self, path: bytes, roots: Sequence[Path]) -> None:
        """A file is being written to."""
        with self._lock:
            if path in self._closed:
                del self._closed[path]
                self._created[path] = None
            self._touch_unless_exempt(path, roots)

    def gone(self, path: bytes, roots: Sequence[Path]) -> None:
        """A file was deleted or moved away."""
        with self._lock:
            self._closed.pop(path, None)
            self._created.pop(path, None)
            self._touch(roots)

    def touched(self, roots: Sequence[Path]) -> None:
        """Something else changed."""
        with self._lock:
            self._touch(roots)

    def missed(self) -> None:
        """Changes were missed, nobody knows where or when."""
        with self._lock:
            self._overflowed = True
            self._touch(self._roots)

    def set_blind(self, blind: bool) -> None:
        """Whether changes are missed from now on."""
        with self._lock:
            self._is_news = self._is_news or blind != self._blind
            self._blind = blind

    @property
    def blind(self) -> bool:
        """Whether changes are being missed."""
        return self._blind

    def tell(self) -> None:
        """Wake the owner if there is something new and it has not been woken."""
        with self._lock:
            due = self._is_news and not self._woken
            self._woken = self._woken or due
        if due:
            with contextlib.suppress(RuntimeError):  # its event loop is closed: it will never ask
                self._wake()

    def _finish(self, path: bytes) -> None:
        self._created.pop(path, None)
        self._keep(self._closed, path)

    def _touch_unless_exempt(self, path: bytes, roots: Sequence[Path]) -> None:
        self._changed = True
        if path not in self._exempt:
            self._touch(roots)

    def _touch(self, roots: Sequence[Path]) -> None:
        self._changed = self._is_news = True
        now_s = self._now()
        for root in roots:
            self._last_s[root] = now_s

    def _keep(self, where: dict[bytes, None], path: bytes) -> None:
        if path in where or len(self._closed) + len(self._created) < MOST_PATHS:
            where[path] = None
        else:
            self._overflowed = True


def _paths(names: Iterable[bytes]) -> tuple[Path, ...]:
    return tuple(Path(os.fsdecode(name)) for name in names)
