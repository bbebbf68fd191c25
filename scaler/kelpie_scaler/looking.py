"""One look at one container group: see, decide, act, keep.

Whatever is changed is changed in an order that is safe to die in. A scale-in: the drained workers are given up in the
ledger first (none of them claims again), and only then is SaladCloud asked to remove as many. A start: the count first,
or the old one starts. A 400 means that the group is not as it was seen: it is looked at again, once. Of a stop that
nobody answered, the next look tells whether it was carried out.

Limits: the caller holds the group's turn.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from kelpie_celery.errors import SaladDenied, SaladNotFound, SaladRefused
from kelpie_celery.ledger.fleet import Condemned, Fleet, FleetView
from kelpie_celery.scaling.facts import FleetFacts, GroupStatus, Memory, QueueFacts, WorkerFacts
from kelpie_celery.scaling.rule import ScalingRule
from kelpie_scaler.decision import Action, Decision
from kelpie_scaler.history import decided
from kelpie_scaler.salad import Group, Place, SaladClient

log = logging.getLogger(__name__)

UNSURE = "unsure"
"""A note: a stop was sent at this time, and nothing is known of it yet."""

Decide = Callable[[QueueFacts, WorkerFacts, FleetFacts, ScalingRule, Memory, float], Decision]


@dataclass(frozen=True)
class Seen:
    """What one look saw."""

    group: Group
    queue: QueueFacts
    view: FleetView


class Look:
    """Use it once.

    Attributes:
        drained: Workers were told to drain: soon there will be something to lower.
    """

    def __init__(
        self, ledger: Fleet, rule: ScalingRule, place: Place, client: SaladClient, decide: Decide, now_s: float
    ) -> None:
        self._ledger, self._rule, self._place, self._client = ledger, rule, place, client
        self._decide, self._now_s = decide, now_s
        self._id = rule.container_group_id
        self._notes: list[str] = []
        self._done = True
        self._condemned: Condemned | None = None
        self.drained = False

    def run(self) -> Group:
        """See, decide, act, keep; the group as it was seen last.

        Raises:
            SaladError: SaladCloud did not answer as it should; what it refused for good is in the history instead.
            LedgerUnavailable: Redis is away.
        """
        seen, memory = self._see(), self._ledger.memory(self._id)
        decision = self._decided(seen, memory)
        try:
            self._act(decision, seen)
        except SaladRefused as e:
            seen, decision = self._reconciled(e, decision, memory)
        except SaladDenied as e:
            self._denied(decision, e)
        self.drained = decision.action is Action.DRAIN
        # What was not done must not start a cooldown.
        self._keep(decision, seen, decision.memory if self._done else memory)
        return seen.group

    def _see(self) -> Seen:
        return self._seen(self._group())

    def _group(self) -> Group:
        group = self._client.group(self._place)
        if _is_uuid(self._id) and group.id.lower() != self._id.lower():
            raise SaladNotFound(
                f"the container group {self._place.group!r} is another one by now: its id is {group.id}, and that of "
                f"the rule is {self._id}",
                status=404,
            )
        self._warn_of_others(group)
        return group

    def _seen(self, group: Group) -> Seen:
        self._clear_up(group)
        view = self._ledger.workers(self._id, settled=group.settled and not group.asleep)
        return Seen(group, self._ledger.queue_facts(self._id), view)

    def _clear_up(self, group: Group) -> None:
        """See whether a stop was carried out that nobody answered: a group that was told to stop says so at once."""
        since = self._ledger.noted(self._id, UNSURE)
        if since and not group.facts.stopping:
            if not group.asleep:
                self._ledger.pardon(self._id, Condemned(True, 0, 0, 0, float(since)))
            self._ledger.note(self._id, UNSURE, "")

    def _warn_of_others(self, group: Group) -> None:
        others = " and ".join(group.facts.autoscaled_by)
        if others and self._ledger.noted(self._id, "autoscaled") != others:
            log.warning(
                "something else scales this container group too; switch it off, or delete kelpie's rule",
                extra={"action": "scaled_by_others", "container_group": self._id, "by": others},
            )
        if others != self._ledger.noted(self._id, "autoscaled"):
            self._ledger.note(self._id, "autoscaled", others)

    def _decided(self, seen: Seen, memory: Memory) -> Decision:
        return self._decide(seen.queue, seen.view.facts, seen.group.facts, self._rule, memory, self._now_s)

    # -- acting ---------------------------------------------------------------------------------------------------

    def _act(self, decision: Decision, seen: Seen) -> None:
        # What follows changes the ledger before anything is sent.
        self._client.check()
        facts = seen.group.facts
        if decision.action is Action.STOP:
            self._stop()
            return
        if not seen.group.asleep or decision.action is Action.START:
            self._ledger.reopen(self._id)
        if decision.action is Action.SET_REPLICAS and decision.replicas < facts.replicas:
            self._shrink(decision, seen)
            return
        self._ledger.drain(self._id, decision.drain)
        if decision.action in (Action.SET_REPLICAS, Action.START):
            self._client.set_replicas(self._place, seen.group, decision.replicas)
        if decision.action is Action.START:
            self._client.start(self._place)

    def _shrink(self, decision: Decision, seen: Seen) -> None:
        facts, view, removed = seen.group.facts, seen.view, seen.group.facts.replicas - decision.replicas
        up = facts.allocating + facts.creating + facts.running
        # A silent one that runs may cost more than one that works.
        silent = 0 if view.facts.busy else max(0, facts.running - view.facts.workers - view.condemned)
        without_worker = facts.allocating + facts.creating + silent
        least = up - decision.replicas - view.condemned - without_worker
        self._condemned = self._ledger.condemn(self._id, removed, "shrink", least=least)
        if not self._condemned.noted:
            self._leave(_why_not_lowered(self._condemned, least))
            return
        # Of those that should drain, the removed ones have gone, or were never there.
        self._ledger.drain(self._id, max(0, decision.drain - removed))
        self._client.set_replicas(self._place, seen.group, decision.replicas)

    def _stop(self) -> None:
        self._condemned = found = self._ledger.condemn(self._id, 5000, "stop")
        if not found.noted:
            # A worker came up, or claimed, since the look.
            self._leave(f"not stopped: workers not drained: {found.others}, jobs running: {found.running}")
            return
        # Kept before it is sent: this process may end here.
        self._ledger.note(self._id, UNSURE, f"{found.at:.6f}")
        self._client.stop(self._place)
        self._ledger.note(self._id, UNSURE, "")

    def _leave(self, why: str) -> None:
        self._condemned, self._done = None, False
        self._notes.append(why)

    def _refused(self) -> None:
        """What SaladCloud refused has not been done: whoever was given up for it is needed again, perhaps."""
        if self._condemned is not None:
            self._ledger.pardon(self._id, self._condemned)
            self._condemned = None

    def _reconciled(self, refused: SaladRefused, before: Decision, memory: Memory) -> tuple[Seen, Decision]:
        said = f"SaladCloud refused to {_words(before)} ({refused.detail or 'no reason given'})"
        group = self._group()
        self._notes.append(f"{said}; looked again: it is {group.facts.status.value}")
        if before.action is Action.STOP and group.facts.status is GroupStatus.STOPPED:
            # It was carried out, and the answer was lost: whoever was given up for it is going.
            return self._seen(group), before
        self._refused()
        seen = self._seen(group)
        decision = self._decided(seen, memory)
        if (decision.action, decision.replicas) == (before.action, before.replicas):
            # The same once more would be refused once more; the next look is a minute away.
            self._done = False
            return seen, before
        try:
            self._act(decision, seen)
        except (SaladRefused, SaladDenied) as e:
            self._denied(decision, e)
        return seen, decision

    def _denied(self, decision: Decision, error: SaladDenied | SaladRefused) -> None:
        self._refused()
        self._done = False
        detail = error.detail or f"status {error.status}"
        self._notes.append(f"SaladCloud refused to {_words(decision)}: {detail}")
        log.warning(
            "SaladCloud refused a change; check the key's rights and the organization's quotas",
            extra={"action": "scale_refused", "container_group": self._id, "wanted": decision.action.value,
                   "replicas": decision.replicas, "status": error.status, "why": detail},
        )  # fmt: skip

    # -- keeping --------------------------------------------------------------------------------------------------

    def _keep(self, decision: Decision, seen: Seen, memory: Memory) -> None:
        others = seen.group.facts.autoscaled_by
        notes = [*self._notes, *(f"{other} is active as well, and works against this" for other in others)]
        entry, same = decided(decision, seen.queue, seen.view, seen.group.facts, tuple(notes))
        times = self._ledger.keep_decision(self._id, entry, same=same, memory=memory)
        if times > 1:
            return
        log.info(
            "scaling decided",
            extra={"action": "scale_decided", "container_group": self._id, "decision": decision.action.value,
                   "replicas": decision.replicas, "drain": decision.drain, "why": "; ".join(entry["reasons"])},
        )  # fmt: skip


def _why_not_lowered(found: Condemned, least: int) -> str:
    if found.exposed:
        return f"not lowered: SaladCloud could not be told that workers have jobs ({found.exposed}), and might end one"
    return f"not lowered: {least} workers would have to go, and not as many are drained"


def _words(decision: Decision) -> str:
    if decision.action in (Action.START, Action.STOP):
        return decision.action.value
    return f"have {decision.replicas} replicas"


def _is_uuid(text: str) -> bool:
    parts = text.split("-")
    return [len(part) for part in parts] == [8, 4, 4, 4, 12] and all(c in "0123456789abcdefABCDEF-" for c in text)
