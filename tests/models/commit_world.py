"""What the commit model's actors share: a storage, a ledger that may lose its last writes, and what must hold of them.

One line of commits for each prefix; a job may have several. Times are ticks. The ledger's operations follow
``kelpie_celery/ledger/lua`` step by step; each one is atomic. Limits: a file is one extent; manifests are never deltas;
of the retention rule only "the last two and the newest that was asked for" is here.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

GRACE = 14
"""What was dropped is deleted this much later."""

HORIZON = 13
"""No write of the ledger is lost that is older than this: the disk has it. Less than the grace of the deletions."""
LEASE = 6
LOSES = 5
PREFIXES: Mapping[str, tuple[str, ...]] = {"one": ("p", "q"), "two": ("p",), "three": ("p",)}


@dataclass(frozen=True)
class Rules:
    """The rules of commits; a test switches each one off, and has to find what it is for."""

    fresh_keys: bool = True  # no object's key is ever written twice
    base_only: bool = True  # extents are taken over from the commit that this one goes on from, and no other
    base_checked: bool = True  # the ledger takes an attempt's first commit on the head that it restored, and no other
    rising: bool = True  # the ledger takes no generation that is not above the line's
    together: bool = True  # the heads of a job's lines move in one call
    grace: bool = True  # what was dropped is deleted some time later
    grace_refs: bool = True  # what a lately dropped commit refers to lives
    rollback_to_kept: bool = True  # only a kept commit can be gone back to
    rollback_waits: bool = True  # the job of a fenced attempt is offered when that one's lease is over
    plain_after: bool = True  # plain keys follow the accepted commit
    storage_fence: bool = True  # the storage refuses what becomes visible once the trust window is over
    refs_known: bool = True  # nothing is deleted while a manifest cannot be read that may refer to it
    sweep_by_owner: bool = True  # orphans are judged by the attempt that owns the job when it reads the lines
    sweep_age: bool = True  # only what was old already when the lines were read can be an orphan
    sweep_spares_own: bool = True  # an attempt sweeps none of its own objects
    sweep_spares_live: bool = True  # nor those of another job that may still commit
    sweep_spares_late: bool = True  # nor those of one whose end may be lost
    sweep_settled: bool = True  # it sweeps once a commit of its own is too old to be lost
    sweep_recent: bool = True  # what a lately dropped commit refers to is no orphan
    sweep_generations: bool = True  # of the manifests only those whose generation can never be accepted any more


class Violation(Exception):
    """A history that breaks a property."""


class Token(NamedTuple):
    """One attempt."""

    job: str
    attempt: int
    nonce: int


class Extent(NamedTuple):
    """Where the content of a file lies."""

    key: tuple[object, ...]
    at: int
    digest: str


class CommitId(NamedTuple):
    """As in the ledger: generation first."""

    generation: int
    attempt: int
    nonce: int


class Entry(NamedTuple):
    """A commit that the ledger accepted."""

    id: CommitId
    token: Token
    why: str
    at: int


class Manifest(NamedTuple):
    """A commit's file list on the storage; ``parent`` is the commit that it goes on from."""

    files: Mapping[str, Extent]
    parent: CommitId | None


class Line(NamedTuple):
    """A line in the ledger; the head is the last of the kept commits."""

    holder: str = ""
    kept: tuple[Entry, ...] = ()
    dropped: tuple[tuple[Entry, int], ...] = ()

    @property
    def head(self) -> Entry | None:
        return self.kept[-1] if self.kept else None

    @property
    def generation(self) -> int:
        return self.kept[-1].id.generation if self.kept else 0

    def has(self, commit: CommitId) -> bool:
        return any(entry.id == commit for entry in self.kept)


@dataclass(frozen=True)
class Job:
    """A job in the ledger."""

    status: str = "pending"
    attempt: int = 0
    nonce: int = -1
    reaped: bool = False
    expires: int = 0
    not_before: int = 0
    ended: int = 0

    @property
    def lives(self) -> bool:
        return self.status in ("pending", "running")


@dataclass
class New:
    """A commit that is asked for."""

    prefix: str
    id: CommitId
    why: str
    base: CommitId | None


@dataclass
class World:
    """Storage and ledger."""

    rules: Rules
    rng: random.Random
    loses: int
    now: int = 0
    objects: dict[tuple[object, ...], tuple[str, ...]] = field(default_factory=dict)
    written: dict[object, int] = field(default_factory=dict)
    manifests: dict[tuple[str, CommitId], Manifest] = field(default_factory=dict)
    plain: dict[str, dict[str, str]] = field(default_factory=lambda: {"p": {}, "q": {}})
    jobs: dict[str, Job] = field(default_factory=lambda: {name: Job() for name in PREFIXES})
    lines: dict[str, Line] = field(default_factory=lambda: {"p": Line(), "q": Line()})
    trace: list[str] = field(default_factory=list)
    trust: dict[str, tuple[Token, int]] = field(default_factory=dict)
    lost: bool = False
    changed: bool = True
    _past: list[tuple[int, dict[str, Job], dict[str, Line]]] = field(default_factory=list)
    _nonces: int = 0

    def say(self, words: str) -> None:
        self.trace.append(f"{self.now:3} {words}")

    def nonce(self) -> int:
        self._nonces += 1
        return self._nonces

    # -- the ledger --------------------------------------------------------------------------------------------------

    def remember(self) -> None:
        """Called before each write of the ledger: it may be lost."""
        self._past = [*self._past[-LOSES:], (self.now, dict(self.jobs), dict(self.lines))]
        self.changed = True

    def crash(self) -> None:
        """Redis comes back without some of its last writes, none of which is older than the horizon."""
        recent = sum(at > self.now - HORIZON for at, _, _ in self._past[-self.loses :])
        if recent:
            self.lose(self.rng.randint(1, recent))

    def lose(self, writes: int) -> None:
        _, jobs, lines = self._past[-writes]
        self.jobs, self.lines, self._past = dict(jobs), dict(lines), self._past[:-writes]
        self.lost = self.changed = True
        self.say(f"the ledger lost {writes} writes")

    def owns(self, token: Token) -> bool:
        """The fence; an attempt that the reaper took the job from passes it as long as nobody else has claimed."""
        job = self.jobs[token.job]
        same = (job.attempt, job.nonce) == (token.attempt, token.nonce)
        return same and (job.status == "running" or (job.status == "pending" and job.reaped))

    def claim(self, name: str) -> Token | None:
        job = self.jobs[name]
        if job.status != "pending" or job.not_before > self.now:
            return None
        self.remember()
        token = Token(name, job.attempt + 1, self.nonce())
        self.jobs[name] = Job("running", token.attempt, token.nonce, expires=self.now + LEASE)
        self.say(f"{token} claims")
        return token

    def trusts(self, token: Token, until: int) -> None:
        """An attempt believes in its lease up to a moment; never two of one job, unless the ledger forgot a claim."""
        other, other_until = self.trust.get(token.job, (token, 0))
        if other != token and other_until > self.now and not self.lost:
            raise Violation(f"{other} trusts its lease, and {token} too")
        self.trust[token.job] = (token, until)

    def renew(self, token: Token) -> bool:
        if not self.owns(token):
            return False
        self.remember()
        self.jobs[token.job] = Job("running", token.attempt, token.nonce, expires=self.now + LEASE)
        return True

    def reap(self, name: str) -> None:
        job = self.jobs[name]
        if job.status == "running" and job.expires < self.now:
            self.remember()
            self.jobs[name] = replace(job, status="pending", reaped=True)
            self.say(f"{name} is reaped")

    def end(self, token: Token) -> bool:
        if not self.owns(token):
            return False
        self.remember()
        self.jobs[token.job] = replace(self.jobs[token.job], status="completed", ended=self.now)
        self.say(f"{token} completes")
        return True

    def cancel(self, name: str) -> None:
        job = self.jobs[name]
        if job.status == "pending" and job.attempt:
            self.remember()
            self.jobs[name] = replace(job, status="canceled", ended=self.now)
            self.say(f"{name} is canceled")

    def held_against(self, line: Line, name: str) -> bool:
        return line.holder not in ("", name) and self.jobs[line.holder].lives

    def commit(self, token: Token, commits: Sequence[New]) -> bool:
        """As ``commit.lua``."""
        if not self.owns(token):
            return False
        verdicts = [self.verdict(token, new) for new in commits]
        if "refused" in verdicts or len(set(verdicts)) > 1:
            return False
        if verdicts[0] == "repeat":
            return True
        self.remember()
        self.jobs[token.job] = Job("running", token.attempt, token.nonce, expires=self.jobs[token.job].expires)
        for new in commits:
            self.advance(new, token)
        return True

    def verdict(self, token: Token, new: New) -> str:
        """What one line says to a commit: ``next``, ``repeat`` or ``refused``."""
        line, rules = self.lines[new.prefix], self.rules
        if self.held_against(line, token.job):
            return "refused"
        if line.head is None:
            return "next"
        mine = line.head.token == token
        if mine and line.has(new.id) and rules.rising:
            return "repeat"
        if rules.rising and new.id.generation <= line.generation:
            return "refused"
        return "next" if mine or line.head.id == new.base or not rules.base_checked else "refused"

    def rollback(self, name: str, of: CommitId, commits: Sequence[New]) -> bool:
        """As ``rollback.lua``."""
        for new in commits:
            line = self.lines[new.prefix]
            if self.held_against(line, name) or new.id.generation <= line.generation:
                return False
            if self.rules.rollback_to_kept and not line.has(of):
                return False
        self.remember()
        job = self.jobs[name]
        token = Token(name, job.attempt + 1, self.nonce())
        if job.status == "running":
            due = job.expires if self.rules.rollback_waits else self.now
            self.jobs[name] = Job("pending", token.attempt, token.nonce, not_before=due)
        else:
            self.jobs[name] = replace(job, reaped=False)
        for new in commits:
            self.advance(new, token)
        return True

    def advance(self, new: New, token: Token) -> None:
        line = self.lines[new.prefix]
        self.judge(line, new)
        every = [*line.kept, Entry(new.id, token, new.why, self.now)]
        asked = [entry for entry in every if entry.why != "quiet"][-1:]
        kept = tuple(entry for entry in every if entry in every[-2:] or entry in asked)
        gone = tuple((entry, self.now) for entry in every if entry not in kept)
        self.lines[new.prefix] = Line(token.job, kept, line.dropped + gone)
        self.say(f"{new.prefix}: head {tuple(new.id)} by {token} ({new.why})")

    def collected(self, prefix: str, ids: Iterable[CommitId]) -> None:
        self.remember()
        gone = set(ids)
        line = self.lines[prefix]
        self.lines[prefix] = line._replace(dropped=tuple(d for d in line.dropped if d[0].id not in gone))

    # -- the storage -------------------------------------------------------------------------------------------------

    def listed(self, prefix: str) -> list[CommitId]:
        return [commit for at, commit in self.manifests if at == prefix]

    # -- what must hold ----------------------------------------------------------------------------------------------

    def judge(self, line: Line, new: New) -> None:
        """No commit takes a line back, or undoes what it does not go on from; a ledger that lost writes may have to."""
        if self.lost or line.head is None:
            return
        if new.id.generation <= line.generation:
            raise Violation(f"{new.prefix} went back to {new.id}")
        manifest = self.manifests.get((new.prefix, new.id))
        if new.why != "rollback" and manifest and manifest.parent != line.head.id:
            raise Violation(f"{new.prefix}: {new.id} undoes {line.head.id}")

    def check(self) -> None:
        """Every kept commit can be restored whole, and lines that one job moved stand at the same commit."""
        for prefix, line in self.lines.items():
            for entry in line.kept:
                manifest = self.manifests.get((prefix, entry.id))
                if manifest is None:
                    raise Violation(f"{prefix}: the manifest of {entry.id} is gone")
                for path, extent in manifest.files.items():
                    if self.objects.get(extent.key, ())[extent.at : extent.at + 1] != (extent.digest,):
                        raise Violation(f"{prefix}: {entry.id} lacks {path} in {extent.key}")
        p, q = self.lines["p"].head, self.lines["q"].head
        if p and q and p.token.job == q.token.job and p.id != q.id:
            raise Violation(f"a restore would mix {p.id} and {q.id}")

    def check_plain(self) -> None:
        """At the end of all: what a completed job left under the plain keys is its last commit."""
        for prefix, line in self.lines.items():
            head = line.head
            if self.lost or head is None or head.why == "rollback":
                continue
            if self.jobs[head.token.job].status != "completed":
                continue
            files = self.manifests[prefix, head.id].files
            if self.plain[prefix] != {path: extent.digest for path, extent in files.items()}:
                raise Violation(f"{prefix}: the plain keys are not those of {head.id}")
