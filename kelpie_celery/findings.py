"""What a look at something found: good, to be known, doubtful or wrong, each with what to do about it.

Limits: plain values; who shows them masks what they show.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    PROBLEM = "problem"
    """Of what `kelpie verify` looks at: the job as it is."""
    ERROR = "error"
    """Of what `kelpie doctor` looks at: the set-up."""

    @property
    def bad(self) -> bool:
        """Whether something has to be mended."""
        return self in (Level.PROBLEM, Level.ERROR)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: How bad it is.
        check: Which look it was: a stable name.
        text: What was seen, in words.
        mend: What to do; empty where nothing has to be done.
        facts: The figures behind it, plain values.
    """

    level: Level
    check: str
    text: str
    mend: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "level": self.level.value, "check": self.check, "text": self.text, "mend": self.mend or None,
            "facts": self.facts,
        }  # fmt: skip


def ok(check: str, text: str, **facts: Any) -> Finding:
    """All is well."""
    return Finding(Level.OK, check, text, facts=facts)


def info(check: str, text: str, mend: str = "", **facts: Any) -> Finding:
    """Neither good nor bad."""
    return Finding(Level.INFO, check, text, mend, facts)


def warning(check: str, text: str, mend: str, **facts: Any) -> Finding:
    """It works, and may not always."""
    return Finding(Level.WARNING, check, text, mend, facts)


def problem(check: str, text: str, mend: str, **facts: Any) -> Finding:
    """The job has to be changed."""
    return Finding(Level.PROBLEM, check, text, mend, facts)


def error(check: str, text: str, mend: str, **facts: Any) -> Finding:
    """The set-up has to be changed."""
    return Finding(Level.ERROR, check, text, mend, facts)


def any_bad(findings: Iterable[Finding]) -> bool:
    """Whether something has to be mended."""
    return any(one.level.bad for one in findings)
