"""Canceling all that is pending or runs in a container group, in bounded batches.

Limits: as many pending jobs as there were at the start; what is submitted meanwhile may be canceled, or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kelpie_celery import bulk
from kelpie_celery._calls import Calls
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.lifecycle import Status


@dataclass(frozen=True)
class Purged:
    """What a purge did: pending jobs are ``canceled`` at once, running ones are ``canceling``."""

    canceled: int = 0
    canceling: int = 0


def purge(
    ledger: Ledger,
    calls: Calls,
    group: str,
    status: Status | None,
    progress: Callable[[Purged], None] | None = None,
) -> Purged:
    """Cancel the jobs of a group.

    Args:
        ledger: Where they are.
        calls: Makes the calls.
        group: The container group.
        status: ``pending`` or ``running`` for these alone; None for both.
        progress: Told after each batch what is done so far.
    """
    under_way = _Purge(ledger, calls, group, progress)
    # Pending first, lest a running job's end lets the next one start.
    if status in (None, Status.PENDING):
        under_way.waiting()
    if status in (None, Status.RUNNING):
        under_way.running()
    return under_way.done


class _Purge:
    """One purge under way."""

    def __init__(self, ledger: Ledger, calls: Calls, group: str, progress: Callable[[Purged], None] | None) -> None:
        self._ledger, self._calls, self._group, self._progress = ledger, calls, group, progress
        self.done = Purged()

    def waiting(self) -> None:
        """Cancel what is pending or delayed: as many as there were at the start, page by page."""
        counts = self._calls.make("count the jobs", lambda: self._ledger.counts(self._group))
        for index, count in (("pending", counts.pending - counts.delayed), ("delayed", counts.delayed)):
            seen = skip = 0
            while seen < count:
                page = self._page(index, skip)
                if not page:
                    break
                seen += len(page)
                # What was not canceled is still there, and would come again.
                skip += self._cancel(page).count("unknown")

    def running(self) -> None:
        """Cancel what runs."""
        ids = self._calls.make("list the jobs", lambda: bulk.all_running(self._ledger.redis, self._group))
        for at in range(0, len(ids), bulk.PAGE):
            self._cancel(ids[at : at + bulk.PAGE])

    def _page(self, index: str, skip: int) -> list[str]:
        redis = self._ledger.redis
        return self._calls.make("list the jobs", lambda: bulk.next_pending(redis, self._group, index, skip))

    def _cancel(self, ids: Sequence[str]) -> list[str]:
        redis, retention_s = self._ledger.redis, self._ledger.timings.job_retention_s
        answers = self._calls.make(
            "cancel the jobs", lambda: bulk.cancel_all(redis, ids, "purged by the user", retention_s)
        )
        self.done = Purged(
            self.done.canceled + answers.count("canceled"), self.done.canceling + answers.count("canceling")
        )
        if self._progress:
            self._progress(self.done)
        return answers
