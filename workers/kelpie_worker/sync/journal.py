"""What sync needs of the ledger: where each line of commits stands, and the one call that moves their heads.

Limits: a seam; the attempt implements it over the ledger, and waits there while Redis is away.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

from kelpie_celery.ledger.types import Line, LineAddress, NewCommit


class Journal(Protocol):
    """The ledger, as one attempt may use it."""

    async def lines(self, addresses: Sequence[LineAddress]) -> list[Line]:
        """Where these lines stand.

        Raises:
            LeaseLost: The attempt lost its job.
        """

    async def commit(self, commits: Sequence[NewCommit], facts: dict[str, Any]) -> list[Line]:
        """Move the heads of all these lines, or of none.

        Raises:
            LeaseLost: The attempt lost its job; nothing may follow from this commit.
            PrefixHeld: Another live job commits to one of them.
        """

    async def spared(self, job_ids: Collection[str], grace_s: float) -> set[str]:
        """Those of these jobs that may commit still, or ended less than ``grace_s`` ago: Redis may forget that."""

    async def collected(self, address: LineAddress, ids: Sequence[str]) -> None:
        """The objects of these dropped commits are deleted."""
