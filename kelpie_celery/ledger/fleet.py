"""The ledger's view of a group's workers and work: who is there, who is busy, who drains; and what the scaler decided.

Limits: a look costs a few commands a worker and one a running job, up to 5,000 and 10,000 of a group; it is made once
a tick of the scaler. A worker that was not heard of for ``machine_alive_s`` counts no more, unless the record of a
running job names it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from redis.lock import Lock

from kelpie_celery.ledger import keys
from kelpie_celery.ledger.calls import Calls, mapped_errors
from kelpie_celery.ledger.scripts import text
from kelpie_celery.ledger.types import compact
from kelpie_celery.scaling.facts import Memory, QueueFacts, WorkerFacts

DECISIONS_KEPT = 500


@dataclass(frozen=True)
class Drained:
    """What a call to ``drain`` changed: how many workers were chosen, and how many taken back."""

    chosen: int
    taken_back: int


@dataclass(frozen=True)
class Condemned:
    """What came of giving workers up, at ``at`` by the ledger's clock.

    Attributes:
        noted: Whether SaladCloud may be asked; else nothing has changed.
        marked: Workers that were given up.
        others: Workers that are there besides.
        running: Jobs with live leases.
        exposed: Busy workers that SaladCloud may take for drained ones, as it could not be told what they cost.
    """

    noted: bool
    marked: int
    others: int
    running: int
    at: float
    exposed: int = 0


@dataclass(frozen=True)
class FleetView:
    """The workers of a group.

    Attributes:
        facts: Those that SaladCloud was not asked to delete.
        condemned: Drained ones that SaladCloud was asked to delete, and that are still heard of.
    """

    facts: WorkerFacts
    condemned: int


@dataclass(frozen=True)
class WorkerEntry:
    """One worker's last sign of life, at ``heard_at`` by the ledger's clock."""

    id: str
    heard_at: float
    machine: str
    instance: str
    jobs: int


@dataclass(frozen=True)
class Leave:
    """The answer to who wants an instance moved: whether, and how many moves an hour were made and are allowed."""

    granted: bool
    used: int
    allowed: int


class Fleet(Calls):
    """Workers, drains, moves and decisions of container groups."""

    # -- work and workers -----------------------------------------------------------------------------------------

    def queue_facts(self, group: str) -> QueueFacts:
        """How much work a group has, in constant time."""
        now, pending, delayed, running, lapsed, oldest, due, ended, *by = map(
            text, self._call("queue", f"count the work of group {group}", group)
        )
        at_work = int(pending) + int(delayed) + int(running) + int(lapsed) > 0
        return QueueFacts(
            pending=int(pending), delayed=int(delayed), running=int(running), oldest_pending_s=float(oldest),
            next_delayed_s=max(0.0, float(due) - float(now)) if due else None,
            last_activity_s=0.0 if at_work else (max(0.0, float(now) - float(ended)) if ended else None),
            pending_by_priority={priority: int(count) for priority, count in enumerate(by) if int(count)},
            lapsed=int(lapsed),
        )  # fmt: skip

    def workers(self, group: str, *, settled: bool = False) -> FleetView:
        """The workers of a group.

        Args:
            group: The container group.
            settled: SaladCloud has as many instances as it was told to have: whoever was condemned when the count was
                lowered, and is still there after ``shrink_takes_s``, was spared. Otherwise, and after a stop, nobody
                is before ``stop_takes_s`` are over.
        """
        t = self.timings
        args = (group, t.machine_alive_s, t.stop_takes_s, t.shrink_takes_s if settled else t.stop_takes_s)
        row = [int(n) for n in self._call("fleet", f"count the workers of group {group}", *args)]
        workers, slots, busy, idle, at_work, unsettled, condemned, *withdrawn = row
        return FleetView(WorkerFacts(workers, slots, busy, idle, at_work, unsettled, *withdrawn), condemned)

    def drain(self, group: str, wanted: int) -> Drained:
        """Have so many workers drain in all: idle ones are chosen, or drains are taken back.

        A worker that claimed a moment before is not chosen; one that was chosen claims nothing, from this call on, for
        ``drain_holds_s``: each call renews what it leaves draining.
        """
        args = (group, wanted, self.timings.machine_alive_s, self.timings.drain_holds_s)
        return Drained(*(int(n) for n in self._call("drain", f"drain workers of group {group}", *args)))

    def condemn(self, group: str, most: int, by: Literal["shrink", "stop"], *, least: int = 0) -> Condemned:
        """Note that SaladCloud is about to be asked to delete up to so many drained workers.

        They are taken back only when they were spared, see ``workers``, or by ``pardon``. Before a stop, all claims of
        the group are refused besides, until ``reopen`` or for ``stop_takes_s``: a worker that comes up late would die
        with its job.

        Args:
            group: The container group.
            most: How many.
            by: A stop ends every instance: nothing is noted where there are workers that are not drained, or jobs run.
                A shrink leaves the choice to SaladCloud: nothing is noted while workers are exposed.
            least: Nothing is noted where there are fewer.
        """
        args = (group, most, self.timings.machine_alive_s, by, self.timings.stop_takes_s, least)
        noted, *counts, at, exposed = self._call("condemn", f"give up drained workers of group {group}", *args)
        marked, others, running = map(int, counts)
        return Condemned(text(noted) == "1", marked, others, running, float(text(at)), int(exposed))

    def pardon(self, group: str, condemned: Condemned) -> int:
        """SaladCloud refused: those that were given up for it are drained workers again; how many there are."""
        args = (group, self.timings.machine_alive_s, f"{condemned.at:.6f}")
        return int(self._call("pardon", f"take back workers of group {group}", *args))

    def reopen(self, group: str) -> None:
        """Let workers of a group claim again that was to be stopped."""
        self.note(group, "closed", "")

    def worker_entries(self, group: str, most: int = 5000) -> list[WorkerEntry]:
        """The workers that were heard of in the last hour, the latest first."""
        rows: Any
        with mapped_errors(f"list the workers of group {group}"):
            rows = self.redis.zrange(keys.workers(group), 0, most - 1, desc=True, withscores=True)
            with self.redis.pipeline(transaction=False) as pipe:
                for worker_id, _ in rows:
                    pipe.hmget(keys.worker(group, text(worker_id)), "machine", "instance", "jobs")
                found = pipe.execute()
        return [
            WorkerEntry(text(worker_id), float(at), text(machine or ""), text(instance or ""), int(jobs or 0))
            for (worker_id, at), (machine, instance, jobs) in zip(rows, found, strict=True)
        ]

    def failing_machines(self, group: str, at_least: int) -> dict[str, int]:
        """Machines by the number of jobs in a row that failed there and succeeded elsewhere."""
        rows: Any
        with mapped_errors(f"list the failing machines of group {group}"):
            rows = self.redis.zrangebyscore(keys.streaks(group), at_least, "+inf", withscores=True)
        return {text(machine): int(count) for machine, count in rows}

    # -- moves ----------------------------------------------------------------------------------------------------

    def ask_to_move(self, group: str, machine: str, instance: str, reason: str, *, by: str, size: int = 0) -> Leave:
        """Ask for leave to have an instance moved to another node: a tenth of the group an hour, at least one.

        Args:
            group: The container group.
            machine: The node to leave; its streak of failed jobs begins anew.
            instance: SaladCloud's id of the instance; empty when unknown.
            reason: For the history.
            by: ``worker`` or ``scaler``.
            size: The group's replicas where they are known; else its workers count.
        """
        entry = {"kind": "move", "by": by, "machine": machine, "instance": instance, "reasons": [reason]}
        args = (group, machine, instance, uuid.uuid4().hex[:8], size, compact(entry), self.timings.machine_alive_s,
                DECISIONS_KEPT)  # fmt: skip
        granted, used, allowed = self._call("move", f"grant a move in group {group}", *args)
        return Leave(text(granted) == "1", int(used), int(allowed))

    # -- decisions ------------------------------------------------------------------------------------------------

    def keep_decision(
        self, group: str, entry: Mapping[str, Any], *, same: str = "", memory: Memory | None = None
    ) -> int:
        """Keep what was decided; how often in a row it was the same.

        Args:
            group: The container group.
            entry: Plain values, at least one.
            same: A digest; with the one of the entry before, that one is counted up instead, and its facts renewed.
            memory: What the next decision must know.
        """
        remembered = compact(asdict(memory)) if memory else ""
        args = (group, compact(dict(entry)), same, DECISIONS_KEPT, remembered)
        return int(self._call("decided", f"keep a decision on group {group}", *args))

    def decisions(self, group: str, most: int = DECISIONS_KEPT) -> list[dict[str, Any]]:
        """The last decisions, the newest first; ``at`` and ``until_at`` are seconds since the epoch."""
        with mapped_errors(f"list the decisions on group {group}"):
            rows = self.redis.lrange(keys.decisions(group), 0, most - 1)
        found = [json.loads(text(row)) for row in rows]
        return [{**entry, "at": float(entry["at"]), "until_at": float(entry["until_at"])} for entry in found]

    def memory(self, group: str) -> Memory:
        """What the decision before left to remember."""
        with mapped_errors(f"read what is remembered of group {group}"):
            row = self.redis.hget(keys.scaler(group), "memory")
        stored = json.loads(text(row)) if row else {}
        known = {field.name for field in fields(Memory)}
        # What another version remembers is left out: it is learnt anew.
        return Memory(**{name: _frozen(value) for name, value in stored.items() if name in known})

    def noted(self, group: str, name: str) -> str:
        """A note of the scaler's about a group; empty when there is none."""
        with mapped_errors(f"read a note on group {group}"):
            return text(self.redis.hget(keys.scaler(group), name) or "")

    def note(self, group: str, name: str, value: str) -> None:
        """Make a note about a group; an empty one is removed."""
        with mapped_errors(f"keep a note on group {group}"):
            if value:
                self.redis.hset(keys.scaler(group), name, value)
            else:
                self.redis.hdel(keys.scaler(group), name)

    # -- turns ----------------------------------------------------------------------------------------------------

    def scaling_lock(self, group: str, expires_s: float) -> Lock:
        """The right to scale a group, which one process has at a time; it is not taken yet."""
        return Lock(self.redis, keys.scaling(group), timeout=expires_s, blocking=False, thread_local=False)

    def take_token(self, bucket: str, *, each_s: float, holds: int, most_s: float) -> float | None:
        """Take a token of a bucket that all processes share; how long to wait before it may be used.

        Args:
            bucket: Its name.
            each_s: One token comes in so often, seconds.
            holds: How many may be taken at once.
            most_s: The longest wait that is accepted, seconds; when it would be longer no token is taken.

        Returns:
            Seconds; None when it would be longer.
        """
        wait_s = float(text(self._call("token", "give a token", bucket, each_s, holds, most_s)))
        return None if wait_s < 0 else wait_s


def _frozen(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
