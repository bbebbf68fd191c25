"""Why a pending job has not started.

Limits: who would take it is told from signs of life in the ledger; that a worker is idle does not prove that it can
reach the queue, and that is said.
"""

from __future__ import annotations

from collections.abc import Iterator

from kelpie_celery.cli._text import counted, duration, one_line
from kelpie_celery.lifecycle import Outcome, Reason
from kelpie_celery.why.facts import JobSeen, WorkersSeen
from kelpie_celery.why.nodes import nobody_maintains, nodes
from kelpie_celery.why.words import Because, ago, due, last_failure, meaning_of, quoted

SOON_S = 30.0
"""An idle worker takes a job of its queue at once; what lies longer needs somebody to look."""


def pending(seen: JobSeen) -> Iterator[Because]:
    """The sentences, the deciding one first."""
    if seen.record.not_before is not None:
        yield from _delayed(seen, seen.record.not_before)
        yield from _who_would(seen)
        yield from _bans(seen)
    elif seen.group.spoilt:
        yield Because("spoilt", "Why it waits is not known: the keys of its container group hold what they should not.")
        yield _place(seen)
    elif seen.group.workers.heard:
        yield from _queued(seen)
        yield from nodes(seen)
    else:
        yield from nodes(seen)
        yield _place(seen)
    yield from _history(seen)


def _who_would(seen: JobSeen) -> Iterator[Because]:
    """Whether somebody would take it, once it is due."""
    if seen.group.spoilt:
        return
    if seen.group.workers.heard:
        yield Because("workers", f"{_workers(seen.group.workers)}.")
    else:
        yield from nodes(seen)


# -- it is not in the queue yet ------------------------------------------------------------------------------------


def _delayed(seen: JobSeen, moment: float) -> Iterator[Because]:
    now, last = seen.now, seen.record.attempts[-1] if seen.record.attempts else None
    if moment <= now:
        yield Because(
            "due", f"It has been due for {duration(now - moment)}, and goes to its queue with the next maintenance."
        )
        yield from nobody_maintains(seen)
    elif seen.bounces:
        yield Because(
            "banned_machine",
            f"It was offered to a machine that may not take it ({counted(seen.bounces, 'time')} so far); it is offered "
            f"again {due(now, moment)}.",
        )
    elif last is None:
        yield Because("delay", f"It was submitted with a delay, and is due {due(now, moment)}.")
    elif last.reason == Reason.ROLLED_BACK:
        yield Because(
            "rolled_back",
            f"It was rolled back to an older checkpoint, and can start {due(now, moment)}: until then the attempt that "
            "ran may still trust its lease.",
        )
    else:
        how = quoted(": ".join(filter(None, (last.reason, last.message)))) or str(last.outcome)
        yield Because(
            "retry_delay",
            f"It waits for its next try, which is due {due(now, moment)}: attempt {last.n} ended with {how}.",
        )


# -- it is in the queue, and there are workers ---------------------------------------------------------------------


def _queued(seen: JobSeen) -> Iterator[Because]:
    workers, ahead = seen.group.workers, seen.ahead or 0
    if seen.group.closed_until is not None:
        yield Because(
            "closed",
            "The container group is being stopped: its workers take no jobs, unless the scaler takes that back since "
            f"there is work; at the latest they do again {due(seen.now, seen.group.closed_until)}.",
        )
    elif workers.free_slots == 0 and not workers.idle:
        yield Because("busy", f"Nobody is free: {_workers(workers)}.")
    elif _all_banned(seen):
        yield from _bans(seen)
    elif ahead >= max(1, workers.free_slots):
        yield Because("queue", f"{_workers(workers)}; jobs before it come first.")
    else:
        yield _should_start(seen)
    yield _place(seen)
    if not _all_banned(seen):
        yield from _bans(seen)


def _all_banned(seen: JobSeen) -> bool:
    machines = seen.group.workers.machines
    return bool(machines & set(seen.bans)) and seen.group.workers.idle > 0 and len(machines - set(seen.bans)) == 0


def _should_start(seen: JobSeen) -> Because:
    waited_s = seen.now - (seen.published or seen.pending_since or seen.now)
    if waited_s < SOON_S:
        return Because("soon", f"It should start in a moment: {_workers(seen.group.workers)}.")
    return Because(
        "unknown",
        f"Why it has not started is not known: {_workers(seen.group.workers)}, and its message has been in the queue "
        f"for {duration(waited_s)}. Unless a worker became free only just now, look at a worker's log and at "
        "'kelpie-worker health'.",
    )


def _place(seen: JobSeen) -> Because:
    since = "" if seen.pending_since is None else f"; it has been pending for {duration(seen.now - seen.pending_since)}"
    if seen.ahead is None:
        # Taken or promoted while it was looked at.
        return Because("place", f"Its place in the queue is not known{since}.")
    if seen.ahead == 0:
        return Because("place", f"It is the first in its queue{since}.")
    verb = "is" if seen.ahead == 1 else "are"
    of = f", {seen.ahead_higher} of a higher priority" if seen.ahead_higher else ""
    return Because("place", f"{counted(seen.ahead, 'job')} {verb} ahead of it in its queue{of}{since}.")


def _bans(seen: JobSeen) -> Iterator[Because]:
    if not seen.bans:
        return
    names = sorted(seen.bans)
    shown = ", ".join(one_line(name) for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")  # noqa: PLR2004 -- as many as fit
    end = max(seen.bans.values())
    text = (
        f"It failed on {'machine' if len(names) == 1 else 'machines'} {shown}, which may not take it while another can"
    )
    if seen.pending_since is not None:
        left_s = seen.pending_since + seen.ban_yields_s - seen.now
        text += (
            f"; that yields in {duration(left_s)}, when it has waited {duration(seen.ban_yields_s)}"
            if left_s > 0
            else f"; it has waited more than {duration(seen.ban_yields_s)}, so they may by now"
        )
    if not seen.group.workers.machines - set(names) and seen.group.workers.heard:
        text += ", and at once where no other machine is there"
    yield Because("bans", f"{text}. The last ban ends {due(seen.now, end)}; 'kelpie machines unban' lifts one.")


def _workers(workers: WorkersSeen) -> str:
    """``3 workers were heard of in the last 30 s: 2 busy, 1 draining``."""
    some = f" (of the first {workers.looked_at})" if workers.looked_at < workers.heard else ""
    counts = ((workers.idle, "idle"), (workers.busy, "busy"), (workers.draining, "told to take no more jobs"))
    how = ", ".join(f"{count} {word}" for count, word in counts if count)
    verb = "was" if workers.heard == 1 else "were"
    told = f"{counted(workers.heard, 'worker')} {verb} heard of in the last {duration(workers.alive_s)}"
    return f"{told}{some}: {how}" if how else f"{told}{some}"


# -- what was before -----------------------------------------------------------------------------------------------


def _history(seen: JobSeen) -> Iterator[Because]:
    record, last = seen.record, seen.record.attempts[-1] if seen.record.attempts else None
    if last is None:
        return
    if record.not_before is None or seen.bounces:
        how = quoted(": ".join(filter(None, (last.reason, last.message)))) or (
            last.outcome or "an end that is not known"
        )
        when = f" {ago(seen.now, last.ended)}" if last.ended else ""
        yield Because("last_attempt", f"Its last attempt, number {last.n}, ended{when} with {how}.")
    meaning = meaning_of(last.reason)
    if meaning and meaning.advice and last.outcome in (Outcome.FAILURE, Outcome.FREE):
        yield Because("advice", f"What to do about {last.reason}: {meaning.advice}.")
    if record.num_failures:
        text = f"{record.num_failures} of at most {record.max_failures} failures are counted"
        also = f", the last one {last_failure(record)}" if last.outcome not in (Outcome.FAILURE, Outcome.FREE) else ""
        yield Because("failures", f"{text}{also}.")
