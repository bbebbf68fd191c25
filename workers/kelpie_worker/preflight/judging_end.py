"""What SIGTERM and the end of a job showed.

Limits: as ``judging``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

from kelpie_celery.cli._text import counted, duration
from kelpie_celery.findings import Finding, info, ok, problem, warning
from kelpie_worker.preflight.seen import Asked, Ended, Seen
from kelpie_worker.preflight.wording import named

_HANDLE = (
    "let a handler of SIGTERM set a flag, and the loop save and end with exit code 75 when it is set; on SaladCloud "
    "most nodes vanish without a signal, so this saves minutes, not the job"
)
_IN_ORDER = (0, os.EX_TEMPFAIL)


def sigterm(seen: Seen, asked: Asked) -> list[Finding]:
    """What the second attempt did when its worker was told to end."""
    second = seen.attempt(2)
    if seen.given_up:
        return []
    by_itself = second is not None and second.ended is not None and second.ended.outcome == "completed"
    if seen.termed is None or second is None or by_itself:
        return [info("sigterm", "not tried: the job ended first")] if seen.status == "completed" else []
    ended = second.ended
    if ended is None:
        text = f"the command had not ended {duration(asked.grace_s)} after SIGTERM and more"
        return [warning("sigterm", text, "see grace_period, and the worker's log")]
    if ended.at < seen.termed:
        return [info("sigterm", f"not tried: the command {_how(ended)} by itself before")]
    took_s = ended.at - seen.termed
    wrote = any(write.ended >= seen.termed for write in second.heard.writes)
    committed = any(one.at >= seen.termed for one in seen.commits_of(2))
    last = max((one.at for one in seen.checkpoints if one.at < seen.termed), default=second.launched)
    facts = {"seconds": round(took_s, 2), "exit_code": ended.exit_code, "signal": ended.signal,
             "wrote": wrote, "committed": committed}  # fmt: skip
    how = _how(ended)
    if ended.exit_code in _IN_ORDER and wrote and committed:
        return [ok("sigterm", f"it saved and {how} {duration(took_s)} after SIGTERM: nothing was lost", **facts)]
    lost = f"what it did since its last checkpoint ({duration(seen.termed - last)} before) is lost"
    if ended.signal == signal.SIGKILL:
        text = f"it did not end within its grace period of {duration(asked.grace_s)} and was killed: {lost}"
        return [warning("sigterm", text, _HANDLE + "; or raise grace_period", **facts)]
    if ended.exit_code in _IN_ORDER and not wrote:
        text = f"it {how} {duration(took_s)} after SIGTERM without saving: {lost}"
    elif wrote and committed:
        text = f"it saved and {how} after SIGTERM; the state was committed since it was seen to be whole"
        return [warning("sigterm", text, "end with 0 or 75 after saving: then the last state always counts", **facts)]
    else:
        text = f"it {how} {duration(took_s)} after SIGTERM: {lost}"
    return [warning("sigterm", text, _HANDLE, **facts)]


def _how(ended: Ended) -> str:
    if ended.signal is not None:
        return f"was ended by {signal.Signals(ended.signal).name}"
    return f"ended with exit code {ended.exit_code}"


def outputs(seen: Seen, asked: Asked) -> list[Finding]:
    """Whether the job came to its end, and what came out of it."""
    if seen.given_up:
        return [info("outputs", "SIGTERM, the end and the outputs were not tried: mend the resume first")]
    if seen.status == "failed":
        last = seen.attempts[-1].ended if seen.attempts else None
        tail = " | ".join(last.tail.splitlines()[-5:]) if last else ""
        text = f"the job failed after it was interrupted: {seen.message}" + (
            f"; its last output: {tail}" if tail else ""
        )
        return [problem("outputs", text, "see what the command says when it starts with its checkpoint there")]
    if seen.status != "completed":
        text = f"not looked at: the job did not end within {duration(asked.timeout_s)} after its last interruption"
        return [info("outputs", text, "give it less to do for this trial, or a longer --timeout")]
    if not asked.has_outputs:
        return [ok("outputs", "the job completed; it stores no outputs")]
    found = seen.outputs or {}
    if not found:
        mend = "write into the directory of the block of `after` (or OUTPUT_DIR) before the command ends"
        return [problem("outputs", "the job completed, and stored no output at all", mend)]
    text = f"the job completed with {counted(len(found), 'output file')}"
    if seen.reference_failed:
        return [warning("outputs", f"{text}; nothing to compare them with: {seen.reference_failed}",
                        "make the job run to its end by itself, or give a longer --timeout")]  # fmt: skip
    if seen.reference is None:
        return [ok("outputs", text, files=len(found))]
    return [_compared(text, found, seen.reference)]


def _compared(text: str, found: Mapping[str, str], expected: Mapping[str, str]) -> Finding:
    missing = sorted(set(expected) - set(found))
    if missing:
        mend = "store what is needed for all outputs in the checkpoint: a file that was written before the kill is gone"
        return problem(
            "outputs", f"{text}, without {named(missing)} of the uninterrupted run", mend, missing=missing[:20]
        )
    differ = sorted(key for key, digest in expected.items() if found[key] != digest)
    if differ:
        why = (
            f"{text}; {named(differ)} differ from the uninterrupted run. If the program gives the same bytes each "
            "time, the resume is not exact; if it does not (random numbers, threads, times), this says nothing"
        )
        return info("outputs", why, "save the state of random numbers, and data loaders, with the checkpoint",
                    differ=differ[:20])  # fmt: skip
    return ok("outputs", f"{text}, bit for bit those of the uninterrupted run", files=len(found))
