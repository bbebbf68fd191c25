"""What exits and errors mean for a job."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

from kelpie_celery.errors import CommandError, StorageSetupError, StorageUnavailable
from kelpie_celery.lifecycle import Outcome, Reason
from kelpie_celery.settings import load_settings
from kelpie_worker import endings
from kelpie_worker.command import CommandExit
from kelpie_worker.full_disks import Disk, FullDisk
from kelpie_worker.sync.errors import DiskFull

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


KILLED, BY_SHELL, FAILED = CommandExit(signal=9), CommandExit(code=137), CommandExit(code=1)
FULL = FullDisk(Disk(Path("/data"), 0, 1 << 23, 10))


@pytest.mark.parametrize(
    ("exit_", "kills", "private", "reason"),
    [
        (KILLED, 1, False, Reason.OOM),
        (BY_SHELL, 1, False, Reason.OOM),
        (FAILED, 1, True, Reason.OOM),  # it outlived a child that was killed
        (FAILED, 1, False, Reason.EXIT_CODE),  # the kill may be another job's
        (CommandExit(signal=11), 1, False, Reason.SIGNAL),
        (KILLED, 0, True, Reason.SIGNAL),
        (BY_SHELL, 0, True, Reason.EXIT_CODE),
    ],
)
def test_a_kill_for_want_of_memory_is_told_from_any_other(
    exit_: CommandExit, kills: int, private: bool, reason: Reason
) -> None:
    evidence = endings.Evidence(kills, private, 1 << 28, memory_seen=True)
    ending = endings.of_exit(exit_, new_commit=False, delay_s=1, evidence=evidence)
    assert ending is not None
    assert ending.reason is reason
    assert ("the limit is 256.0 MiB" in ending.message) is (reason is Reason.OOM)
    assert ending.facts.get("memory_limit_bytes") == (1 << 28 if reason is Reason.OOM else None)


def test_want_of_memory_outweighs_a_full_disk_and_that_an_exit_code() -> None:
    both = endings.Evidence(memory_kills=1, full=FULL)
    ends = [
        endings.of_exit(KILLED, new_commit=False, delay_s=1, evidence=evidence)
        for evidence in (both, endings.Evidence(full=FULL), endings.NO_EVIDENCE)
    ]
    assert [end and end.reason for end in ends] == [Reason.OOM, Reason.DISK_FULL, Reason.SIGNAL]
    assert ends[1] is not None
    assert ends[1].facts == {"signal": 9, "path": "/data", "free_bytes": 0}
    assert "/data is full: 0 B of 8.0 MiB" in ends[1].message


def test_a_command_that_succeeded_or_wants_to_go_on_needs_no_evidence() -> None:
    evidence = endings.Evidence(memory_kills=1, memory_private=True, full=FULL)
    assert endings.of_exit(CommandExit(code=0), new_commit=False, delay_s=1, evidence=evidence) is None
    again = endings.of_exit(CommandExit(code=75), new_commit=True, delay_s=1, evidence=evidence)
    assert again is not None
    assert again.reason is Reason.CHECKPOINTED


def test_an_error_keeps_what_it_is_about() -> None:
    storage = endings.of_error(StorageSetupError("no such object", bucket="b", key="k"), 1)
    disk = endings.of_error(DiskFull("full", Path("/data"), 7, 9), 1)
    command = endings.of_error(CommandError("no such command", reason="not_found"), 1)
    system = endings.of_error(OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), 1)
    assert storage.facts == {"bucket": "b", "key": "k"}
    assert (disk.reason, disk.facts) == (Reason.DISK_FULL, {"path": "/data", "free_bytes": 7, "needed_bytes": 9})
    assert command.facts == {"cause": "not_found"}
    assert (system.reason, "/tmp/x" in system.message) == (Reason.DISK_FULL, True)


@pytest.mark.parametrize(
    ("exit_", "may_be"),
    [
        (CommandExit(signal=15), True),
        (CommandExit(signal=9), True),
        (CommandExit(code=143), True),
        (CommandExit(signal=11), False),
        (CommandExit(code=1), False),
    ],
)
def test_a_machine_that_stops_ends_commands_by_certain_signals(exit_: CommandExit, may_be: bool) -> None:
    assert endings.by_the_machine(exit_) is may_be


def test_retries_wait_longer_each_time_up_to_a_bound() -> None:
    delays = [endings.retry_delay_s(n, SETTINGS, random.Random(1)) for n in range(40)]
    assert 2.5 <= delays[0] <= 5
    assert 5 <= delays[1] <= 10
    assert max(delays) <= 600
    assert min(delays[10:]) >= 300
