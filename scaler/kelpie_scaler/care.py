"""Node care: an instance that is paid for and does not work is moved to another node.

Two signs: it is ``running`` for ``KELPIE_NODE_SILENT_S`` and its worker says nothing; or its machine failed
``MAX_JOB_FAILURES`` jobs in a row that succeeded elsewhere, and runs none now. A silence is believed when it is seen
twice, a look apart. Moves keep to the organization's limit a minute, and to the budget of a tenth of a group an hour
that they share with the workers' own; each is in the group's history with its reason.

Limits: instances are asked for only where the counts say that something is amiss; SaladCloud lists 1000 of a group. An
instance is known by its id, or else by its machine.
"""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import dataclass

from kelpie_celery.clock import Clock
from kelpie_celery.errors import SaladError
from kelpie_celery.ledger.fleet import WorkerEntry
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.settings import Settings
from kelpie_scaler.history import trouble
from kelpie_scaler.salad import Group, Instance, Place, SaladClient

log = logging.getLogger(__name__)

QUOTAS_FOR_S = 600.0
"""An organization's quotas are asked for so seldom, seconds."""


@dataclass(frozen=True)
class _Ill:
    instance: Instance
    reason: str


class NodeCare:
    """Looks after the instances of all groups; any thread may call it, one a group at a time."""

    def __init__(self, ledger: Ledger, settings: Settings, clock: Clock) -> None:
        self._ledger, self._settings, self._clock = ledger, settings, clock
        self._lock = threading.Lock()
        self._limits: dict[str, tuple[float, int]] = {}

    def look(self, group_id: str, place: Place, group: Group, client: SaladClient) -> int:
        """Look at one group; how many instances are being moved.

        Raises:
            SaladError: SaladCloud did not tell; what it did not do is in the history instead.
            LedgerUnavailable: Redis is away.
        """
        if group.asleep or group.facts.pending_change:
            return 0
        entries = self._ledger.worker_entries(group_id)
        now = self._ledger.server_time()
        heard = [one for one in entries if now - one.heard_at < self._settings.node_silent_s]
        failing = self._ledger.failing_machines(group_id, self._settings.max_job_failures)
        suspects = self._suspects(group_id)
        if group.facts.running <= len(heard) and not failing:
            if suspects:
                self._ledger.note(group_id, "suspects", "")
            return 0
        running = [one for one in client.instances(place) if one.state == "running"]
        ill = self._failing(running, failing, heard) + self._silent(group_id, running, heard, suspects, now)
        moved = [one.instance.id for one in ill if self._move(group_id, place, group, client, one)]
        if moved:
            # It may be listed for a while yet: from now on its silence must be seen anew.
            left = {known: at for known, at in self._suspects(group_id).items() if known not in moved}
            self._ledger.note(group_id, "suspects", json.dumps(left) if left else "")
        return len(moved)

    def _failing(self, running: list[Instance], failing: dict[str, int], heard: list[WorkerEntry]) -> list[_Ill]:
        at_work = {one.machine for one in heard if one.jobs}
        return [
            _Ill(one, f"{failing[one.machine_id]} jobs in a row failed on this machine and succeeded on others")
            for one in running
            # One that works finishes first; its worker takes no more, and asks for the move itself.
            if one.machine_id in failing and one.machine_id not in at_work
        ]

    def _silent(
        self, group_id: str, running: list[Instance], heard: list[WorkerEntry], suspects: dict[str, float], now: float
    ) -> list[_Ill]:
        silent_s = self._settings.node_silent_s
        if self._ledger.uptime_s() < silent_s:
            # Nobody could have been heard of for so long.
            return []
        known = {one.instance for one in heard} | {one.machine for one in heard}
        silent = [
            one for one in running
            if now - one.since >= silent_s and one.id not in known and one.machine_id not in known
        ]  # fmt: skip
        since = {one.id: suspects.get(one.id, now) for one in silent}
        self._ledger.note(group_id, "suspects", json.dumps(since) if since else "")
        reason = f"the instance runs, and its worker was not heard of for {silent_s:g} s"
        return [_Ill(one, reason) for one in silent if one.id in suspects]

    def _suspects(self, group_id: str) -> dict[str, float]:
        noted = self._ledger.noted(group_id, "suspects")
        found: dict[str, float] = json.loads(noted) if noted else {}
        return found

    # -- moving ---------------------------------------------------------------------------------------------------

    def _move(self, group_id: str, place: Place, group: Group, client: SaladClient, ill: _Ill) -> bool:
        one = ill.instance
        fields = {"container_group": group_id, "instance_id": one.id, "machine_id": one.machine_id, "why": ill.reason}
        if not self._minute_allows(place.organization, client):
            log.info("moves wait: the organization's limit a minute", extra={"action": "move_waits", **fields})
            return False
        leave = self._ledger.ask_to_move(
            group_id, one.machine_id, one.id, ill.reason, by="scaler", size=group.facts.replicas
        )
        if not leave.granted:
            log.info("moves wait: a tenth of the group an hour", extra={"action": "move_waits", **fields})
            return False
        log.warning("an instance is moved to another node", extra={"action": "reallocate", **fields})
        try:
            client.reallocate(place, one.id)
        except SaladError as e:
            entry, same = trouble(f"instance {one.id} was not moved: {e}")
            self._ledger.keep_decision(group_id, entry, same=same)
            return False
        return True

    def _minute_allows(self, organization: str, client: SaladClient) -> bool:
        limit = self._limit(organization, client)
        if limit < 1:
            return False
        # So many at once; with what comes in afterwards no minute has more than the limit.
        burst = max(1, limit // 2)
        each_s = 60.0 / (limit - burst) if limit > burst else 60.0
        return self._ledger.take_token(f"moves:{organization}", each_s=each_s, holds=burst, most_s=0.0) is not None

    def _limit(self, organization: str, client: SaladClient) -> int:
        now = self._clock.boottime()
        with self._lock:
            asked_at, limit = self._limits.get(organization, (-QUOTAS_FOR_S, 0))
        if now - asked_at >= QUOTAS_FOR_S:
            limit = client.quotas(organization).reallocations_per_minute
            with self._lock:
                self._limits[organization] = (now, limit)
        return limit
