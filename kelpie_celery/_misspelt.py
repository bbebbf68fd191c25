"""Finds ``KELPIE_...`` variables that are no settings, and what they were most likely meant to be. Pure.

Limits: spelling only, and only names with our own prefix: others are somebody else's. Values are never looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kelpie_celery._suggest import closest

PREFIX = "KELPIE_"
_NEAR = 0.75

# Set by the worker for its jobs, from which jobs may be submitted too; and read by the local stack alone.
NO_SETTINGS = frozenset(
    {"KELPIE_JOB_ID", "KELPIE_ATTEMPT", "KELPIE_REPORT", "KELPIE_PARENTS", "KELPIE_REDIS_SERVER", "KELPIE_WEED"}
)


@dataclass(frozen=True)
class Unknown:
    """A variable that is no setting, and the setting that it resembles, if any."""

    name: str
    meant: str | None

    @property
    def hint(self) -> str:
        """A half sentence to append: ``; did you mean 'KELPIE_SLOTS'?``, or nothing."""
        return f"; did you mean '{self.meant}'?" if self.meant else ""


def unknown_names(given: Iterable[str], known: Iterable[str]) -> list[Unknown]:
    """The names with our prefix that are neither settings nor ours otherwise, in order.

    Args:
        given: Names of variables that are set.
        known: Names of all settings, those without our prefix too.
    """
    settings = set(known)
    # The common prefix would make any two names look alike, so it is left out of the comparison.
    bare = {name.removeprefix(PREFIX): name for name in settings}
    found = []
    for name in sorted(name for name in given if name.startswith(PREFIX)):
        if name not in settings and name not in NO_SETTINGS:
            match = closest(name.removeprefix(PREFIX), bare, cutoff=_NEAR)
            found.append(Unknown(name, bare[match] if match else None))
    return found
