"""What the way in which a program writes its checkpoint means, and when it asks for commits.

Writing in place is no danger to a commit by itself: kelpie commits when nothing was written for the quiet time and
nobody has a file open for writing, and looks again after it has read. It is one where the program asks for a commit
before it has closed its files, and where somebody reads the program's own file.

Limits: as ``judging``.
"""

from __future__ import annotations

from kelpie_celery.cli._text import counted, duration
from kelpie_celery.findings import Finding, ok, problem, warning
from kelpie_worker.preflight import listening
from kelpie_worker.preflight.listening import Write
from kelpie_worker.preflight.seen import Asked, Seen
from kelpie_worker.preflight.wording import named

_RENAME = (
    "write to another name in the same directory and rename it onto the old one when it is whole: in Python "
    "open(name + '.tmp', 'wb'), write, flush, os.fsync, os.replace(name + '.tmp', name)"
)


def writes(seen: Seen, asked: Asked) -> list[Finding]:
    """How files are replaced."""
    all_writes = [write for one in seen.attempts for write in one.heard.writes]
    in_place = _by_path(all_writes, listening.IN_PLACE)
    if in_place:
        return [_in_place(seen, asked, in_place)]
    renamed = _by_path(all_writes, listening.RENAMED)
    if renamed:
        return [ok("writes", f"files are replaced by a rename, whole at every moment: {named(list(renamed))}",
                   renamed=list(renamed)[:20])]  # fmt: skip
    grown = _by_path(all_writes, listening.APPENDED)
    if grown:
        return [ok("writes", f"files grow, and what they held stays: {named(list(grown))}", appended=list(grown)[:20])]
    new = _by_path(all_writes, listening.NEW)
    if new:
        return [ok("writes", f"no file was written twice; new names each time: {named(list(new))}", new=list(new)[:20])]
    return []


def _in_place(seen: Seen, asked: Asked, in_place: dict[str, list[Write]]) -> Finding:
    longest = {path: max(one.ended - one.began for one in some) for path, some in in_place.items()}
    slowest = max(longest, key=lambda path: longest[path])
    torn = [path for one in seen.attempts[:1] for path in one.heard.writing if path in in_place]
    text = (
        f"{named(list(in_place))}: written in place, not to a new name that is renamed "
        f"({counted(sum(map(len, in_place.values())), 'time')}; {slowest} was half written for up to "
        f"{duration(longest[slowest])}). Its commits are whole all the same: one is made only when nothing was "
        f"written for {duration(asked.quiet_s)} and no file is open for writing, and a restore brings back "
        "a commit, never a half written file"
    )
    if torn:
        text += f" ({named(torn)} was being written when the machine was killed, and the commit before came back)"
    text += (
        ". In danger is whoever reads the file itself: the program when it starts again within the same attempt, or "
        "another process of the job; and a commit of a half written file, where the program reports it before it "
        "closes the file, or closes the file half-way for longer than the quiet time"
    )
    facts = {
        "files": {path: {"times": len(some), "longest_s": round(longest[path], 3)} for path, some in in_place.items()}
    }
    return warning("writes", text, _RENAME, **facts, half_written_at_kill=torn)


def reports(seen: Seen, asked: Asked) -> list[Finding]:
    """Commits that were asked for too early."""
    early = sorted({path for one in seen.attempts for path in one.heard.early})
    if not early:
        return []
    times = sum(1 for one in seen.attempts for said in one.heard.said if said.commit and said.writing)
    text = (
        f"a commit was reported while {named(early)} was still being written ({counted(times, 'time')}): the report is "
        "for a state that is not whole, kelpie drops it where it sees the write, and nothing else makes a commit of a "
        "program that reports"
    )
    mend = 'close (or at least flush) every file of the checkpoint first, then append {"commit": true} to KELPIE_REPORT'
    return [problem("reports", text, mend, files=early, commit=asked.commit)]


def _by_path(all_writes: list[Write], how: str) -> dict[str, list[Write]]:
    found: dict[str, list[Write]] = {}
    for one in all_writes:
        if one.how == how:
            found.setdefault(one.path, []).append(one)
    return found
