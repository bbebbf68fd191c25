"""Scratch folders outlive no worker for long."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kelpie_worker.scratch import Scratch, remove_abandoned

DIES = """
import os, sys
from pathlib import Path
from kelpie_worker.scratch import Scratch
scratch = Scratch(Path(sys.argv[1]))
(scratch.path / "copy").write_text("x")
print(scratch.path, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_folder_goes_with_its_attempt_and_all_with_the_worker(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    with scratch.folder() as folder:
        (folder / "copy").write_text("x")
    assert not folder.exists()
    scratch.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_worker_left_is_removed_and_what_a_live_one_holds_is_kept(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], stdout=subprocess.PIPE, check=False, text=True)
    dead = Path(ended.stdout.strip())
    assert (dead / "copy").exists()
    alive = Scratch(tmp_path)
    foreign = tmp_path / "kelpie-worker-foreign"
    foreign.mkdir()
    Scratch(tmp_path)
    assert not dead.exists()
    assert os.access(alive.path, os.W_OK)
    assert foreign.exists()


def test_a_folder_that_another_worker_takes_for_a_dead_ones_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given two workers that start at once: one looks for the dead while the other has not locked its folder yet."""
    looked: list[list[Path]] = []
    flock = fcntl.flock

    def slow(lock: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX and not looked:
            looked.append(list(tmp_path.glob("kelpie-worker-*")))
            remove_abandoned(tmp_path)
        flock(lock, operation)

    monkeypatch.setattr(fcntl, "flock", slow)
    scratch = Scratch(tmp_path)
    (taken,) = looked[0]
    assert not taken.exists()
    assert (scratch.path / "lock").exists()
    remove_abandoned(tmp_path)
    assert scratch.path.exists()
