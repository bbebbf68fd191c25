"""What exits and errors mean for a job."""

from __future__ import annotations

import random

import pytest

from kelpie_celery.errors import CommandError, StorageSetupError, StorageUnavailable
from kelpie_celery.lifecycle import Outcome, Reason
from kelpie_celery.settings import load_settings
from kelpie_worker import endings
from kelpie_worker.command import CommandExit

SETTINGS = load_settings({"KELPIE_REDIS_URL": "redis://localhost/0"})


def test_exit_0_is_no_ending_yet() -> None:
    assert endings.of_exit(CommandExit(code=0, signal=None), new_commit=False, delay_s=1) is None


@pytest.mark.parametrize(
    ("exit_", "new_commit", "outcome", "reason"),
    [
        (CommandExit(code=1, signal=None), True, Outcome.FAILURE, Reason.EXIT_CODE),
        (CommandExit(code=None, signal=11), True, Outcome.FAILURE, Reason.SIGNAL),
        (CommandExit(code=75, signal=None), True, Outcome.CONTINUE, Reason.CHECKPOINTED),
        (CommandExit(code=75, signal=None), False, Outcome.FAILURE, Reason.NO_PROGRESS),
    ],
)
def test_an_exit_means_its_ending(exit_: CommandExit, new_commit: bool, outcome: Outcome, reason: Reason) -> None:
    ending = endings.of_exit(exit_, new_commit=new_commit, delay_s=3)
    assert ending is not None
    assert (ending.outcome, ending.reason) == (outcome, reason)
    assert ending.delay_s == (3 if outcome is Outcome.FAILURE else 0)


def test_a_signal_is_named() -> None:
    ending = endings.of_exit(CommandExit(code=None, signal=11), new_commit=False, delay_s=0)
    assert ending is not None
    assert "SIGSEGV" in ending.message


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (StorageUnavailable("503", bucket="b"), Outcome.INTERRUPTION, Reason.STORAGE_UNAVAILABLE),
        (StorageSetupError("no such bucket", bucket="b"), Outcome.FAILURE, Reason.SETUP),
        (CommandError("no such command", reason="not_found"), Outcome.FAILURE, Reason.SETUP),
        (ZeroDivisionError("ours"), Outcome.FAILURE, Reason.WORKER_ERROR),
    ],
)
def test_an_error_outside_the_command_means_its_ending(error: Exception, outcome: Outcome, reason: Reason) -> None:
    ending = endings.of_error(error, 1)
    assert (ending.outcome, ending.reason) == (outcome, reason)


def test_retries_wait_longer_each_time_up_to_a_bound() -> None:
    delays = [endings.retry_delay_s(n, SETTINGS, random.Random(1)) for n in range(40)]
    assert 2.5 <= delays[0] <= 5
    assert 5 <= delays[1] <= 10
    assert max(delays) <= 600
    assert min(delays[10:]) >= 300
