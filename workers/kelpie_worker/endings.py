"""What the end of a command, or an error on the way, means for its job.

Limits: pure; a failure counts towards ``max_failures``, an interruption never does.
"""

from __future__ import annotations

import os
import random
import signal
from typing import Any

from kelpie_celery.errors import CommandError, KelpieError, StorageSetupError, StorageUnavailable
from kelpie_celery.ledger.types import Ending
from kelpie_celery.lifecycle import Outcome, Reason
from kelpie_celery.settings import Settings
from kelpie_worker.command.process import CommandExit

RUN_ME_AGAIN = os.EX_TEMPFAIL
"""75: the job has checkpointed and asks to be run again."""


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


def of_exit(exit_: CommandExit, *, new_commit: bool, delay_s: float) -> Ending | None:
    """The ending that a command's exit by itself means; None when it succeeded.

    Args:
        exit_: How it ended.
        new_commit: Whether this attempt made a new commit durable.
        delay_s: The pause before a retry.
    """
    if exit_.ok:
        return None
    if exit_.signal is not None:
        text = f"the command was ended by {signal_name(exit_.signal)}"
        return failure(Reason.SIGNAL, text, delay_s, signal=exit_.signal)
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
    return failure(Reason.EXIT_CODE, f"the command exited with code {exit_.code}", delay_s, exit_code=exit_.code)


def failure(reason: Reason, message: str, delay_s: float, *, final: bool = False, **facts: Any) -> Ending:
    """A failure: retried after ``delay_s`` while tries are left, unless it is final."""
    return Ending(Outcome.FAILURE, reason, message, facts=facts, delay_s=delay_s, final=final)


def interruption(reason: Reason, message: str, delay_s: float = 0.0) -> Ending:
    """An interruption: never counted as a failure."""
    return Ending(Outcome.INTERRUPTION, reason, message, delay_s=delay_s)


def canceled(message: str = "canceled") -> Ending:
    """The end that a cancel asked for."""
    return Ending(Outcome.CANCELED, Reason.CANCELED, message)


def of_error(error: Exception, delay_s: float) -> Ending:
    """What an error outside the command means for the attempt."""
    if isinstance(error, StorageUnavailable):
        return interruption(Reason.STORAGE_UNAVAILABLE, str(error), delay_s)
    if isinstance(error, StorageSetupError | CommandError | KelpieError):
        return failure(Reason.SETUP, str(error), delay_s)
    # An error of the worker's own: counted, so that a job which provokes it does not go round for ever.
    return failure(Reason.WORKER_ERROR, f"the worker failed: {type(error).__name__}: {error}", delay_s)
