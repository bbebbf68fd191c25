"""Masks secrets in text that leaves the process.

Limits: a secret is found as it is, or as JSON, ``repr`` or a URL writes it; one that is shorter than
`MIN_SECRET_CHARS` is left alone, since masking "1" or "on" everywhere would make logs unreadable.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from urllib.parse import quote, quote_plus

MIN_SECRET_CHARS = 5
MASK = "***"


class Redactor:
    """Knows the secrets of this process; may be used by several threads at once."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._lock = threading.Lock()
        self._counts = Counter[str]()
        self._find: re.Pattern[str] | None = None
        self.longest_chars = 0
        """How long the longest spelling of a secret is: text may be cut so far from a place that is not looked at."""
        self.add(secrets)

    def mask(self, text: str) -> str:
        """``text`` with every secret replaced."""
        find = self._find
        return find.sub(MASK, text) if find else text

    def mask_beginning(self, text: str, left_chars: int) -> tuple[str, str]:
        """Mask a text that goes on, up to about ``left_chars`` before its end.

        Args:
            text: The beginning of what is to be masked; a secret in it may go on after its end.
            left_chars: At least `longest_chars`.

        Returns:
            What is masked for good, and the rest as it was: it belongs before what follows.
        """
        end, at, parts = max(0, len(text) - left_chars), 0, list[str]()
        find = self._find
        for secret in find.finditer(text) if find else ():
            if secret.start() >= end:
                break  # a longer one that is not yet there whole may begin like it
            parts += (text[at : secret.start()], MASK)
            at = secret.end()
        end = max(at, end)
        return "".join((*parts, text[at:end])), text[end:]

    def add(self, secrets: Iterable[str]) -> None:
        """Mask these from now on."""
        self._update(secrets, 1)

    @contextmanager
    def hiding(self, secrets: Iterable[str]) -> Iterator[None]:
        """Mask these as well while the block runs, such as one job's environment; blocks may overlap."""
        held = list(secrets)
        self._update(held, 1)
        try:
            yield
        finally:
            self._update(held, -1)

    def _update(self, secrets: Iterable[str], change: int) -> None:
        with self._lock:
            for secret in secrets:
                for spelling in _spellings(secret):
                    self._counts[spelling] += change
            known = [spelling for spelling, count in self._counts.items() if count > 0]
            self._counts = Counter({spelling: self._counts[spelling] for spelling in known})
            # The longest first: a secret that begins like another one must not leave its own end behind.
            known.sort(key=len, reverse=True)
            self.longest_chars = len(known[0]) if known else 0
            self._find = re.compile("|".join(map(re.escape, known))) if known else None


def _spellings(secret: str) -> set[str]:
    """The ways in which text may hold a secret."""
    lines = [secret, *secret.splitlines()]  # of a key in several lines, each line is one
    found = set[str]()
    for line in (line.strip() for line in lines):
        found |= {line, json.dumps(line)[1:-1], json.dumps(line, ensure_ascii=False)[1:-1]}
        found |= {repr(line)[1:-1], ascii(line)[1:-1], quote(line, safe=""), quote_plus(line), quote(line)}
    return {spelling for spelling in found if len(spelling) >= MIN_SECRET_CHARS}
