"""The documented list of reasons: complete, and what workers and ledger do holds to it."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest

from kelpie_celery.clock import ManualClock
from kelpie_celery.definition import parse_definition
from kelpie_celery.errors import CommandError, StorageSetupError, StorageUnavailable
from kelpie_celery.ledger.types import Ending
from kelpie_celery.lifecycle import Outcome, Reason
from kelpie_celery.reasons import REASONS, RULED
from kelpie_worker import endings
from kelpie_worker.command import CommandExit
from kelpie_worker.full_disks import FullDisk
from kelpie_worker.limits import Limits
from kelpie_worker.sync.errors import DiskFull

LUA = files("kelpie_celery.ledger") / "lua"


def of_limit(**limit: float) -> Ending:
    clock = ManualClock()
    base = {"command": "x", "container_group_id": "g", "sync": {}}
    limits = Limits(parse_definition({**base, **limit}), 0, 1, clock)
    clock.advance(1000)
    ending = limits.check()
    assert ending is not None
    return ending


def of_exit(code: int | None = None, number: int | None = None, evidence: endings.Evidence = endings.NO_EVIDENCE,
            *, new_commit: bool = False) -> Ending:  # fmt: skip
    ending = endings.of_exit(CommandExit(code, number), new_commit=new_commit, delay_s=1, evidence=evidence)
    assert ending is not None
    return ending


ENDINGS = [
    of_exit(1),
    of_exit(number=11),
    of_exit(75),
    of_exit(75, new_commit=True),
    of_exit(number=9, evidence=endings.Evidence(memory_kills=1)),
    of_exit(1, evidence=endings.Evidence(full=FullDisk(None, "No space left on device"))),
    of_limit(timeout=1),
    of_limit(total_timeout=1),
    of_limit(stall_timeout=1),
    endings.canceled(),
    endings.preempted(CommandExit(signal=15)),
    *(
        endings.of_error(error, 1)
        for error in (
            StorageUnavailable("503", bucket="b"),
            StorageSetupError("no such bucket", bucket="b"),
            CommandError("no such command", reason="not_found"),
            DiskFull("full", Path("/data")),
            ZeroDivisionError("ours"),
        )
    ),
]


def test_every_reason_is_in_the_list_with_what_happened() -> None:
    assert set(REASONS) == set(Reason)
    assert all(meaning.what.endswith(".") for meaning in REASONS.values())
    assert all(meaning.advice for meaning in REASONS.values() if meaning.outcome is Outcome.FAILURE)


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: str(ending.reason))
def test_an_end_is_of_the_kind_that_its_reason_says(ending: Ending) -> None:
    assert ending.outcome is REASONS[ending.reason].outcome
    assert ending.final == (ending.outcome is Outcome.FAILURE and REASONS[ending.reason].final)
    assert ending.message


def test_the_ledger_knows_no_other_reasons_than_those_of_the_list() -> None:
    lua = "".join((LUA / f"{name}.lua").read_text() for name in ("tick", "rollback", "end_attempt", "cancel"))
    ends = re.findall(r"close_attempt\(id, '(\w+)', '(\w+)'", lua)
    assert ends
    assert all(REASONS[Reason(reason)].outcome == outcome for outcome, reason in ends)
    finished = re.findall(r"finish\(id, '(\w+)', '(\w+)'", lua)
    assert {reason for _, reason in finished} == {"canceled", "poisoned"}
    assert all(REASONS[Reason(reason)].final for _, reason in finished)


def test_rules_can_be_about_failures_that_are_retried() -> None:
    assert set(RULED) == {
        "exit_code", "signal", "oom", "disk_full", "timeout", "stalled", "setup", "worker_error",
    }  # fmt: skip
