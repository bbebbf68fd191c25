"""Which local files and directories are on their way up or down, for whoever asks from outside.

Limits: words for people; a commit names the files with new content, a restore and a final upload the directories.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

MOST_NAMED = 1000
"""Of so many files at most the names are told."""


class UnderWay:
    """What one transfer moves; more may join it."""

    def __init__(self, traffic: Traffic, counts: Counter[str]) -> None:
        self._traffic, self._counts, self._mine = traffic, counts, list[str]()

    def add(self, paths: Iterable[Path]) -> None:
        """These are part of it."""
        names = [str(path) for path in paths]
        if names:
            self._mine += names
            self._traffic.count(self._counts, names, 1)

    def over(self) -> None:
        """It has ended, however."""
        if self._mine:
            self._traffic.count(self._counts, self._mine, -1)
            self._mine = []


class Traffic:
    """The transfers of one attempt; any thread."""

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self._on_change = on_change
        self._lock = threading.Lock()
        self._up, self._down = Counter[str](), Counter[str]()

    @contextmanager
    def uploading(self, paths: Iterable[Path] = ()) -> Iterator[UnderWay]:
        """An upload that lasts as long as the body."""
        yield from self._under_way(self._up, paths)

    @contextmanager
    def downloading(self, paths: Iterable[Path] = ()) -> Iterator[UnderWay]:
        """A download that lasts as long as the body."""
        yield from self._under_way(self._down, paths)

    def _under_way(self, counts: Counter[str], paths: Iterable[Path]) -> Iterator[UnderWay]:
        under_way = UnderWay(self, counts)
        under_way.add(paths)
        try:
            yield under_way
        finally:
            under_way.over()

    def count(self, counts: Counter[str], names: Iterable[str], by: int) -> None:
        """Note that these move once more, or once less."""
        with self._lock:
            for name in names:
                counts[name] += by
                if counts[name] <= 0:
                    del counts[name]
        self._on_change()

    @property
    def uploads(self) -> list[str]:
        """What goes up now, by name."""
        return self._named(self._up)

    @property
    def downloads(self) -> list[str]:
        """What comes down now, by name."""
        return self._named(self._down)

    def _named(self, counts: Counter[str]) -> list[str]:
        with self._lock:
            return sorted(counts)[:MOST_NAMED]
