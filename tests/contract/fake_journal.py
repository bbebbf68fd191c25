"""The ledger's lines in memory, for the storage side's suites: the rules of ``commit.lua`` as far as they need them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from kelpie_celery.errors import LeaseLost, LedgerUnavailable, LineMoved, PrefixHeld
from kelpie_celery.ledger.types import CommitEntry, Dropped, FencingToken, Line, LineAddress, NewCommit

KEPT = 2


@dataclass
class MemoryLine:
    """One line as the ledger has it."""

    holder: str | None = None
    kept: list[CommitEntry] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    generation: int = 0


@dataclass
class MemoryLedger:
    """Lines and who owns which job.

    Attributes:
        owner: The attempt that may commit, by job; set by `claim`.
        now: The time; tests set it.
        away: While set, every call fails.
        calls: How often ``commit`` was accepted.
    """

    lines: dict[LineAddress, MemoryLine] = field(default_factory=dict)
    owner: dict[str, FencingToken] = field(default_factory=dict)
    live: set[str] = field(default_factory=set)
    now: float = 1_000_000.0
    away: bool = False
    calls: int = 0

    def claim(self, job_id: str, attempt: int, nonce: str = "") -> FencingToken:
        """A new attempt owns the job."""
        token = FencingToken(job_id, attempt, nonce or hashlib.md5(f"{job_id} {attempt}".encode()).hexdigest())
        self.owner[job_id] = token
        self.live.add(job_id)
        return token

    def journal(self, token: FencingToken) -> MemoryJournal:
        """The ledger, as one attempt may use it."""
        return MemoryJournal(self, token)

    def line(self, address: LineAddress) -> Line:
        """One line."""
        line = self.lines.setdefault(address, MemoryLine())
        head = line.kept[-1] if line.kept else None
        return Line(
            address, line.holder, line.holder in self.live, head, tuple(line.kept), tuple(line.dropped),
            line.generation, self.now,
        )  # fmt: skip


class MemoryJournal:
    """See ``kelpie_worker.sync.journal.Journal``."""

    def __init__(self, ledger: MemoryLedger, token: FencingToken) -> None:
        self.ledger, self.token = ledger, token

    def _reach(self) -> None:
        if self.ledger.away:
            raise LedgerUnavailable("away")

    async def lines(self, addresses: Sequence[LineAddress]) -> list[Line]:
        """Where these lines stand."""
        self._reach()
        return [self.ledger.line(address) for address in addresses]

    async def commit(self, commits: Sequence[NewCommit], facts: dict[str, Any]) -> list[Line]:
        """Move the heads of all these lines, or of none."""
        self._reach()
        ledger = self.ledger
        if ledger.owner.get(self.token.job_id) != self.token:
            raise LeaseLost("another attempt owns the job")
        for new in commits:
            line = ledger.lines.setdefault(new.line, MemoryLine())
            if line.holder not in {None, self.token.job_id} and line.holder in ledger.live:
                raise PrefixHeld(line.holder or "", new.line.bucket, new.line.prefix)
            head = line.kept[-1] if line.kept else None
            mine = head is not None and self._made(head)
            if head is not None and (new.generation <= line.generation or not (mine or head.id == new.base)):
                raise LineMoved(head.job_id, new.line.bucket, new.line.prefix)
        for new in commits:
            self._accept(ledger.lines[new.line], new)
        ledger.calls += 1
        return [ledger.line(new.line) for new in commits]

    def _made(self, commit: CommitEntry) -> bool:
        nonce = commit.id.rpartition("-")[2]
        return commit.job_id == self.token.job_id and nonce == self.token.nonce[:8]

    def _accept(self, line: MemoryLine, new: NewCommit) -> None:
        entry = CommitEntry(
            new.id, new.generation, new.manifest, self.token.job_id, self.token.attempt, new.why, self.ledger.now,
            new.files, new.bytes, new.sent_bytes,
        )  # fmt: skip
        line.holder, line.generation = self.token.job_id, new.generation
        line.kept.append(entry)
        while len(line.kept) > KEPT:
            line.dropped.append(Dropped(line.kept.pop(0), self.ledger.now))

    async def spared(self, job_ids: Collection[str], grace_s: float) -> set[str]:
        """Those of these jobs that may commit still."""
        self._reach()
        return set(job_ids) & self.ledger.live

    async def collected(self, address: LineAddress, ids: Sequence[str]) -> None:
        """The objects of these dropped commits are deleted."""
        line = self.ledger.lines[address]
        line.dropped = [dropped for dropped in line.dropped if dropped.commit.id not in ids]
