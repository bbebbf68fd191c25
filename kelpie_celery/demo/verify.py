"""What must hold at the end of the demo; each function answers with what does not.

Limits: pure functions of records and bytes.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Mapping, Sequence

from kelpie_celery.demo.chaos import Struck
from kelpie_celery.demo.cloud import Ended
from kelpie_celery.demo.plan import Strike
from kelpie_celery.ledger.records import JobRecord
from kelpie_celery.ledger.types import GroupCounts
from kelpie_celery.lifecycle import Outcome, Reason, Status

REASONS = {signal.SIGKILL: Reason.LEASE_EXPIRED, signal.SIGTERM: Reason.WORKER_SHUTDOWN}
"""How the ledger tells of an attempt whose worker got this signal."""


def of_jobs(records: Mapping[str, JobRecord]) -> list[str]:
    """Every job completed, once, without a failure."""
    problems = []
    for name, record in records.items():
        if record.status is not Status.COMPLETED:
            problems.append(f"{name} is {record.status}: {record.reason or ''} {record.message or ''}".rstrip())
            continue
        done = sum(attempt.outcome == Outcome.COMPLETED for attempt in record.attempts)
        if (record.completions, done) != (1, 1):
            problems.append(f"{name} was completed {record.completions} times, by {done} attempts")
        if record.num_failures:
            failed = [attempt for attempt in record.attempts if attempt.outcome == Outcome.FAILURE]
            told = "; ".join(f"attempt {a.n} on {a.machine}: {a.reason}: {a.message}" for a in failed)
            problems.append(f"{name} counts {record.num_failures} failures: {told}")
    return problems


def of_group(counts: GroupCounts, jobs: int) -> list[str]:
    """Nothing was run beside the plan: a chord that called its body twice would show here."""
    expected = GroupCounts(completed=jobs)
    return [] if counts == expected else [f"the container group counts {counts}, and not {expected}"]


def of_strikes(made: Sequence[Struck], planned: Sequence[Strike], records: Mapping[str, JobRecord]) -> list[str]:
    """Machines were killed by each of the planned signals, and the ledger tells of each kill.

    Not necessarily as many as planned: on a machine that is busy, and then is not, jobs may end before their turn.
    """
    problems = []
    hits = Counter(struck.strike.signum for struck in made)
    wanted = Counter(strike.signum for strike in planned if strike.required)
    for signum, number in wanted.items():
        if not hits[signum]:
            problems.append(f"none of {number} planned {signum.name} was made")
    for struck in made:
        reason = next((a.reason for a in records[struck.job].attempts if a.n == struck.attempt), None)
        if reason != REASONS[struck.strike.signum]:
            attempt = f"attempt {struck.attempt} of {struck.job}"
            problems.append(f"{struck.strike.signum.name} during {attempt}, which ended with {reason!r}")
    return problems


def of_outputs(name: str, stored: Mapping[str, bytes], reference: Mapping[str, bytes]) -> list[str]:
    """The storage holds the files of the uninterrupted run, bit for bit, and no others."""
    problems = [f"{name}: {path} is missing on the storage" for path in sorted(reference.keys() - stored.keys())]
    problems += [f"{name}: {path} is on the storage, but not expected" for path in sorted(stored.keys() - reference)]
    for path in sorted(stored.keys() & reference.keys()):
        if stored[path] != reference[path]:
            problems.append(f"{name}: {path} differs from that of the uninterrupted run")
    return problems


def of_cloud(ended: Ended) -> list[str]:
    """The second act: every job once, the group started and stopped, and nothing left of it."""
    problems = of_jobs({record.name: record for record in ended.records})
    for wanted in ("start", "drain", "stop"):
        if wanted not in ended.deeds:
            problems.append(f"the scaler did {', '.join(ended.deeds) or 'nothing'}, and no {wanted}")
    if ended.group.status != "stopped" or ended.group.instances:
        problems.append(
            f"the container group is {ended.group.status}, with {len(ended.group.instances)} instances left"
        )
    if not ended.group.interruptions:
        problems.append("no node vanished, though one should every few seconds")
    return problems
