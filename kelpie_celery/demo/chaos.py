"""Interrupts jobs by plan: waits until a victim has something to lose, signals its worker, and starts a new machine.

Limits: decides from records that are a moment old, so a strike may come too late; it is made again, on another job.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kelpie_celery.clock import Clock
from kelpie_celery.demo.plan import Strike
from kelpie_celery.ledger.records import AttemptRecord, JobRecord
from kelpie_celery.lifecycle import Outcome, Phase, Status
from kelpie_celery.local.errors import LocalStackError
from kelpie_celery.local.stack import LocalStack

LATEST = 0.75
"""A job that is further than this may be done before the signal arrives."""

LEAST_GAP_S = 2.5
"""Between two strikes; a new machine needs about as long to come up."""


@dataclass(frozen=True)
class Struck:
    """A strike that was made."""

    strike: Strike
    job: str
    attempt: int
    machine: str


class Chaos:
    """Makes the strikes, in their order as far as it can be."""

    def __init__(self, strikes: Sequence[Strike], stack: LocalStack, clock: Clock) -> None:
        self._left = list(strikes)
        self._stack, self._clock = stack, clock
        self._last = clock.boottime()
        self._signalled: set[int] = set()
        self.made: list[Struck] = []

    def act(self, records: Mapping[str, JobRecord]) -> Struck | None:
        """Make one strike if it is time.

        Args:
            records: The jobs by name, a moment old.

        Returns:
            The strike that was made, if one was.
        """
        if not self._left or self._clock.boottime() - self._last < LEAST_GAP_S:
            return None
        strike, victim = choose(self._left, records)
        worker = self._worker_of(records[victim].machine_id) if victim else None
        if strike is None or worker is None:
            return None
        self._left.remove(strike)
        return self._strike(strike, records[victim], victim, worker)

    def _worker_of(self, machine: str | None) -> int | None:
        running = self._stack.workers
        return next((n for n, m in self._stack.machines.items() if m.machine_id == machine and n in running), None)

    def _strike(self, strike: Strike, record: JobRecord, victim: str, worker: int) -> Struck:
        self._signalled.add(worker)
        self._stack.kill_worker(worker, strike.signum)
        # The platform puts another machine in its place, without asking what became of the first.
        number = max(self._stack.machines) + 1
        self._stack.start_worker(number, machine_id=f"machine-{number}")
        self._last = self._clock.boottime()
        struck = Struck(strike, victim, record.attempt, self._stack.machines[worker].machine_id)
        self.made.append(struck)
        return struck

    def repeat_misses(self, records: Mapping[str, JobRecord]) -> None:
        """Plan again what had no effect: the job was done, or had gone on, before the signal arrived."""
        for struck in list(self.made):
            if missed(struck, records[struck.job].attempts):
                self.made.remove(struck)
                self._left.append(struck.strike)

    def check_machines(self) -> None:
        """See that no worker ended that was not told to.

        Raises:
            LocalStackError: One did; the message holds the end of its log.
        """
        for number in self._stack.machines:
            process = self._stack.worker(number)
            if number not in self._signalled and not process.running:
                log = "\n  ".join(process.tail(15))
                raise LocalStackError(f"{process.name} ended by itself ({process.ending}):\n  {log}")


def choose(strikes: Sequence[Strike], records: Mapping[str, JobRecord]) -> tuple[Strike | None, str]:
    """The strike to make now and its victim: the first whose victim is ripe, else one that lost its own victim."""
    for strike in strikes:
        if ripe(records[strike.victim]):
            return strike, strike.victim
    others = sorted((r.num_interruptions, name) for name, r in records.items() if ripe(r))
    orphans = [strike for strike in strikes if too_late(records[strike.victim])]
    return (orphans[0], others[0][1]) if orphans and others else (None, "")


def ripe(record: JobRecord) -> bool:
    """Whether a job runs, has made a commit, and is not about to end."""
    executing = record.status is Status.RUNNING and record.phase is Phase.EXECUTING
    progress = record.progress.progress if record.progress else None
    return executing and record.num_commits > 0 and progress is not None and progress <= LATEST


def too_late(record: JobRecord) -> bool:
    """Whether a job will not be ripe any more unless something else interrupts it."""
    progress = record.progress.progress if record.progress else None
    return record.status.ended or (record.status is Status.RUNNING and (progress or 0.0) > LATEST)


def missed(struck: Struck, attempts: Sequence[AttemptRecord]) -> bool:
    """Whether the attempt that was struck ended otherwise than by the strike."""
    outcomes = [a.outcome for a in attempts if a.n == struck.attempt]
    return bool(outcomes) and outcomes[0] not in (None, Outcome.INTERRUPTION)


def by_signal(made: Sequence[Struck]) -> dict[str, int]:
    """How many strikes were made with each signal, by its name."""
    return dict(Counter(signal.Signals(struck.strike.signum).name for struck in made))
