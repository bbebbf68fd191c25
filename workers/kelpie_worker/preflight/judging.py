"""What a trial means: findings, from what was seen alone.

The rules, in short. A job *resumes* when it went on from about where its checkpoint was, by its own progress, or, where
it reports none, when it read files that were restored. It *ignores* its checkpoint when it read none of them, or began
again although it had got further. Everything else is told beside that.

Limits: pure. Two attempts are few: what a program does seldom is not seen.
"""

from __future__ import annotations

from kelpie_celery.cli._text import counted, duration, size
from kelpie_celery.findings import Finding, Level, any_bad, ok, problem, warning
from kelpie_worker.preflight.judging_end import outputs, sigterm
from kelpie_worker.preflight.judging_writes import reports, writes
from kelpie_worker.preflight.seen import Asked, AttemptSeen, Seen
from kelpie_worker.preflight.wording import named

HOW_TO_COMMIT = (
    "write the checkpoint into a directory of a `during` block (or CHECKPOINT_DIR); then either leave it alone for "
    'KELPIE_QUIET_S (2 s), or append {"commit": true} to the file that KELPIE_REPORT names, or write a file that the '
    'block\'s "commit": "marker:<glob>" matches'
)
NO_DURING = (
    "add a block to sync.during (or use the six bucket fields), with the directory that the program keeps its state in"
)
_HALF = 0.5


def judge(seen: Seen, asked: Asked) -> list[Finding]:
    """All findings, in the order in which things happened."""
    if not asked.directories:
        return [problem("commit", "the job has no checkpoint: no block in sync.during", NO_DURING)]
    if not seen.checkpoints or seen.killed is None:
        return [*_never_killed(seen, asked), *reports(seen, asked)]
    return [
        *_commit(seen, asked), *_resume(seen, asked), *_lost(seen), *writes(seen, asked), *reports(seen, asked),
        *sigterm(seen, asked), *outputs(seen, asked),
    ]  # fmt: skip


def resumes(findings: list[Finding]) -> bool:
    """Whether it was seen that the job resumes."""
    return any(one.check == "resume" and one.level.value == "ok" for one in findings)


def hopeless(seen: Seen, asked: Asked) -> bool:
    """Whether what was seen of the resume is enough to know that it does not work."""
    return any_bad(_resume(seen, asked))


# -- before the kill --------------------------------------------------------------------------------------------------


def _never_killed(seen: Seen, asked: Asked) -> list[Finding]:
    first = seen.attempt(1)
    if seen.status == "failed" and first is not None:
        return [_failed(first, "the command failed before it could be interrupted", seen.message)]
    if seen.status == "failed":
        return [problem("run", f"the command did not start: {seen.message}", "mend what the message names")]
    if seen.status in ("completed", "canceled") and first is not None:
        took_s = (first.ended.at if first.ended else first.launched) - first.launched
        before = [one for one in seen.checkpoints if one.why != "exit"]
        what = "its first checkpoint" if not before else "it could be interrupted"
        if not before and (held := _held(seen, asked)):
            text = f"the job ended after {duration(took_s)}, and made no checkpoint before: {held}"
            return [problem("commit", text, HOW_TO_COMMIT, seconds=round(took_s, 1))]
        return [
            problem(
                "commit", f"the job ended after {duration(took_s)}, before {what}: whether it resumes was not seen",
                "give it more to do for this trial, or let it save more often; a job as short as this is simply "
                "begun again where its machine vanishes", seconds=round(took_s, 1),
            )
        ]  # fmt: skip
    if first is not None and first.ended is not None:
        return [_ended_itself(first)]
    return [_no_commit(seen, asked)]


def _ended_itself(first: AttemptSeen) -> Finding:
    ended = first.ended
    how = f"with exit code {ended.exit_code}" if ended and ended.exit_code is not None else "by itself"
    text = f"the command ended {how} before it could be interrupted: whether it resumes was not seen"
    mend = "for this trial, let it run on after its first checkpoint, and save more often"
    return problem("commit", text, mend, exit_code=ended.exit_code if ended else None)


def _no_commit(seen: Seen, asked: Asked) -> Finding:
    first = seen.attempt(1)
    where = named(asked.directories)
    text = f"no checkpoint was made within {duration(asked.timeout_s)}"
    heard = first.heard if first else None
    if heard is None or not (heard.writes or heard.writing):
        text += f": nothing was written into {where}"
        if seen.elsewhere:
            text += f", but elsewhere: {named(seen.elsewhere)}"
        return problem("commit", text, HOW_TO_COMMIT, elsewhere=seen.elsewhere[:20])
    written = list(dict.fromkeys([*(one.path for one in heard.writes), *heard.writing]))
    if asked.commit == "report":
        text += f': {named(written)} was written, but no commit was reported, and the blocks say "commit": "report"'
    elif asked.commit != "quiet":
        text += f": {named(written)} was written, but nothing that {asked.commit} matches"
    elif held := _held(seen, asked):
        text += f": {held}"
    elif heard.writing:
        text += f": {named(heard.writing)} stays open for writing"
    else:
        text += f": {named(written)} is written again before the directory was quiet for {duration(asked.quiet_s)}"
    return problem("commit", text, HOW_TO_COMMIT, written=written[:20])


def _held(seen: Seen, asked: Asked) -> str:
    """Which files kept it from being made, where it is made when all is quiet."""
    if asked.commit != "quiet":
        return ""
    found = [path for path, (since, until) in seen.held.items() if path and until - since > asked.quiet_s]
    if not found:
        return ""
    return f"{named(found)} stays open for writing, and nothing but the program can say when its content is whole"


# -- checkpoints ------------------------------------------------------------------------------------------------------


def _commit(seen: Seen, asked: Asked) -> list[Finding]:
    first = seen.checkpoints[0]
    launched = seen.attempts[0].launched
    saved = _saved_at(seen, first.at)
    took_s = max(0.0, first.at - saved)
    waits = f", {duration(asked.quiet_s)} of them the quiet time" if first.why == "quiet" else ""
    found = [
        ok("commit", f"the first checkpoint was there {duration(first.at - launched)} after the start ({first.why})",
           seconds=round(first.at - launched, 2), why=first.why),
        ok("checkpoint",
           f"a checkpoint has {counted(first.files, 'file')}, {size(first.bytes)}, and was safe {duration(took_s)} "
           f"after the last write{waits}; {_sent(seen)}",
           seconds=round(took_s, 2), files=first.files, bytes=first.bytes,
           sent_bytes=[one.sent_bytes for one in seen.checkpoints[:10]]),
    ]  # fmt: skip
    if first.files == 0:
        text = "the first checkpoint holds no file"
        found[1] = warning("checkpoint", text, "see which files the block's `pattern` selects", files=0)
    return found


def _sent(seen: Seen) -> str:
    first, *later = seen.checkpoints
    if not later:
        return f"{size(first.sent_bytes)} were sent for it"
    most = max(one.sent_bytes for one in later)
    return f"{size(first.sent_bytes)} were sent for the first, at most {size(most)} for a later one"


def _saved_at(seen: Seen, moment: float) -> float:
    """When the state of a checkpoint was written that the ledger took at some moment."""
    ends = [write.ended for one in seen.attempts for write in one.heard.writes if write.ended <= moment]
    return max(ends, default=moment)


# -- the resume -------------------------------------------------------------------------------------------------------


def _resume(seen: Seen, asked: Asked) -> list[Finding]:
    second = seen.attempt(2)
    if second is None:
        text = f"the job did not start again after its machine was killed: {seen.message or 'nothing says why'}"
        return [problem("resume", text, "mend what the message names")]
    restored, read = second.heard.restored, second.heard.read
    had, began_at, fresh_at = _progress(seen)
    evidence = _evidence(restored, read)
    facts = {"restored": len(restored), "read": list(read[:20]), "progress_saved": had, "progress_resumed": began_at}
    went_on = None if had is None or began_at is None else began_at >= fresh_at + _HALF * (had - fresh_at)
    if went_on is False:
        text = (
            f"the job ignores its checkpoint: it began again at {_percent(began_at)} although {_percent(had)} were "
            f"saved; {evidence}"
        )
        return [problem("resume", text, _LOOK_WHEN_STARTING, **facts)]
    if second.ended is not None and second.ended.outcome == "failure":
        return [_failed(second, f"the resumed command failed ({evidence})", seen.message, "resume")]
    if went_on:
        return [ok("resume", f"the job went on at {_percent(began_at)} of {_percent(had)} saved; {evidence}", **facts)]
    if second.heard.missed or (read and not asked.reads_tell):
        why = "too much happened to hear" if second.heard.missed else "as outputs lie at its prefix, it cannot be heard"
        text = f"{why} whether the command read its checkpoint"
        return [warning("resume", text, "report progress through KELPIE_REPORT, and try again", **facts)]
    if not read and _goes_on_by_names(seen, second):
        text = f"{evidence}, and wrote none of them again: it may go on by their names alone, or under new names from 0"
        return [warning("resume", text, "report progress through KELPIE_REPORT, and try again", **facts)]
    if not read:
        return [problem("resume", f"the job ignores its checkpoint: {evidence}", _LOOK_WHEN_STARTING, **facts)]
    return [
        ok("resume", f"the job reads its checkpoint: {evidence}. It reports no progress that would say more", **facts)
    ]


def _goes_on_by_names(seen: Seen, second: AttemptSeen) -> bool:
    """Whether the files may say by their names how far the job is, so that nobody has to open them."""
    first = seen.attempt(1)
    written = [write.path for write in second.heard.writes]
    if first is None or not written or set(written) & set(second.heard.restored):
        return False
    return not first.heard.writes or written[0] != first.heard.writes[0].path


_LOOK_WHEN_STARTING = (
    "when the program starts, let it look into its checkpoint directory, load the newest state that is there, and go "
    "on from there: the directory is filled before the command starts"
)


def _evidence(restored: tuple[str, ...], read: tuple[str, ...]) -> str:
    if not restored:
        return "no file was restored"
    if not read:
        return f"it opened none of the {counted(len(restored), 'file')} that were restored: {named(restored)}"
    return f"of {counted(len(restored), 'file')} restored it read {named(read)}"


def _progress(seen: Seen) -> tuple[float | None, float | None, float]:
    """Progress in the last checkpoint before the kill, progress first told after it, and that of a fresh start.

    None where it was not told, or says nothing, as nothing had been done by then.
    """
    first, second = seen.attempt(1), seen.attempt(2)
    before = [one for one in seen.commits_of(1) if seen.killed is None or one.at <= seen.killed + 1]
    if first is None or second is None or not before:
        return None, None, 0.0
    fresh_at = first.heard.first_progress or 0.0
    had = first.heard.progress_at(_saved_at(seen, before[-1].at))
    if had is not None and had <= fresh_at:
        had = None
    return had, second.heard.first_progress, fresh_at


def _percent(progress: float | None) -> str:
    return "?" if progress is None else f"{progress:.1%}".replace("%", " %")


# -- what was lost ----------------------------------------------------------------------------------------------------


def _lost(seen: Seen) -> list[Finding]:
    first, second = seen.attempt(1), seen.attempt(2)
    before = [one for one in seen.commits_of(1) if seen.killed is not None and one.at <= seen.killed + 1]
    if first is None or second is None or seen.killed is None or not before:
        return []
    lost_s = max(0.0, seen.killed - _saved_at(seen, before[-1].at))
    text = f"{duration(lost_s)} lay between the last saved state and the kill"
    facts = {"unsaved_s": round(lost_s, 2), "restore_s": round(max(0.0, second.launched - second.granted), 2)}
    redone_s = _redone_s(seen, first, second)
    if redone_s is not None:
        text += f"; {duration(redone_s)} of work were done again, by the job's own progress"
        facts["redone_s"] = round(redone_s, 2)
    if seen.reference_s is not None and seen.status == "completed":
        ran_s = sum((one.ended.at if one.ended and one.n != 1 else one.over or one.launched) - one.launched
                    for one in seen.attempts)  # fmt: skip
        text += f"; all attempts ran {duration(ran_s)}, the uninterrupted one {duration(seen.reference_s)}"
        facts |= {"ran_s": round(ran_s, 2), "reference_s": round(seen.reference_s, 2)}
    text += f"; the restore took {duration(facts['restore_s'])}"
    return [Finding(Level.INFO, "lost", text, facts=dict(facts))]


def _redone_s(seen: Seen, first: AttemptSeen, second: AttemptSeen) -> float | None:
    told = [one for one in first.heard.said if one.progress is not None]
    began_at = second.heard.first_progress
    if len(told) < 2 or began_at is None or seen.killed is None:  # noqa: PLR2004 -- a rate takes two
        return None
    start, last = told[0], told[-1]
    if start.progress is None or last.progress is None or last.progress <= start.progress or last.at <= start.at:
        return None
    rate = (last.progress - start.progress) / (last.at - start.at)
    return max(0.0, (last.progress - began_at) / rate)


def _failed(one: AttemptSeen, text: str, message: str, check: str = "run") -> Finding:
    said = one.ended.message if one.ended and one.ended.message else message
    tail = one.ended.tail.splitlines()[-5:] if one.ended else []
    output = f"; its last output: {' | '.join(tail)}" if tail else ""
    return problem(check, f"{text}: {said}{output}", "make it run by hand, in an empty directory as in its container",
                   exit_code=one.ended.exit_code if one.ended else None)  # fmt: skip
