"""Histories that chance finds too seldom, told step by step: each rule once kept, and once not."""

from __future__ import annotations

import random

import pytest

from tests.models.commit_cleaning import due, orphans, read
from tests.models.commit_world import GRACE, CommitId, Extent, Manifest, New, Rules, Token, Violation, World

TOLD = {"refs_known", "sweep_settled", "sweep_spares_late"}


class Story:
    """A world whose attempts do what they are told, on one line."""

    def __init__(self, rules: Rules) -> None:
        self.w = World(rules, random.Random(0), loses=5)
        self.generation = 0

    def claim(self, job: str) -> Token:
        token = self.w.claim(job)
        assert token is not None
        return token

    def put(self, token: Token, name: str) -> Extent:
        key = ("p", *token, name)
        self.w.objects[key], self.w.written[key] = (name,), self.w.now
        return Extent(key, 0, name)

    def commit(self, token: Token, *extents: Extent) -> bool:
        line = self.w.lines["p"]
        base = line.head.id if line.head else None
        self.generation += 1
        new = CommitId(self.generation, token.attempt, token.nonce)
        self.w.manifests["p", new] = Manifest({extent.digest: extent for extent in extents}, base)
        self.w.written["p", new] = self.w.now
        accepted = self.w.commit(token, [New("p", new, "quiet", base)])
        self.w.check()
        return accepted

    def lose_the_machine_of(self, token: Token) -> None:
        self.w.now += 100
        self.w.reap(token.job)

    def sweep(self, token: Token) -> None:
        objects, commits = orphans(self.w, read(self.w, "p", token))
        self.delete(objects, commits)

    def collect(self, token: Token) -> None:
        objects, commits = due(self.w, read(self.w, "p", token))
        self.delete(objects, commits)
        self.w.collected("p", commits)

    def delete(self, objects: list[tuple[object, ...]], commits: list[CommitId]) -> None:
        for key in objects:
            del self.w.objects[key]
        for commit in commits:
            self.w.manifests.pop(("p", commit), None)


def a_cancel_that_the_ledger_forgets(rules: Rules) -> None:
    """A machine freezes; its job is canceled, its objects are swept; Redis loses the cancel; the machine wakes up."""
    story = Story(rules)
    w = story.w
    holder = story.claim("two")
    story.commit(holder, story.put(holder, "x"))
    frozen = story.claim("three")
    in_hand = story.put(frozen, "y")
    story.lose_the_machine_of(frozen)
    w.cancel("three")
    story.sweep(holder)
    w.end(holder)
    w.lose(2)
    w.end(holder)
    assert story.commit(frozen, in_hand), "nobody else has claimed its job, and the head is what it restored"


def a_claim_that_the_ledger_forgets(rules: Rules) -> None:
    """Another attempt took the job over, committed and swept; Redis loses both; the first one's machine wakes up."""
    story = Story(rules)
    frozen = story.claim("two")
    story.commit(frozen, story.put(frozen, "x"))
    in_hand = story.put(frozen, "y")
    story.lose_the_machine_of(frozen)
    second = story.claim("two")
    story.commit(second, story.put(second, "z"))
    story.sweep(second)
    story.w.lose(2)
    assert story.commit(frozen, in_hand), "nobody else has claimed its job"


def a_cleaner_that_freezes_over_its_reading(rules: Rules) -> None:
    """The commits that it read of are gone when it looks for their manifests; newer ones refer to their objects."""
    story = Story(rules)
    first = story.claim("two")
    old = story.put(first, "x")
    story.commit(first, old)
    story.lose_the_machine_of(first)
    cleaner = story.claim("two")
    for _ in range(2):
        story.commit(cleaner, old)
        story.w.now += GRACE
    reading = read(story.w, "p", cleaner)
    story.lose_the_machine_of(cleaner)
    last = story.claim("two")
    for _ in range(4):
        story.commit(last, old)
        story.w.now += GRACE
        story.collect(last)
    story.delete(*orphans(story.w, reading))
    story.w.check()


STORIES = {
    "sweep_settled": a_claim_that_the_ledger_forgets,
    "sweep_spares_late": a_cancel_that_the_ledger_forgets,
    "refs_known": a_cleaner_that_freezes_over_its_reading,
}


@pytest.mark.parametrize("rule", sorted(TOLD))
def test_a_story_ends_well_with_the_rule_and_badly_without(rule: str) -> None:
    STORIES[rule](Rules())
    with pytest.raises(Violation, match="lacks"):
        STORIES[rule](Rules(**{rule: False}))
