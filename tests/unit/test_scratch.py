"""Scratch folders outlive no worker for long."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kelpie_worker.scratch import Scratch

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
