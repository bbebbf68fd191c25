"""The ledger as the storage side of an attempt uses it: asynchronous, and patient while Redis is away.

Patience has no end here: the lease ends the attempt when Redis stays away for too long (`LedgerOutOfReach`). What Redis
refuses for good (`LedgerRefused`) is not asked for again.

Limits: one attempt, one asyncio loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, TypeVar

from kelpie_celery.errors import LedgerRefused, LedgerUnavailable
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.types import FencingToken, Line, LineAddress, NewCommit

log = logging.getLogger(__name__)

T = TypeVar("T")

_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0


class LedgerJournal:
    """See ``kelpie_worker.sync.journal.Journal``."""

    def __init__(self, ledger: Ledger, token: FencingToken) -> None:
        self._ledger, self._token = ledger, token

    async def lines(self, addresses: Sequence[LineAddress]) -> list[Line]:
        """Where these lines stand."""
        return await self._persist(partial(self._ledger.lines, addresses))

    async def commit(self, commits: Sequence[NewCommit], facts: dict[str, Any]) -> list[Line]:
        """Move the heads of all these lines, or of none; asked again after a lost answer, it is answered the same."""
        return await self._persist(partial(self._ledger.commit, self._token, commits, facts))

    async def spared(self, job_ids: Collection[str], grace_s: float) -> set[str]:
        """Those of these jobs that may commit still, or ended less than ``grace_s`` ago."""
        return await asyncio.to_thread(self._spared, job_ids, grace_s)

    def _spared(self, job_ids: Collection[str], grace_s: float) -> set[str]:
        now = self._ledger.server_time()
        records = self._ledger.get_many(list(job_ids))
        return {r.id for r in records if not r.status.ended or r.ended is None or now - r.ended < grace_s}

    async def collected(self, address: LineAddress, ids: Sequence[str]) -> None:
        """The objects of these dropped commits are deleted; not waited for, since it will be found again."""
        await asyncio.to_thread(self._ledger.collected, address, ids)

    async def _persist(self, call: Callable[[], T]) -> T:
        pause_s = _PAUSE_S
        while True:
            try:
                return await asyncio.to_thread(call)
            except LedgerRefused:
                raise
            except LedgerUnavailable as error:
                log.warning(
                    "Redis is away; the checkpoint waits for it",
                    extra={"action": "ledger_waits", "job_id": self._token.job_id, "error": str(error)},
                )
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 -- jitter, no secret
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
