"""Names in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

MOST = 4


def named(names: Sequence[str]) -> str:
    """``a, b, c, d and 3 more``."""
    shown = ", ".join(names[:MOST])
    return shown if len(names) <= MOST else f"{shown} and {len(names) - MOST} more"
