"""The discrete events of a simulation: arrivals, starts, ends, interruptions and looks of the policy, in virtual time.

A job is claimed the moment that a worker is free: by priority, then age, by the worker that waited longest. A node that
was told to end goes on for a while, and claims jobs unless it drains. A node that vanishes takes its jobs with it; they
are pending again when their leases are over, and lose what came after their last checkpoint.

Limits: one container group; workers are up with their container, and heard of at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any

from kelpie_scaler.simulation.backlog import Backlog
from kelpie_scaler.simulation.group import Group
from kelpie_scaler.simulation.nodes import Job, Node, State
from kelpie_scaler.simulation.outcome import Outcome, percentile
from kelpie_scaler.simulation.platform import Dice, Platform
from kelpie_scaler.simulation.policies import Policy, View
from kelpie_scaler.simulation.trace import Arrival

_BEGIN_S = 1_700_000_000.0
"""Epoch seconds of the first arrival: virtual time is a time like any other."""

_LINGER_S = 7200.0
"""How long a fleet is billed after the last job where its policy never lets it go."""

_PATIENCE_S = 30 * 86_400.0
_HOUR_S = 3600.0


def simulate(trace: Sequence[Arrival], policy: Policy, platform: Platform) -> Outcome:
    """Run a trace to its end.

    Args:
        trace: In the order of arrival; not empty.
        policy: Fresh: it keeps what it remembers.
        platform: How nodes behave.
    """
    return _Run(trace, policy, platform).run()


class _Run:
    """One simulation under way."""

    def __init__(self, trace: Sequence[Arrival], policy: Policy, platform: Platform) -> None:
        self._trace, self._policy = trace, policy
        self._dice = Dice(platform)
        self._backlog = Backlog(policy.window_s)
        self._group = Group(platform.slots, self._dice, self._schedule_up, self._schedule_gone)
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._now_s, self._number, self._arrived = _BEGIN_S, 0, 0
        self._offset_s = _BEGIN_S - trace[0].at_s
        work_s = sum(arrival.duration_s for arrival in trace)
        self._give_up_s = trace[-1].at_s + self._offset_s + 10 * work_s + _PATIENCE_S
        self._last_end_s = _BEGIN_S
        self._lost_s = 0.0
        self._quiet = True
        self._interrupted = self._ended_by_scaling = 0

    def run(self) -> Outcome:
        """The events in their order, until the jobs are done and the nodes gone."""
        self._at(_BEGIN_S, self._look)
        self._schedule_arrival()
        while self._events and self._now_s < self._give_up_s and not self._over:
            self._now_s, _, what, args = heappop(self._events)
            what(*args)
        self._group.bill_until(self._now_s)
        return self._outcome()

    @property
    def _over(self) -> bool:
        """Every job has ended, and there is no node left."""
        return self._arrived == len(self._trace) and not self._backlog.work and not self._group.nodes

    def _at(self, when_s: float, what: Callable[..., None], *args: Any) -> None:
        self._number += 1
        heappush(self._events, (when_s, self._number, what, args))

    # -- jobs ------------------------------------------------------------------------------------------------------

    def _schedule_arrival(self) -> None:
        if self._arrived < len(self._trace):
            self._at(self._trace[self._arrived].at_s + self._offset_s, self._arrive)

    def _arrive(self) -> None:
        arrival = self._trace[self._arrived]
        self._backlog.add(Job(self._arrived, arrival.duration_s, arrival.priority), self._now_s)
        self._arrived += 1
        self._schedule_arrival()
        self._hand_out()

    def _hand_out(self) -> None:
        while self._backlog.pending:
            node = self._group.take_free()
            if node is None:
                return
            job = self._backlog.claim(self._now_s)
            job.began_s = self._now_s
            self._group.occupy(node, job, self._now_s)
            self._at(self._now_s + job.left_s, self._complete, node, job, job.tries)

    def _complete(self, node: Node, job: Job, tries: int) -> None:
        if job.tries != tries or job.number not in node.jobs:
            return  # that attempt went down with its node
        self._group.release(node, job, self._now_s)
        self._backlog.ended(job, self._now_s)
        self._last_end_s = self._now_s
        self._group.free(node)
        self._hand_out()

    # -- nodes -----------------------------------------------------------------------------------------------------

    def _schedule_up(self, node: Node, when_s: float) -> None:
        self._at(when_s, self._up, node)

    def _schedule_gone(self, node: Node, when_s: float) -> None:
        self._at(when_s, self._gone, node)

    def _up(self, node: Node) -> None:
        if not self._group.up(node, self._now_s):
            return
        life_s = self._dice.life_s()
        if life_s is not None:
            self._at(self._now_s + life_s, self._vanish, node)
        self._hand_out()

    def _vanish(self, node: Node) -> None:
        if node.state is not State.GONE:
            self._interrupted += self._lose(node)

    def _gone(self, node: Node) -> None:
        if node.state is not State.GONE:
            self._ended_by_scaling += self._lose(node)

    def _lose(self, node: Node) -> int:
        jobs = self._group.remove(node, self._now_s)
        for job in jobs:
            computed_s = self._now_s - job.began_s
            lost_s = min(computed_s, self._dice.loss_s())
            job.left_s -= computed_s - lost_s
            self._lost_s += lost_s
            self._at(self._now_s + self._dice.lease_left_s(), self._return, job, self._now_s)
        return len(jobs)

    def _return(self, job: Job, died_s: float) -> None:
        self._backlog.returned(job, died_s)
        self._hand_out()

    # -- the policy ------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        self._decide()
        self._schedule_look(quiet=self._quiet)

    def _decide(self) -> None:
        group, now_s = self._group, self._now_s
        workers, fleet = group.facts(now_s)
        view = View(self._backlog.facts(now_s), workers, fleet, self._backlog.ended_lately(now_s))
        act = self._policy.act(view, now_s)
        group.drain(act.drain)
        if act.replicas is not None:
            group.set_replicas(act.replicas, now_s)
        if act.start:
            group.start(now_s)
        if act.stop:
            group.stop(now_s)
        self._hand_out()
        if act.again_s is not None:
            self._at(now_s + act.again_s, self._decide)
        self._quiet = view.ended_lately == 0

    def _schedule_look(self, *, quiet: bool) -> None:
        """The next one; none is needed where nothing can have changed before the next arrival."""
        next_s = self._now_s + self._policy.interval_s
        if not self._backlog.work and not self._group.nodes and self._group.stopped and quiet:
            if self._arrived == len(self._trace):
                return
            arrival_s = self._trace[self._arrived].at_s + self._offset_s
            skipped = max(0, math.ceil((arrival_s - next_s) / self._policy.interval_s))
            next_s += skipped * self._policy.interval_s
        done = self._arrived == len(self._trace) and not self._backlog.work
        if done and self._now_s > self._last_end_s + _LINGER_S:
            self._give_up_s = self._now_s
        self._at(next_s, self._look)

    # -- the end ---------------------------------------------------------------------------------------------------

    def _outcome(self) -> Outcome:
        waits_s, group = self._backlog.waits_s, self._group
        return Outcome(
            name=self._policy.name,
            jobs=len(waits_s),
            unfinished=len(self._trace) - len(waits_s),
            billed_h=group.billed_s / _HOUR_S,
            idle_h=(group.billed_s - group.busy_s) / _HOUR_S,
            lost_h=self._lost_s / _HOUR_S,
            wait_p50_s=percentile(waits_s, 0.5),
            wait_p95_s=percentile(waits_s, 0.95),
            interrupted=self._interrupted,
            ended_by_scaling=self._ended_by_scaling,
            starts=group.starts,
            changes=group.changes,
            took_s=self._now_s - _BEGIN_S,
        )
