"""Commits and rollbacks for the random histories of the ledger: what attempts and users do to lines.

Some jobs share a prefix. Every refused call is compared with the lines before it: nothing may have changed.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from kelpie_celery.errors import CommitGone, LineMoved, PrefixHeld
from kelpie_celery.ledger.types import FencingToken, Line, NewCommit
from tests.contract.ledger_cases import World, address, commit_id, new_commit

WHYS = ("quiet", "quiet", "report", "exit")


@dataclass
class Restored:
    """What an attempt found when it restored, and the commits that it has asked for since."""

    base: dict[str, str]
    generation: int
    sent: list[list[NewCommit]] = field(default_factory=list)


class Storage:
    """What the storage lists, which no loss of the ledger takes back; and the calls that follow from it."""

    def __init__(self, w: World, rng: random.Random) -> None:
        self.w, self.rng = w, rng
        self.newest: dict[str, int] = defaultdict(int)

    @staticmethod
    def prefixes(job_id: str) -> list[str]:
        """Every job has a prefix of its own; every second one shares another with others."""
        return [f"{job_id}/", *(["shared/"] if int(job_id.removeprefix("job")) % 2 else [])]

    def lines(self, job_id: str) -> list[Line]:
        return self.w.ledger.lines([address(prefix) for prefix in self.prefixes(job_id)])

    def next_generation(self, lines: list[Line]) -> int:
        return 1 + max(max(line.generation, self.newest[line.address.prefix]) for line in lines)

    def restore(self, token: FencingToken) -> Restored:
        lines = self.lines(token.job_id)
        base = {line.address.prefix: line.head.id for line in lines if line.head}
        return Restored(base, self.next_generation(lines))

    def commit(self, token: FencingToken, restored: Restored, *, late: bool) -> None:
        """A new commit, or a call made before that arrives once more.

        Raises:
            LeaseLost: As the ledger says.
            PrefixHeld: As the ledger says; it is true.
            LineMoved: As the ledger says; it is true.
        """
        if late and restored.sent:
            commits = self.rng.choice(restored.sent)
        else:
            why = self.rng.choice(WHYS)
            commits = [
                new_commit(token, restored.generation, prefix, why=why, base=restored.base.get(prefix, ""))
                for prefix in self.prefixes(token.job_id)
            ]
            restored.sent.append(commits)
            restored.generation += 1
        for commit in commits:
            self.newest[commit.line.prefix] = max(self.newest[commit.line.prefix], commit.generation)
        with self.nothing_changes_when_refused():
            lines = self.w.ledger.commit(token, commits, {"id": commits[0].id})
        assert len({line.generation for line in lines}) == 1, "the lines of a job moved apart"
        assert all(commits[0].id in [c.id for c in line.kept] for line in lines)

    def rollback(self, job_id: str) -> bool:
        """Back to any commit that is kept, as a user asks for it; whether it was accepted."""
        lines = self.lines(job_id)
        if not lines[0].kept:
            return False
        of = self.rng.choice(lines[0].kept).id
        token = FencingToken(job_id, 0, f"{self.rng.getrandbits(32):08x}")
        generation = self.next_generation(lines) - (self.rng.random() < 0.1)
        commits = [new_commit(token, generation, line.address.prefix, why="rollback") for line in lines]
        try:
            with self.nothing_changes_when_refused():
                after = self.w.ledger.rollback(job_id, of, commits)
        except CommitGone:
            assert not all(of in [c.id for c in line.kept] for line in lines)
            return False
        except LineMoved:
            assert generation <= max(line.generation for line in lines)
            return False
        except PrefixHeld as held:
            return self.other_job_lives(held.holder, job_id)
        assert {line.head.id for line in after if line.head} == {commit_id(token, generation)}
        for commit in commits:
            self.newest[commit.line.prefix] = generation
        if self.rng.random() < 0.3:  # the answer was lost
            assert self.w.ledger.rollback(job_id, of, commits) == after
        return True

    def other_job_lives(self, holder: str, job_id: str) -> bool:
        status = self.w.ledger.status_of(holder)
        assert holder != job_id
        assert status is not None
        assert not status.ended
        return False

    @contextmanager
    def nothing_changes_when_refused(self) -> Iterator[None]:
        before = self.w.ledger.seen_lines
        try:
            yield
        except Exception:
            assert self.w.ledger.seen_lines == before, "a refused call moved a line"
            raise

    def believe_refused(self, token: FencingToken, error: PrefixHeld | LineMoved, restored: Restored) -> None:
        """A commit of an attempt that owns its job was refused: there has to be another job that is in its way."""
        if isinstance(error, PrefixHeld):
            self.other_job_lives(error.holder, token.job_id)
            return
        [line] = [line for line in self.lines(token.job_id) if line.address.prefix == error.key]
        assert line.head is not None
        mine = (line.head.job_id, line.head.attempt) == (token.job_id, token.attempt)
        assert mine or line.head.id != restored.base.get(error.key, ""), "it went on from the head, and was refused"
