"""Which objects of a line nothing refers to any more: pure decisions, for workers and ``kelpie checkpoints gc`` alike.

Two ways to find garbage. A dropped commit is *due* once it was dropped ``grace_s`` ago: what it refers to goes, unless
a kept commit, or one dropped later, still refers to it. And a sweep over the listing finds *orphans*: objects that
attempts left which died or were refused before their commit was accepted.

Limits: whoever deletes must hold the line (its attempt), or know that nobody does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass


@dataclass(frozen=True)
class DroppedCommit:
    """A commit that is not kept any more, and when it was dropped, in seconds since the epoch by the ledger."""

    id: str
    at: float


def due(dropped: Iterable[DroppedCommit], now: float, grace_s: float) -> list[str]:
    """The commits whose objects may go now."""
    return [commit.id for commit in dropped if now - commit.at >= grace_s]


def garbage(due_ids: Iterable[str], live_ids: Iterable[str], refers_to: Mapping[str, Set[str]]) -> set[str]:
    """Keys of the objects that only due commits refer to.

    Args:
        due_ids: Commits whose time is over.
        live_ids: The kept ones, and those that were dropped less than the grace ago.
        refers_to: Keys of the objects by commit. A due commit may be missing: its manifest is gone, so it went before.

    Raises:
        KeyError: It is not known what a live commit refers to: then nothing may be deleted.
    """
    live: set[str] = set()
    for id_ in live_ids:
        live |= refers_to[id_]
    dead: set[str] = set()
    for id_ in due_ids:
        dead |= refers_to.get(id_, frozenset())
    return dead - live


def live(kept_ids: Iterable[str], dropped: Iterable[DroppedCommit], now: float, grace_s: float) -> set[str]:
    """The commits whose objects must stay: the kept ones, and those that were dropped less than the grace ago."""
    return {*kept_ids, *(commit.id for commit in dropped if now - commit.at < grace_s)}


def is_orphan(key: str, modified: float, referred: Set[str], now: float, grace_s: float) -> bool:
    """Whether nothing refers to an object, and nothing can: it has been there for the grace.

    A ledger that lost its last writes may refer to what is younger. 0 is an unknown time, then it stays.
    """
    return key not in referred and 0 < modified <= now - grace_s


def newest(ids: Iterable[str], is_whole: Callable[[str], bool]) -> str | None:
    """The newest of some commits that is whole: the only one that a restore would take without a ledger.

    Args:
        ids: In any order.
        is_whole: Asked of one after the other, the newest first, until one is.
    """
    return next((id_ for id_ in sorted(ids, reverse=True) if is_whole(id_)), None)
