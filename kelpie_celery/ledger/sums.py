"""The ledger's sums of a group: where its jobs' time went, and how their attempts ended.

They are added to by the very Lua calls that change the records (``account`` in ``lua/_common.lua``), so that each thing
counts once, and outlive the records. What there is:

* ``waiting_s``: from when a job was due until it was claimed, or canceled;
* ``restoring_s``: from the claim to the command's start, or to the end of an attempt that never got there;
* ``useful_s``: what was executed up to a commit, counted with it, and up to the end of an attempt that completed;
* ``lost_s``: what was executed after the last commit of any other attempt;
* ``syncing_s``: from the command's end to the attempt's;
* ``silent_s``: from the last sign of life of a silent death until its lease was over;
* ``end:<outcome>:<reason>``: attempts that ended so; ``decision:<action>``: looks of the scaler.

Limits: by hours of UTC by Redis's clock, for 90 days after a day was last added to; an attempt counts in the hours in
which it commits and ends. A silent death whose job comes back to it is taken off again.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from kelpie_celery.errors import LedgerRefused
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.calls import Calls, mapped_errors
from kelpie_celery.ledger.scripts import text

log = logging.getLogger(__name__)

HOUR_S, DAY_S = 3600, 86_400
KEPT_DAYS = 90
GROUPS_AT_ONCE = 200

Sums = Mapping[str, float]


@dataclass(frozen=True)
class GroupPicture:
    """What metrics tell of a group.

    Attributes:
        jobs: By status; ``delayed`` ones wait out the pause before a retry, and are not among the pending.
        queue_age_s: How long the oldest pending job has waited; 0 when there is none.
        workers: Those that were heard of lately.
        totals: The sums since ever.
        desired: How many nodes the scaler wants; None where nothing is scaled.
        actual: How many of them ran at its last look.
    """

    jobs: Mapping[str, int]
    queue_age_s: float
    workers: int
    totals: Sums
    desired: int | None
    actual: int | None


class SumsOfGroups(Calls):
    """Sums of container groups."""

    def sums(self, group: str, since: float, until: float) -> Sums:
        """The sums of the hours from the one of ``since`` to the one of ``until``, both in seconds since the epoch."""
        first, last = int(since // HOUR_S), int(until // HOUR_S)
        days = range(max(first, last - KEPT_DAYS * 24) // 24, last // 24 + 1)
        with mapped_errors(f"sum up group {group}"), self.redis.pipeline(transaction=False) as pipe:
            for day in days:
                pipe.hgetall(keys.stats(group, day))
            rows = pipe.execute()
        found: dict[str, float] = defaultdict(float)
        for day, row in zip(days, rows, strict=True):
            for field, value in _numbers(row).items():
                hour, _, what = field.partition(":")
                if hour.isdecimal() and first <= day * 24 + int(hour) <= last:
                    found[what] += value
        return dict(found)

    def pictures(self, groups: Sequence[str]) -> dict[str, GroupPicture]:
        """What metrics tell of these groups: a few commands each, none of which depends on how many jobs there are.

        A group that cannot be read, since its workers spoilt its keys, is left out.

        Raises:
            LedgerUnavailable: Redis is away.
        """
        found: dict[str, GroupPicture] = {}
        since = self.server_time() - self.timings.machine_alive_s
        for at in range(0, len(groups), GROUPS_AT_ONCE):
            some = groups[at : at + GROUPS_AT_ONCE]
            with mapped_errors(f"look at {len(some)} groups"), self.redis.pipeline(transaction=False) as pipe:
                for group in some:
                    self._scripts["queue"](keys=[], args=[group], client=pipe)
                    pipe.hgetall(keys.counts(group))
                    pipe.hgetall(keys.totals(group))
                    pipe.hmget(keys.scaler(group), "desired", "actual")
                    pipe.zcount(keys.workers(group), since, "+inf")
                rows = iter(pipe.execute(raise_on_error=False))
            for group in some:
                picture = _picture_or_none(group, [next(rows) for _ in range(5)])
                if picture is not None:
                    found[group] = picture
        return found


def _picture_or_none(group: str, rows: list[Any]) -> GroupPicture | None:
    try:
        for row in rows:
            with mapped_errors(f"look at group {group}"):
                _raise_error(row)
        return _picture(*rows)
    except (LedgerRefused, ValueError, TypeError) as e:
        log.warning(
            "a group has no metrics: it cannot be read",
            extra={"action": "metrics_unreadable", "container_group": group, "error": type(e).__name__},
        )
        return None


def _raise_error(row: Any) -> None:
    if isinstance(row, RedisError):
        raise row


def _picture(queue: Any, counts: Any, totals: Any, nodes: Any, workers: Any) -> GroupPicture:
    _, pending, delayed, running, lapsed, oldest_s, *_ = map(text, queue)
    ended = {text(k): int(v) for k, v in counts.items()}
    jobs = {"pending": int(pending), "delayed": int(delayed), "running": int(running) + int(lapsed)}
    jobs |= {status: max(0, ended.get(status, 0)) for status in ("completed", "failed", "canceled")}
    desired, actual = (None if node is None else int(node) for node in nodes)
    return GroupPicture(jobs, float(oldest_s), int(workers), _numbers(totals), desired, actual)


def _numbers(row: Mapping[Any, Any]) -> dict[str, float]:
    """A hash of sums, without what the group's workers made of them that is no number."""
    found = {}
    for field, value in row.items():
        with contextlib.suppress(ValueError):
            number = float(text(value))
            if math.isfinite(number):
                found[text(field)] = number
    return found
