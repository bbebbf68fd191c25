"""What a running job is at, and whether its worker is still heard of.

Limits: what the worker said with its last heartbeat is as old as that, which is told.
"""

from __future__ import annotations

from collections.abc import Iterator

from kelpie_celery.cli._text import duration, one_line, size
from kelpie_celery.ledger.records import Transfer
from kelpie_celery.lifecycle import Phase
from kelpie_celery.why.facts import JobSeen
from kelpie_celery.why.nodes import nobody_maintains
from kelpie_celery.why.words import Because, after, ago, has_checkpoints, last_failure, quoted

MUTED_LEAST_S = 10.0
"""Silence for three quarters of a lease, which is half a heartbeat more than is usual, and for this, is told."""

_STAGES = {
    "restore": "brings down its inputs and its last checkpoint", "commit": "stores a checkpoint",
    "plain": "copies the checkpoint to its plain keys", "outputs": "sends its outputs",
}  # fmt: skip


def running(seen: JobSeen) -> Iterator[Because]:
    """The sentences, the deciding one first."""
    silent = list(_silence(seen))
    if seen.record.cancel_requested:
        yield _cancel(seen, muted=bool(silent))
    yield from silent
    yield _phase(seen, sure=not silent)
    yield from _said(seen)
    yield from _heartbeat(seen, told=bool(silent))
    yield from _checkpoints(seen)
    yield from _before(seen)


def _silence(seen: JobSeen) -> Iterator[Because]:
    record, now = seen.record, seen.now
    if seen.lease_until is None or record.heartbeat is None:
        return
    muted_s = now - record.heartbeat
    if seen.lease_until <= now:
        yield Because(
            "lease_lapsed",
            f"Its worker was last heard of {duration(muted_s)} ago, and its lease ran out "
            f"{ago(now, seen.lease_until)}: it {_fate(seen)} with the next maintenance, unless the worker is heard of "
            "before that.",
        )
        yield from nobody_maintains(seen)
    elif muted_s > max(MUTED_LEAST_S, 0.75 * (seen.lease_s or 0.0)):
        yield Because(
            "muted",
            f"Its worker has not been heard of for {duration(muted_s)}; should that go on, the job {_fate(seen)} "
            f"{after(seen.lease_until - now)}, when its lease ends.",
        )


def _fate(seen: JobSeen) -> str:
    """What becomes of it without its worker."""
    return "ends as canceled" if seen.record.cancel_requested else "goes back to its queue"


def _cancel(seen: JobSeen, *, muted: bool) -> Because:
    grace = seen.record.definition.get("grace_period")
    patience = f"after at most {duration(float(grace))}" if isinstance(grace, int | float) else "after its grace_period"
    told = f"its worker sends SIGTERM within 2 s, and SIGKILL {patience}"
    if muted:
        told = "its worker is not heard of, so it ends when the lease does"
    elif seen.record.phase is not Phase.EXECUTING:
        told = "its worker is told within 2 s, and has no command that runs"
    return Because("canceling", f"It is being canceled: {told}.")


def _phase(seen: JobSeen, *, sure: bool) -> Because:
    record, now = seen.record, seen.now
    where = f"attempt {record.attempt} on machine {one_line(record.machine_id or 'not known')}"
    was = "" if sure else "When last heard of, "
    if record.phase is Phase.EXECUTING and seen.launched:
        text = f"its command runs, for {duration(now - seen.launched)} now ({where})"
    elif record.phase is Phase.UPLOADING:
        since = f", since {duration(now - seen.exited)}" if seen.exited else ""
        text = f"its command has exited, and its outputs go up{since} ({where})"
    else:
        since = f", since {duration(now - seen.attempt_started)}" if seen.attempt_started else ""
        text = f"its command has not started yet: inputs and checkpoint are brought down{since} ({where})"
    text = was + text
    return Because(str(record.phase or "running"), f"{text[0].upper()}{text[1:]}.")


def _said(seen: JobSeen) -> Iterator[Because]:
    record = seen.record
    if record.transfer is not None:
        yield Because("transfer", f"{_transfer(record.transfer)}.")
    if record.progress is not None and (record.progress.progress is not None or record.progress.message):
        number = record.progress.progress
        share = "" if number is None else (f"{number:.0%}".replace("%", " %") if 0 <= number <= 1 else f"{number:g}")
        words = ": ".join(filter(None, (share, quoted(record.progress.message or ""))))
        yield Because("progress", f"It last said of itself: {words}.")


def _transfer(transfer: Transfer) -> str:
    doing = _STAGES.get(transfer.stage, f"is at a transfer ({one_line(transfer.stage)})")
    of = f" of {size(transfer.total_bytes)}" if transfer.total_bytes else " so far; how much there is, is not known"
    text = f"It {doing}: {size(transfer.done_bytes)}{of}"
    if transfer.rate_bytes_s:
        text += f", at {size(transfer.rate_bytes_s)}/s"
    return text + (
        f", which takes {duration(transfer.left_s)} more if it goes on so" if transfer.left_s is not None else ""
    )


def _heartbeat(seen: JobSeen, *, told: bool) -> Iterator[Because]:
    if told:
        return
    if seen.record.heartbeat is None:
        yield Because("heartbeat", "When its worker was last heard of is not known.")
    else:
        yield Because("heartbeat", f"Its worker last told that {ago(seen.now, seen.record.heartbeat)}.")


def _checkpoints(seen: JobSeen) -> Iterator[Because]:
    record, now = seen.record, seen.now
    if record.committed is not None and record.committed_in == record.attempt:
        yield Because("checkpoint", f"Its last checkpoint was stored {ago(now, record.committed)}.")
    elif record.committed is not None:
        yield Because(
            "checkpoint",
            "This attempt has stored no checkpoint yet; the last one is from an earlier attempt, "
            f"{ago(now, record.committed)}.",
        )
    elif not has_checkpoints(record):
        yield Because(
            "no_checkpoints", "Its definition names no place for checkpoints: an interruption begins it anew."
        )
    else:
        yield Because(
            "checkpoint", "It has stored no checkpoint yet: an interruption would put it back to where it began."
        )


def _before(seen: JobSeen) -> Iterator[Because]:
    record = seen.record
    told = []
    if record.num_interruptions:
        told.append(f"{record.num_interruptions} interrupted")
    if record.num_failures:
        told.append(f"{record.num_failures} failed, of at most {record.max_failures} ({last_failure(record)})")
    if record.num_free:
        told.append(f"{record.num_free} failed without being counted")
    if told:
        yield Because("attempts", f"Attempts before this one: {'; '.join(told)}.")
