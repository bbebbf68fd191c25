"""How a job ended, what that means, and what to do about it.

Limits: the meaning of a reason is that of `kelpie_celery.reasons`; of one that this version does not know only the
worker's own words are told.
"""

from __future__ import annotations

from collections.abc import Iterator

from kelpie_celery.cli._text import duration
from kelpie_celery.ledger.records import JobRecord
from kelpie_celery.lifecycle import Outcome, Status
from kelpie_celery.why.facts import JobSeen
from kelpie_celery.why.words import Because, ago, has_checkpoints, last_failure, meaning_of

CELERY_SOON_S = 30.0


def ended(seen: JobSeen) -> Iterator[Because]:
    """The sentences, the deciding one first."""
    record, now = seen.record, seen.now
    when = f" {ago(now, record.ended)}" if record.ended else ""
    took = (
        f", {duration(record.ended - record.started)} after its first start" if record.ended and record.started else ""
    )
    how = last_failure(record)
    said = f": {how}" if how and record.status is not Status.COMPLETED else ""
    yield Because(record.status.value, f"It {_verb(record.status)}{when}{took}{said}.")
    yield from _meaning(record)
    if not record.celery_done and record.ended and now - record.ended > CELERY_SOON_S:
        yield Because(
            "celery",
            "Celery has not been told of its end yet, so results and next steps of a workflow wait: that takes a "
            "worker of the group or a control worker.",
        )


def _verb(status: Status) -> str:
    return "was canceled" if status is Status.CANCELED else status.value


def _meaning(record: JobRecord) -> Iterator[Because]:
    meaning = meaning_of(_reason_of(record))
    if meaning is None:
        return
    yield Because("meaning", meaning.what)
    if record.status is not Status.FAILED:
        return
    if meaning.counts and record.num_failures >= record.max_failures:
        yield Because("failures", f"It was the last of {record.max_failures} failures that it may have (max_failures).")
    elif meaning.outcome is Outcome.FAILURE:
        yield Because("final", "Such an end is not retried, by the reason or by a retry rule of the definition.")
    if meaning.advice:
        yield Because("advice", f"What to do: {meaning.advice}.")
    if record.committed is not None and has_checkpoints(record):
        yield Because(
            "checkpoint",
            "Its checkpoints are kept: a new job with the same checkpoint prefix goes on from the last one.",
        )


def _reason_of(record: JobRecord) -> str | None:
    if record.status is Status.COMPLETED:
        # The record keeps no reason for a good end; its last attempt does.
        return record.attempts[-1].reason if record.attempts else None
    return record.reason
