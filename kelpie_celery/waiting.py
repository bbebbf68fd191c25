"""Waiting until jobs have ended: cheap looks at growing intervals, through outages of Redis.

Limits: it polls. The first look must succeed, so that a wrong address shows at once; after that only the
time-out ends the wait. A look that is under way when the time is over may take 5 s longer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kelpie_celery._calls import TROUBLE, Calls, may_pass
from kelpie_celery.bulk import Glance, Glances
from kelpie_celery.clock import Clock
from kelpie_celery.errors import JobNotFound, WaitTimeout

if TYPE_CHECKING:
    from redis import Redis

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
_GROWTH = 1.3
# Of its time a waiting client may spend a fifth on looking, however many jobs it waits for.
_REST = 4.0
_NAMED = 10

OnLook = Callable[[Sequence[Glance]], None]


class Waiter:
    """Waits for a fixed set of jobs.

    Attributes:
        open: The ids of the jobs that had not ended at the last look.
    """

    def __init__(
        self,
        redis: Redis,
        calls: Calls,
        clock: Clock,
        job_ids: Sequence[str],
        *,
        longest_pause_s: float = LONGEST_PAUSE_S,
        on_look: OnLook | None = None,
    ) -> None:
        """A waiter that has not looked yet.

        Args:
            redis: Where the records are.
            calls: Makes the first look, and tells what became of a call.
            clock: Where time comes from.
            job_ids: For which to wait.
            longest_pause_s: The pause between two looks grows up to this.
            on_look: Told after each look where every job stands.
        """
        self._glances, self._calls, self._clock = Glances(redis), calls, clock
        self._longest_pause_s, self._on_look = longest_pause_s, on_look
        self._seen: dict[str, Glance | None] = dict.fromkeys(job_ids)
        self.open = list(self._seen)
        self._away = False

    def wait(self, timeout_s: float | None) -> None:
        """Return when every job has ended.

        Raises:
            WaitTimeout: Names the jobs that have not.
            JobNotFound: One of them has no record, or has none any more.
            LedgerUnavailable: Redis cannot be reached from the start, or refuses the look.
        """
        deadline = None if timeout_s is None else self._clock.boottime() + timeout_s
        pause_s = min(FIRST_PAUSE_S, self._longest_pause_s)
        self._calls.make("look at the jobs", self._look)
        while self.open:
            left_s = float("inf") if deadline is None else deadline - self._clock.boottime()
            if left_s <= 0:
                raise WaitTimeout(self._timed_out(timeout_s or 0.0))
            self._clock.sleep(min(pause_s, left_s))
            began, were_open = self._clock.boottime(), len(self.open)
            self._look_again()
            least_s = _REST * (self._clock.boottime() - began)
            grown_s = FIRST_PAUSE_S if len(self.open) < were_open else pause_s * _GROWTH
            pause_s = max(min(grown_s, self._longest_pause_s), least_s)

    def _look(self) -> None:
        seen = self._glances.look(self.open)
        missing = [job_id for job_id in self.open if job_id not in seen]
        if missing:
            raise JobNotFound(self._gone(missing))
        self._seen.update(seen)
        self.open = [job_id for job_id in self.open if not seen[job_id].status.ended]
        if self._on_look:
            self._on_look([glance for glance in self._seen.values() if glance is not None])

    def _look_again(self) -> None:
        try:
            self._look()
        except TROUBLE as error:
            if not may_pass(error):
                raise self._calls.unavailable("look at the jobs", error) from error
            self._note_outage()
            return
        if self._away:
            log.warning("Redis is back; still waiting", extra={"action": "ledger_back", "jobs": len(self.open)})
            self._away = False

    def _note_outage(self) -> None:
        if not self._away:
            log.warning(
                "Redis is away; still waiting, the jobs run on",
                extra={"action": "ledger_away", "redis": self._calls.where, "jobs": len(self.open)},
            )
        self._away = True

    def _gone(self, missing: Sequence[str]) -> str:
        if self._seen[missing[0]] is None:
            return f"no job has the id {_named(missing)}; 'kelpie list' shows the ids that exist"
        return (
            f"the record of {_named(missing)} is gone while it was waited for: its retention is over, "
            "or Redis lost its data"
        )

    def _timed_out(self, timeout_s: float) -> str:
        jobs = "1 job has" if len(self.open) == 1 else f"{len(self.open)} jobs have"
        states = {job_id: seen.status for job_id, seen in self._seen.items() if seen}
        told = [f"{job_id} ({states[job_id]})" for job_id in self.open[:_NAMED]]
        more = f" and {len(self.open) - _NAMED} more" if len(self.open) > _NAMED else ""
        return f"{jobs} not ended within {timeout_s:g} s: {', '.join(told)}{more}; waiting stops, the jobs go on"


def _named(job_ids: Sequence[str]) -> str:
    more = f" and {len(job_ids) - _NAMED} more" if len(job_ids) > _NAMED else ""
    return ", ".join(repr(job_id) for job_id in job_ids[:_NAMED]) + more
