"""Random histories of commits, rollbacks and deletions, with actors that freeze and a ledger that forgets.

``history(seed, rules)`` plays one, and tells what it broke. Limits: see ``commit_world``.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.models.commit_actors import Actor, Attempt, rollback
from tests.models.commit_world import LOSES, PREFIXES, Rules, Violation, World

STEPS = 320
IDLE = 0.15


@dataclass(frozen=True)
class Scenario:
    """What happens in a history, and how often: chances are for each step."""

    jobs: tuple[str, ...] = tuple(PREFIXES)
    loses: int = LOSES
    most_commits: int = 5
    crash: float = 0.02
    freeze: float = 0.03
    pause: float = 0.01
    roll_back: float = 0.015
    cancel: float = 0.002


@dataclass(frozen=True)
class Broken:
    """A history that broke a property."""

    seed: int
    what: str
    trace: list[str]

    def __str__(self) -> str:
        return f"history {self.seed}: {self.what}\n  " + "\n  ".join(self.trace[-25:])


class History:
    """One seeded history."""

    def __init__(self, seed: int, rules: Rules, scenario: Scenario) -> None:
        self.rng, self.scenario = random.Random(seed), scenario
        self.w = World(rules, self.rng, scenario.loses)
        self.actors: list[tuple[Actor, list[float]]] = []

    def spawn(self, actor: Actor) -> None:
        self.actors.append((actor, [1.0]))

    def play(self) -> None:
        for _ in range(STEPS):
            self.happen()
            self.freeze()
            # Nobody has a turn more often than a frozen one: it stays frozen also when it is alone.
            weights = [*(weight[0] for _, weight in self.actors), IDLE]
            [n] = self.rng.choices(range(len(weights)), weights)
            if n < len(self.actors):
                self.step(self.actors[n])
            else:
                self.w.now += 1
        while self.actors:  # whoever is frozen thaws at last
            self.step(self.actors[0])
        self.w.check_plain()

    def step(self, chosen: tuple[Actor, list[float]]) -> None:
        self.w.now += 1
        try:
            next(chosen[0])
        except StopIteration:
            self.actors.remove(chosen)
        if self.w.changed:
            self.w.changed = False
            self.w.check()

    def happen(self) -> None:
        """What comes from outside: claims, the reaper, users, power cuts; and sometimes nobody does anything."""
        s, rng = self.scenario, self.rng
        name = rng.choice(s.jobs)
        if rng.random() < 0.08:
            token = self.w.claim(name)
            if token:
                self.spawn(Attempt(self.w, token, self.spawn, s.most_commits).run())
        if rng.random() < 0.04:
            self.w.reap(name)
        if rng.random() < s.cancel:
            self.w.cancel(name)
        if rng.random() < s.roll_back:
            self.spawn(rollback(self.w, name))
        if rng.random() < s.crash and s.loses:
            self.w.crash()
        if rng.random() < s.pause:
            self.w.now += rng.randint(1, 12)

    def freeze(self) -> None:
        for _, weight in self.actors:
            if self.rng.random() < self.scenario.freeze:
                weight[0] = self.rng.choice([0.01, 1.0])


def history(seed: int, rules: Rules, scenario: Scenario) -> Broken | None:
    """One history; what it broke, or None."""
    one = History(seed, rules, scenario)
    try:
        one.play()
    except Violation as e:
        return Broken(seed, str(e), one.w.trace)
    return None
