"""Words that the sentences of `explain` share.

Limits: a moment is told by its distance from now, since a person's clock and Redis's may differ.
"""

from __future__ import annotations

from dataclasses import dataclass

from kelpie_celery.cli._text import clock_time, duration, one_line
from kelpie_celery.ledger.records import JobRecord
from kelpie_celery.lifecycle import Reason
from kelpie_celery.reasons import REASONS, Meaning

MAX_WORDS = 300
"""Of somebody else's text in a sentence, in characters."""

_KNOWN = frozenset(REASONS)


@dataclass(frozen=True)
class Because:
    """One sentence, and a word for programs that says what it is about."""

    code: str
    text: str


def ago(now: float, moment: float) -> str:
    """``3 min 5 s ago``; a moment that is not over yet by a hair counts as now."""
    return f"{duration(max(0.0, now - moment))} ago"


def after(seconds: float) -> str:
    """``in 40 s``; what is due is due ``now``."""
    return f"in {duration(seconds)}" if seconds > 0 else "now"


def due(now: float, moment: float) -> str:
    """``in 40 s (12:00:05)``."""
    return f"in {duration(max(0.0, moment - now))} ({clock_time(moment)})"


def quoted(text: str) -> str:
    """Somebody else's words: harmless, on one line, without the full stop, and not endless."""
    words = one_line(text).rstrip(".")
    return words if len(words) <= MAX_WORDS else words[: MAX_WORDS - 1] + "…"


def last_failure(record: JobRecord) -> str:
    """``exit_code: exit code 3``, of the last attempt that failed; empty where none did."""
    return quoted(": ".join(filter(None, (record.reason, record.message))))


def meaning_of(reason: str | None) -> Meaning | None:
    """What a reason means; None for one that this version does not know."""
    return REASONS[Reason(reason)] if reason in _KNOWN else None


def has_checkpoints(record: JobRecord) -> bool:
    """Whether its definition names a place for checkpoints at all."""
    sync = record.definition.get("sync")
    during = sync.get("during") if isinstance(sync, dict) else None
    return bool(during or record.definition.get("checkpoint_bucket"))
