"""Kills whatever a job depends on, by the dice: its worker, its command, Redis, the storage."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import pytest

from kelpie_celery.ledger.records import JobRecord
from kelpie_celery.lifecycle import Phase
from tests.harness.looking import processes_of
from tests.harness.stack import Stack

# What makes an attempt's end cheap: no ban, no growing pause, and no poison, as it is we who kill.
PATIENT = {
    "KELPIE_BAN_TTL_S": "0.1",
    "KELPIE_RETRY_MAX_S": "0.4",
    "KELPIE_POISON_DEATHS": "1000",
    "KELPIE_PLAIN_INTERVAL_S": "5",
}


_EARLY = 0.1
"""How many of the kills may meet a job that has not made a commit in this attempt."""


def has_committed(record: JobRecord) -> bool:
    """Whether the attempt that runs has made a commit."""
    return record.commit is not None and int(record.commit["id"].split("-")[1]) == record.attempt


class Storm:
    """Makes a number of kills, each at a random moment.

    Args:
        stack: With a Redis of its own.
        kills: How many of each kind: ``worker``, ``command``, ``sigterm``, ``redis``, ``s3``.
        seed: Of the dice.
        gap_s: Between two kills, from and to.
    """

    def __init__(self, stack: Stack, kills: Mapping[str, int], seed: int, gap_s: tuple[float, float]) -> None:
        self._stack, self._gap_s = stack, gap_s
        self._dice = random.Random(seed)
        self._left = [kind for kind, count in kills.items() for _ in range(count)]
        self._dice.shuffle(self._left)
        self._next_s, self._early = time.monotonic() + self._gap(), False
        self.made: Counter[str] = Counter()

    def _gap(self) -> float:
        return self._dice.uniform(*self._gap_s)

    @property
    def over(self) -> bool:
        return not self._left

    def act(self, job_ids: Sequence[str]) -> None:
        """Start what has died again, and kill something if it is time and a job's command runs."""
        self.mend()
        if self.over or time.monotonic() < self._next_s:
            return
        running = [record for record in map(self._stack.get, job_ids) if record.phase is Phase.EXECUTING]
        victims = [record for record in running if self._worker_runs(record)]
        if not self._early:
            # Mostly what has something to lose; but a death before the first commit must do no harm either.
            victims = [record for record in victims if has_committed(record)]
        if not victims:
            return
        kind = self._left.pop()
        if not self.strike(kind, self._dice.choice(victims)):
            self._left.insert(0, kind)
        self._next_s, self._early = time.monotonic() + self._gap(), self._dice.random() < _EARLY

    def strike(self, kind: str, record: JobRecord) -> bool:
        """Make one kill, of a job or of what all depend on; whether there was something to kill."""
        kill: Callable[[JobRecord], bool] = getattr(self, f"_kill_{kind}")
        struck = kill(record)
        self.made[kind] += struck
        return struck

    def mend(self) -> None:
        """Start every worker that has died; nobody waits for it."""
        for number in list(self._stack.local.machines):
            if number not in self._stack.local.workers:
                self._stack.local.start_worker(number)

    def _number(self, record: JobRecord) -> int:
        machines = self._stack.local.machines.values()
        return next(machine.number for machine in machines if machine.machine_id == record.machine_id)

    def _worker_runs(self, record: JobRecord) -> bool:
        return self._number(record) in self._stack.local.workers

    def _kill_worker(self, record: JobRecord) -> bool:
        self._stack.kill_worker(self._number(record))
        return True

    def _kill_sigterm(self, record: JobRecord) -> bool:
        self._stack.kill_worker(self._number(record), signal.SIGTERM)
        return True

    def _kill_command(self, record: JobRecord) -> bool:
        killed = 0
        for process in processes_of(record.id):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
        return killed > 0

    def _kill_redis(self, _: JobRecord) -> bool:
        server = self._stack.local.redis
        assert server is not None
        server.kill()
        server.start()
        return True

    def _kill_s3(self, _: JobRecord) -> bool:
        server = self._stack.local.s3
        assert server is not None
        server.kill()
        server.start()
        return True


def strike_after_each_commit(
    stack: Stack, job_id: str, kinds: Sequence[str], seed: int, look: Callable[[], object] = lambda: None
) -> None:
    """Kill a job as often as there are kinds, each time a moment after its attempt has made a commit.

    Args:
        stack: Where it runs.
        job_id: The job; it must not end meanwhile.
        kinds: What to kill, in this order; see `Storm`.
        seed: Of the dice.
        look: Called all the time.
    """
    dice, storm = random.Random(seed), Storm(stack, {}, seed, (0, 0))

    def committed() -> JobRecord | None:
        look()
        storm.mend()
        record = stack.get(job_id)
        if record.status.ended:
            pytest.fail(f"{job_id} ended too soon\n{stack.dump()}")
        return record if has_committed(record) and record.phase is Phase.EXECUTING else None

    for kind in kinds:
        record = stack.wait("the attempt commits", committed, timeout_s=60)
        time.sleep(dice.uniform(0, 1))
        assert storm.strike(kind, record), f"{job_id} ended too soon, or has no process\n{stack.dump()}"
        stack.wait("the next attempt", lambda n=record.attempt: stack.get(job_id).attempt > n)  # type: ignore[misc]
    storm.mend()
