"""How container groups and their jobs stand, in one picture, and such pictures again and again.

Limits: at most ``GROUPS_SHOWN`` groups and ``RUNNING_SHOWN`` + 2 * ``OTHERS_SHOWN`` jobs, however many there are:
besides them it reads three counts a group of all groups (2,000 at most), and lets Redis sort the jobs that run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kelpie_celery import bulk
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.records import JobRecord
from kelpie_celery.lifecycle import Status
from kelpie_celery.why.facts import GroupSeen

GROUPS_SHOWN = 20
RUNNING_SHOWN = 20
OTHERS_SHOWN = 5
"""Of the jobs that wait, and of those that ended, so many are part of a picture."""

_GROUPS_COUNTED = 2000
_RUNNING_SORTED = 10_000


@dataclass(frozen=True)
class Overview:
    """How container groups and their jobs stand.

    Attributes:
        now: When, seconds since the epoch by Redis's clock.
        groups: Those with work first, at most ``GROUPS_SHOWN``.
        more_groups: How many are left out.
        running: The jobs that were created last of those that run, at most ``RUNNING_SHOWN``.
        pending: The first ones in their queues, and the retries that are due next.
        ended: Those that ended last, the last one first.
    """

    now: float
    groups: Sequence[GroupSeen] = ()
    more_groups: int = 0
    running: Sequence[JobRecord] = ()
    pending: Sequence[JobRecord] = ()
    ended: Sequence[JobRecord] = ()


@dataclass(frozen=True)
class Sight:
    """What a watcher sees at one look.

    Attributes:
        overview: The last one that there is.
        age_s: How old it is, seconds; more than none while Redis is away.
        away: Whether Redis did not answer at this look.
        redis: The server, as it may be shown.
    """

    overview: Overview
    age_s: float = 0.0
    away: bool = False
    redis: str = ""


def overview(ledger: Ledger, group: str | None) -> Overview:
    """One picture of one group, or of all.

    Raises:
        LedgerUnavailable: Redis is away.
        RedisError: The same, from the reads of many jobs.
    """
    now = ledger.server_time()
    known = [group] if group is not None else ledger.groups()
    shown = _shown(ledger, known)
    groups = ledger.look_at_groups(shown, now)
    running = [one.group for one in groups if 0 < one.counts.running <= _RUNNING_SORTED]
    ids = bulk.newest_ids(ledger.redis, running, Status.RUNNING, RUNNING_SHOWN, newest_first=True)
    for one in groups:
        if one.counts.running > _RUNNING_SORTED:
            ids += ledger.ids(one.group, "running", 0, RUNNING_SHOWN - 1)
    group_of = ledger.ends_of_queues(shown, OTHERS_SHOWN) | ledger.groups_of(ids)
    records = ledger.brief(group_of)
    return Overview(
        now, groups, len(known) - len(shown),
        sorted((r for r in records if r.status is Status.RUNNING), key=_created, reverse=True)[:RUNNING_SHOWN],
        sorted((r for r in records if r.status is Status.PENDING), key=_turn)[:OTHERS_SHOWN],
        sorted((r for r in records if r.status.ended), key=_end, reverse=True)[:OTHERS_SHOWN],
    )  # fmt: skip


def _shown(ledger: Ledger, known: Sequence[str]) -> list[str]:
    """The groups of the picture, those with work first."""
    work = ledger.work_of(known[:_GROUPS_COUNTED])
    return sorted(work, key=lambda one: (not work[one], one))[:GROUPS_SHOWN]


def _created(record: JobRecord) -> float:
    return record.created


def _turn(record: JobRecord) -> tuple[float, int, float]:
    return (record.not_before or 0.0, record.priority, record.created)


def _end(record: JobRecord) -> float:
    return record.ended or 0.0
