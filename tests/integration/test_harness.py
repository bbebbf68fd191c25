"""The tests' own tools: what they claim must be true, or nothing that is built on them is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.harness.faults import Faults
from tests.harness.isolation import leftovers
from tests.harness.waiting import eventually

# A parent that ends at once and leaves a child in a session of its own behind.
ORPHAN = """
import subprocess, sys
quiet = subprocess.DEVNULL
print(subprocess.Popen(["sleep", sys.argv[1]], stdout=quiet, stderr=quiet, start_new_session=True).pid)
"""


def test_a_process_that_was_left_behind_is_found_named_and_killed() -> None:
    mark = "604801.5"
    parent = subprocess.run([sys.executable, "-c", ORPHAN, mark], capture_output=True, text=True, check=True)
    orphan = psutil.Process(int(parent.stdout))
    found = leftovers(timeout_s=0.0, is_ours=lambda process: mark in process.cmdline())
    assert found == [f"{orphan.pid}: sleep {mark}"]
    eventually("it is gone", lambda: not orphan.is_running(), 10)


def test_a_fault_point_is_armed_until_somebody_takes_it(tmp_path: Path) -> None:
    faults = Faults(tmp_path)
    faults.arm("claimed")
    faults.arm("uploaded", "stop", job="a")
    assert faults.armed("claimed")
    assert faults.armed("uploaded", "a")
    assert not faults.armed("uploaded")
    assert (tmp_path / "uploaded.a").read_text() == "stop"
    (tmp_path / "claimed").unlink()
    assert not faults.armed("claimed")
    faults.disarm()
    assert not faults.armed("uploaded", "a")


def test_waiting_in_vain_says_what_for_and_how_things_stand() -> None:
    with pytest.raises(AssertionError, match=r"(?s)not within 0 s: the sun rises \(last: 0\).*it is night"):
        eventually("the sun rises", lambda: 0, 0.0, lambda: "it is night")


def test_an_assertion_that_fails_counts_as_not_yet() -> None:
    looks: list[int] = []

    def look() -> list[int]:
        looks.append(1)
        assert len(looks) > 2, "too early"
        return looks

    assert eventually("three looks", look, 10) == [1, 1, 1]
