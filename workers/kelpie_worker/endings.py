"""What the end of a command, or an error on the way, means for its job.

Limits: pure; a failure counts towards ``max_failures``, an interruption never does. What each reason means is in
`kelpie_celery.reasons`.
"""

from __future__ import annotations

import os
import random
import signal
from dataclasses import dataclass
from typing import Any

from kelpie_celery.errors import CommandError, KelpieError, StorageError, StorageSetupError, StorageUnavailable
from kelpie_celery.ledger.types import Ending
from kelpie_celery.lifecycle import Outcome, Reason
from kelpie_celery.running import Stop
from kelpie_celery.settings import Settings
from kelpie_worker.command.process import CommandExit
from kelpie_worker.full_disks import FullDisk, in_words
from kelpie_worker.sync.errors import FULL, DiskFull

RUN_ME_AGAIN = os.EX_TEMPFAIL
"""75: the job has checkpointed and asks to be run again."""

_KILLED = 128 + signal.SIGKILL
"""What a shell exits with when SIGKILL ended the program that it ran."""


@dataclass(frozen=True)
class Evidence:
    """What the machine tells of a command that failed.

    Attributes:
        memory_kills: How many of its processes the kernel killed for want of memory, a moment before its end.
        memory_private: None of them can be another job's.
        memory_limit_bytes: The limit that held; None where it is not known.
        memory_seen: Kills would have been seen, and there were none.
        full: A disk that is full.
    """

    memory_kills: int = 0
    memory_private: bool = False
    memory_limit_bytes: int | None = None
    memory_seen: bool = False
    full: FullDisk | None = None


NO_EVIDENCE = Evidence()


def retry_delay_s(failures_before: int, settings: Settings, jitter: random.Random | None = None) -> float:
    """How long the next try waits: doubling from ``retry_base_s`` up to ``retry_max_s``, with jitter of a half."""
    full = min(settings.retry_max_s, settings.retry_base_s * 2.0 ** min(failures_before, 30))
    return full * (jitter or random.SystemRandom()).uniform(0.5, 1.0)


def signal_name(number: int) -> str:
    """``SIGSEGV`` for 11."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def of_exit(exit_: CommandExit, *, new_commit: bool, delay_s: float, evidence: Evidence = NO_EVIDENCE) -> Ending | None:
    """The ending that a command's exit by itself means; None when it succeeded.

    Args:
        exit_: How it ended.
        new_commit: Whether this attempt made a new commit durable.
        delay_s: The pause before a retry.
        evidence: What the machine tells of it.
    """
    if exit_.ok:
        return None
    if exit_.code == RUN_ME_AGAIN:
        if new_commit:
            return Ending(
                Outcome.CONTINUE,
                Reason.CHECKPOINTED,
                "the job asked to be run again",
                facts={"exit_code": 75},
            )
        text = "the command exited with 75 (run me again) without a new checkpoint, which would go on for ever"
        return failure(Reason.NO_PROGRESS, text, delay_s, exit_code=RUN_ME_AGAIN)
    facts = exit_facts(exit_)
    if _for_want_of_memory(exit_, evidence):
        if evidence.memory_limit_bytes is not None:
            facts["memory_limit_bytes"] = evidence.memory_limit_bytes
        return failure(Reason.OOM, _memory_text(exit_, evidence), delay_s, **facts)
    if evidence.full is not None:
        text = f"{_exit_text(exit_)}, and {evidence.full}; use machines with a larger disk, or let the job store less"
        return failure(Reason.DISK_FULL, text, delay_s, **facts, **_disk_facts(evidence.full))
    if exit_.signal is not None:
        killed = exit_.signal == signal.SIGKILL and evidence.memory_seen
        why = "; the kernel counts no kill for want of memory, so somebody sent it" if killed else ""
        return failure(Reason.SIGNAL, _exit_text(exit_) + why, delay_s, **facts)
    return failure(Reason.EXIT_CODE, _exit_text(exit_), delay_s, **facts)


def exit_facts(exit_: CommandExit) -> dict[str, Any]:
    """How a command ended, for the history."""
    return {"exit_code": exit_.code} if exit_.signal is None else {"signal": exit_.signal}


def _exit_text(exit_: CommandExit) -> str:
    if exit_.signal is not None:
        return f"the command was ended by {signal_name(exit_.signal)}"
    return f"the command exited with code {exit_.code}"


def _for_want_of_memory(exit_: CommandExit, evidence: Evidence) -> bool:
    """A program may outlive the process that was killed, and exit as it likes: it counts where it must be its own."""
    killed = exit_.signal == signal.SIGKILL or exit_.code == _KILLED
    return evidence.memory_kills > 0 and (killed or evidence.memory_private)


def _memory_text(exit_: CommandExit, evidence: Evidence) -> str:
    what = "the command was killed by the kernel for want of memory"
    if exit_.signal != signal.SIGKILL:
        what = f"the kernel killed a process of the command for want of memory, and {_exit_text(exit_)}"
    limit = evidence.memory_limit_bytes
    told = f" (the limit is {in_words(limit)})" if limit is not None else ""
    return f"{what}{told}; use machines with more memory, or let the job use less"


def _disk_facts(full: FullDisk) -> dict[str, Any]:
    return {"path": str(full.disk.path), "free_bytes": full.disk.free_bytes} if full.disk else {}


def by_the_machine(exit_: CommandExit) -> bool:
    """Whether a command may have ended because its machine does: by a signal that ends whole machines."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)
    return exit_.signal in numbers or exit_.code in {128 + number for number in numbers}


def preempted(exit_: CommandExit) -> Ending:
    """The end of a command that failed while its worker was being told to end as well."""
    text = f"{_exit_text(exit_)} as its worker was told to end: the machine stops"
    return Ending(Outcome.INTERRUPTION, Reason.PREEMPTED, text, facts=exit_facts(exit_))


def failure(reason: Reason, message: str, delay_s: float, *, final: bool = False, **facts: Any) -> Ending:
    """A failure: retried after ``delay_s`` while tries are left, unless it is final."""
    return Ending(Outcome.FAILURE, reason, message, facts=facts, delay_s=delay_s, final=final)


def interruption(reason: Reason, message: str, delay_s: float = 0.0, **facts: Any) -> Ending:
    """An interruption: never counted as a failure."""
    return Ending(Outcome.INTERRUPTION, reason, message, facts=facts, delay_s=delay_s)


def canceled(message: str = "canceled") -> Ending:
    """The end that a cancel asked for."""
    return Ending(Outcome.CANCELED, Reason.CANCELED, message)


def of_stop(why: Stop) -> Ending:
    """The ending of an attempt that was told to end."""
    if why is Stop.CANCEL:
        return canceled()
    return interruption(Reason.WORKER_SHUTDOWN, "the worker was told to end")


def of_error(error: Exception, delay_s: float) -> Ending:
    """What an error outside the command means for the attempt."""
    if isinstance(error, StorageUnavailable):
        return interruption(Reason.STORAGE_UNAVAILABLE, str(error), delay_s, **_where(error))
    if isinstance(error, DiskFull):
        figures = {"path": error.path, "free_bytes": error.free_bytes, "needed_bytes": error.needed_bytes}
        facts: dict[str, Any] = {name: value for name, value in figures.items() if value is not None}
        return failure(Reason.DISK_FULL, str(error), delay_s, **facts)
    if isinstance(error, StorageSetupError):
        return failure(Reason.SETUP, str(error), delay_s, **_where(error))
    if isinstance(error, CommandError):
        return failure(Reason.SETUP, str(error), delay_s, cause=error.reason)
    if isinstance(error, KelpieError):
        return failure(Reason.SETUP, str(error), delay_s)
    if isinstance(error, OSError) and error.errno in FULL:
        text = f"a disk of the worker's is full: {error}; use machines with a larger disk"
        return failure(Reason.DISK_FULL, text, delay_s)
    # An error of the worker's own: counted, so that a job which provokes it does not go round for ever.
    return failure(Reason.WORKER_ERROR, f"the worker failed: {type(error).__name__}: {error}", delay_s)


def _where(error: StorageError) -> dict[str, Any]:
    return {name: value for name, value in (("bucket", error.bucket), ("key", error.key)) if value}
