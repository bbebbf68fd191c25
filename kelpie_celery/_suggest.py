"""Guesses what a misspelt name was meant to be: a field of a definition, a setting, a command.

Limits: it compares spelling only, and knows nothing of meaning.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def closest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known name that ``name`` was most likely meant to be, or None.

    Case, ``-`` for ``_`` and camelCase are not counted as differences.
    """
    plain = {_plain(candidate): candidate for candidate in known}
    # Long names are nobody's slip of the finger, and difflib's time grows with their length.
    if len(name) > 2 * max(map(len, plain), default=0):
        return None
    matches = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=cutoff)
    return plain[matches[0]] if matches else None


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """A half sentence to append to a message: ``; did you mean 'x'?``, or nothing."""
    match = closest(name, known, cutoff=cutoff)
    return f"; did you mean '{match}'?" if match else ""


def _plain(name: str) -> str:
    return _CAMEL.sub("_", name).replace("-", "_").lower()
