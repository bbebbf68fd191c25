"""The ledger's view of the machines that a group's workers ran on: what each did, and which jobs it may not have.

Limits: pictures for people, nothing is decided by them; of machines that were heard of in the last week, the newest
first, at most 5,000. Bans are counted while their jobs are pending or running.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kelpie_celery.ledger import keys
from kelpie_celery.ledger.calls import Calls, mapped_errors
from kelpie_celery.ledger.scripts import text

MACHINES_MAX = 5000
UNBANNED_AT_ONCE = 500


@dataclass(frozen=True)
class MachineEntry:
    """One machine of a group.

    Attributes:
        machine: SaladCloud's id of the node, or the host's name.
        heard_at: When a worker there last gave a sign of life, seconds since the epoch by the ledger's clock.
        workers: Workers there that were heard of in the last ``machine_alive_s``.
        jobs: Attempts in their processes now.
        completed: Attempts that completed their job; this and what follows since the first within the last week.
        failures: Attempts that failed, also where a retry rule does not count that.
        interruptions: Attempts that were interrupted, silent deaths included.
        others: Attempts that ended otherwise: canceled, or to be run again.
        streak: Jobs in a row that failed there and succeeded elsewhere.
        bans: Jobs that it is not to have, since it failed them.
        received_bytes: Brought down by restores, in ``received_s`` seconds of them.
        sent_bytes: Sent up by commits and final uploads, in ``sent_s`` seconds of them.
    """

    machine: str
    heard_at: float
    workers: int
    jobs: int
    completed: int
    failures: int
    interruptions: int
    others: int
    streak: int
    bans: int
    received_bytes: int
    received_s: float
    sent_bytes: int
    sent_s: float

    @property
    def received_bytes_s(self) -> float | None:
        """Mean rate of its restores; None where nothing was restored."""
        return _rate(self.received_bytes, self.received_s)

    @property
    def sent_bytes_s(self) -> float | None:
        """Mean rate of its uploads; None where nothing was sent."""
        return _rate(self.sent_bytes, self.sent_s)


_COUNTS = ("completed", "failure", "free", "interruption", "canceled", "continue", "received_bytes", "received_s",
           "sent_bytes", "sent_s")  # fmt: skip


class Machines(Calls):
    """Machines of container groups."""

    def machines(self, group: str, most: int = MACHINES_MAX) -> list[MachineEntry]:
        """The machines that were heard of in the last week, the latest first."""
        rows: Any
        now = self.server_time()
        with mapped_errors(f"list the machines of group {group}"):
            rows = self.redis.zrange(keys.machines(group), 0, most - 1, desc=True, withscores=True)
            with self.redis.pipeline(transaction=False) as pipe:
                for name, _ in rows:
                    machine = text(name)
                    pipe.hmget(keys.machine(group, machine), *_COUNTS)
                    pipe.zscore(keys.streaks(group), machine)
                    pipe.zcount(keys.bans(group, machine), now, "+inf")
                found = iter(pipe.execute())
        at_work = self._at_work(group, now - self.timings.machine_alive_s)
        return [
            _entry(text(name), float(at), next(found), next(found), next(found), at_work.get(text(name), (0, 0)))
            for name, at in rows
        ]

    def _at_work(self, group: str, since: float) -> dict[str, tuple[int, int]]:
        """By machine: workers that were heard of since then, and attempts in their processes."""
        rows: Any
        with mapped_errors(f"list the workers of group {group}"):
            rows = self.redis.zrangebyscore(keys.workers(group), since, "+inf", start=0, num=MACHINES_MAX)
            with self.redis.pipeline(transaction=False) as pipe:
                for worker in rows:
                    pipe.hmget(keys.worker(group, text(worker)), "machine", "jobs")
                found = pipe.execute()
        at_work: dict[str, tuple[int, int]] = {}
        for machine, jobs in found:
            workers, running = at_work.get(text(machine or ""), (0, 0))
            at_work[text(machine or "")] = (workers + 1, running + int(jobs or 0))
        return at_work

    def unban(self, group: str, machine: str, job_id: str = "") -> int:
        """Let a machine have jobs again that failed on it; how many bans were lifted.

        Args:
            group: The container group.
            machine: The machine; without a job its streak of failed jobs begins anew as well.
            job_id: One job; empty for all.
        """
        lifted, left = 0, 1
        while left:
            args = (group, machine, job_id, UNBANNED_AT_ONCE)
            now, left = (int(n) for n in self._call("unban", f"lift bans of machine {machine}", *args))
            lifted += now
            if job_id:
                break
        return lifted


def _rate(count_bytes: int, seconds: float) -> float | None:
    return count_bytes / seconds if count_bytes > 0 and seconds > 0 else None


def _entry(
    machine: str, heard_at: float, counts: list[Any], streak: Any, bans: Any, at_work: tuple[int, int]
) -> MachineEntry:
    by = {name: float(text(value or 0)) for name, value in zip(_COUNTS, counts, strict=True)}
    # An interruption that was counted before its hash expired may be taken back after it.
    whole = {name: max(0, round(value)) for name, value in by.items()}
    return MachineEntry(
        machine=machine, heard_at=heard_at, workers=at_work[0], jobs=at_work[1], completed=whole["completed"],
        failures=whole["failure"] + whole["free"], interruptions=whole["interruption"],
        others=whole["canceled"] + whole["continue"], streak=int(float(streak or 0)), bans=int(bans),
        received_bytes=whole["received_bytes"], received_s=by["received_s"], sent_bytes=whole["sent_bytes"],
        sent_s=by["sent_s"],
    )  # fmt: skip
