"""What a client may ask about why jobs are where they are, and how container groups stand.

Limits: answers are pictures of one moment.
"""

from __future__ import annotations

from collections.abc import Iterator

from kelpie_celery._calls import TROUBLE, Calls, may_pass
from kelpie_celery.clock import Clock
from kelpie_celery.job import Job, JobId
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.types import encodable
from kelpie_celery.settings import Settings
from kelpie_celery.why.explain import Explanation, explain
from kelpie_celery.why.overview import Overview, Sight, overview

LOOK_EVERY_S = 2.0


class WhyClient:
    """The part of a client that tells why; see `kelpie_celery.client.Kelpie`."""

    settings: Settings
    _calls: Calls
    _ledger: Ledger
    _clock: Clock

    def why(self, job_id: JobId) -> Explanation:
        """Why a job waits, is not further, or ended as it did.

        Raises:
            JobNotFound: No record has this id.
        """
        known = job_id.id if isinstance(job_id, Job) else encodable(job_id)
        every_s = self.settings.scale_interval_s
        doing = f"look at job {known}"
        return explain(self._calls.make(doing, lambda: self._ledger.look_at(known, scale_interval_s=every_s)))

    def overview(self, group: str | None = None) -> Overview:
        """How all container groups, or one of them, and their jobs stand."""
        known = None if group is None else encodable(group)
        return self._calls.make("look at the groups", lambda: overview(self._ledger, known))

    def watch(self, group: str | None = None, every_s: float = LOOK_EVERY_S) -> Iterator[Sight]:
        """Look again and again, without end; an outage of Redis is sat out once the first look has succeeded.

        Args:
            group: A container group; all of them by default.
            every_s: The pause between two looks, in seconds.

        Raises:
            LedgerUnavailable: Redis cannot be reached from the start, or refuses the look.
        """
        known, where = None if group is None else encodable(group), self._calls.where
        last, seen_at = self.overview(known), self._clock.boottime()
        yield Sight(last, redis=where)
        while True:
            self._clock.sleep(every_s)
            try:
                last, seen_at = overview(self._ledger, known), self._clock.boottime()
            except TROUBLE as error:
                if not may_pass(error):
                    raise self._calls.unavailable("look at the groups", error) from error
                yield Sight(last, self._clock.boottime() - seen_at, away=True, redis=where)
            else:
                yield Sight(last, redis=where)
