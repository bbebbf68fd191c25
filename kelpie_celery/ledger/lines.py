"""The ledger's lines: which commits of a checkpoint prefix are kept, which is the newest, and which are dropped.

A commit that the ledger has accepted is what a restore gets, from that call on; an attempt's manifest on the storage is
nothing before. Limits: what the commits' objects are, and when they are deleted, is the storage side's.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any, NoReturn

from kelpie_celery.errors import CommitGone, LeaseLost, LineMoved, PrefixHeld
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.calls import Calls, no_such_job
from kelpie_celery.ledger.scripts import text
from kelpie_celery.ledger.types import CommitEntry, Dropped, FencingToken, Line, LineAddress, NewCommit, compact


class Lines(Calls):
    """Commits, rollbacks, and the questions that may be asked of lines."""

    def lines(self, addresses: Sequence[LineAddress]) -> list[Line]:
        """Lines as they are at one moment, in the order asked for; their expiry is renewed."""
        if not addresses:
            return []
        args = [self._line_expiry_s, *map(_digest, addresses)]
        return _lines(addresses, self._call("lines", f"read {len(addresses)} lines", *args))

    def commit(self, token: FencingToken, commits: Sequence[NewCommit], facts: dict[str, Any]) -> list[Line]:
        """Make commits the heads of their lines, all together or none.

        Args:
            token: The attempt.
            commits: One for each line of the job, all of one id and generation; none where only ``facts`` are noted.
            facts: What the job's record tells of its newest commit; id and generation are added.

        Returns:
            The lines as they are then, in the order given.

        Raises:
            LeaseLost: The attempt does not own the job; nothing may follow from this commit.
            PrefixHeld: Another job that is pending or running commits to one of the prefixes; nothing has changed.
            LineMoved: Another job committed to one of them since this attempt restored; nothing has changed.
        """
        facts = {"id": commits[0].id, "generation": commits[0].generation, **facts} if commits else facts
        row = self._call(
            "commit", f"record a commit of job {token.job_id}", token.job_id, token.attempt, token.nonce,
            compact(facts), self._line_expiry_s, _given(commits),
        )  # fmt: skip
        answer = text(row[0])
        if answer == "lost":
            raise LeaseLost(f"attempt {token.attempt} of job {token.job_id} lost its lease before its commit")
        if answer != "ok":
            _refuse(answer, row, commits)
        return _lines([commit.line for commit in commits], row[1])

    def rollback(self, job_id: str, of: str, commits: Sequence[NewCommit]) -> list[Line]:
        """Make the state of an older commit the newest again, as a new commit, in all lines of a job together.

        A running attempt is fenced, and its job is pending once that attempt's lease is over; an ended job stays what
        it is, and so does one that is being canceled.

        Args:
            job_id: The job.
            of: The older commit, which has to be kept in every line still.
            commits: New commits with its file lists, one for each line of the job, all of one id and generation.

        Returns:
            The lines as they are then, in the order given.

        Raises:
            JobNotFound: No record has this id.
            CommitGone: The older commit is not kept any more; nothing has changed.
            PrefixHeld: Another job that is pending or running commits to one of the prefixes; nothing has changed.
            LineMoved: A commit came in since the lines were read; read them and try again; nothing has changed.
            ValueError: No commits were given.
        """
        if not commits:
            raise ValueError("a rollback needs a commit for each line of the job")
        row = self._call(
            "rollback", f"roll job {job_id} back", job_id, of, uuid.uuid4().hex, self._line_expiry_s,
            _given(commits),
        )  # fmt: skip
        answer = text(row[0])
        if answer == "unknown":
            raise no_such_job(job_id)
        if answer == "gone":
            raise CommitGone(job_id, of, commits[int(row[1]) - 1].line.url)
        if answer != "ok":
            _refuse(answer, row, commits)
        return _lines([commit.line for commit in commits], row[1])

    def collected(self, line: LineAddress, ids: Sequence[str]) -> None:
        """Note that the objects of these dropped commits are deleted."""
        if ids:
            self._call("collected", f"note {len(ids)} deleted commits", _digest(line), *ids)

    @property
    def _line_expiry_s(self) -> int:
        return int(max(self.timings.line_retention_s, self.timings.job_retention_s))


def _digest(address: LineAddress) -> str:
    return keys.line_digest(address.endpoint, address.bucket, address.prefix)


def _given(commits: Sequence[NewCommit]) -> str:
    if len({commit.line for commit in commits}) < len(commits):
        raise ValueError("two commits of one call are for the same line")
    if len({(commit.id, commit.generation) for commit in commits}) > 1:
        raise ValueError("the commits of one call differ in id or generation")
    return compact([_to_lua(commit) for commit in commits])


def _to_lua(commit: NewCommit) -> dict[str, Any]:
    return {
        "line": _digest(commit.line),
        "endpoint": commit.line.endpoint,
        "bucket": commit.line.bucket,
        "prefix": commit.line.prefix,
        "base": commit.base,
        "commit": {
            "id": commit.id,
            "generation": commit.generation,
            "manifest": commit.manifest,
            "why": commit.why,
            "files": commit.files,
            # As text: Lua's JSON keeps 14 digits of a number.
            "bytes": str(commit.bytes),
            "sent_bytes": str(commit.sent_bytes),
        },
    }


def _refuse(answer: str, row: Sequence[Any], commits: Sequence[NewCommit]) -> NoReturn:
    line, job = commits[int(row[1]) - 1].line, text(row[2])
    kind = PrefixHeld if answer == "held" else LineMoved
    raise kind(job, line.bucket, line.prefix)


def _lines(addresses: Sequence[LineAddress], answer: Sequence[Any]) -> list[Line]:
    now = float(text(answer[0]))
    return [_line(address, now, row) for address, row in zip(addresses, answer[1:], strict=True)]


def _line(address: LineAddress, now: float, row: Sequence[Any]) -> Line:
    holder, lives, generation, kept, dropped = map(text, row)
    entries = tuple(_entry(commit) for commit in json.loads(kept))
    return Line(
        address=address, holder=holder or None, holder_lives=lives == "1", head=entries[-1] if entries else None,
        kept=entries, dropped=tuple(Dropped(_entry(c), float(c["dropped"])) for c in json.loads(dropped)),
        generation=int(generation), now=now,
    )  # fmt: skip


def _entry(commit: dict[str, Any]) -> CommitEntry:
    return CommitEntry(
        id=commit["id"], generation=int(commit["generation"]), manifest=commit["manifest"], job_id=commit["job"],
        attempt=int(commit["attempt"]), why=commit["why"], at=float(commit["at"]), files=int(commit["files"]),
        bytes=int(commit["bytes"]), sent_bytes=int(commit["sent_bytes"]),
    )  # fmt: skip
