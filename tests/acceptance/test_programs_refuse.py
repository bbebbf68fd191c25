"""The programs of ``test_programs`` can fail: they refuse what does not fit together."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.programs import five_files
from tests.acceptance.programs.diary import REFUSED, Diary, Refused
from tests.harness.programs import ROOT, argv

STEPS = 4


def test_five_files_run_alone_end_as_they_must(tmp_path: Path) -> None:
    places = ["--checkpoint", f"{tmp_path}/state", "--output", f"{tmp_path}/out", "--diary", f"{tmp_path}/diary"]
    command = [sys.executable, *argv("five_files", "--seed", "7", "--steps", str(STEPS), *places)]
    subprocess.run(command, cwd=ROOT, check=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == five_files.undisturbed(7, STEPS)


@pytest.fixture
def two_steps(tmp_path: Path) -> tuple[Path, Path]:
    """The checkpoints of two steps in a row."""
    state = five_files.State.fresh(1)
    folders = tmp_path / "older", tmp_path / "newer"
    for folder in folders:
        if folder == folders[1]:
            shutil.copytree(folders[0], folder)
        folder.mkdir(exist_ok=True)
        state.advance()
        five_files.save(folder, state, 0)
    return folders


@pytest.mark.parametrize("name", five_files.SIZES)
def test_the_program_refuses_a_mixture_of_two_steps(two_steps: tuple[Path, Path], name: str, tmp_path: Path) -> None:
    older, newer = two_steps
    shutil.copy(older / name, newer / name)
    places = ["--checkpoint", str(newer), "--output", f"{tmp_path}/out", "--diary", f"{tmp_path}/diary"]
    command = [sys.executable, *argv("five_files", "--seed", "1", "--steps", str(STEPS), *places)]
    ended = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
    assert ended.returncode == REFUSED
    assert "REFUSED: a mixture of steps" in ended.stdout
    assert [line.what for line in Diary(tmp_path / "diary").read()] == ["refused"]


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda folder: (folder / five_files.INDEX).unlink(), "missing or too many"),
    "left over": (lambda folder: (folder / "weights.bin.draft").touch(), "missing or too many"),
    "cut in the middle": (lambda folder: cut(folder / five_files.WEIGHTS, 1000), "has the length"),
    "cut at the end": (lambda folder: os.truncate(folder / five_files.HISTORY, 5000), "does not end in a table"),
    "changed": (lambda folder: cut(folder / five_files.STATE, 1000, b"x" * 1000), "another digest"),
    "empty": (lambda folder: os.truncate(folder / five_files.OPTIMIZER, 0), "does not end in a table"),
}


def cut(path: Path, count: int, instead: bytes = b"") -> None:
    """Replace some bytes at a file's beginning."""
    path.write_bytes(instead + path.read_bytes()[count:])


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_program_refuses_what_is_damaged(two_steps: tuple[Path, Path], damage: str) -> None:
    do, why = DAMAGES[damage]
    do(two_steps[1])
    with pytest.raises(Refused, match=why):
        five_files.load(two_steps[1])


def test_a_copy_file_by_file_of_a_running_program_would_be_caught(tmp_path: Path) -> None:
    """What a naive sync does: whenever a file has not changed for a while, it is copied."""
    there, copy = tmp_path / "there", tmp_path / "copy"
    there.mkdir()
    state = five_files.State.fresh(1)
    refused = 0

    def copied(_: str = "") -> None:
        nonlocal refused
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(there, copy)  # nothing is written meanwhile: each file is whole
        try:
            five_files.load(copy)
        except Refused:
            refused += 1

    for _ in range(2):
        state.advance()
        five_files.save(there, state, 0, on_file=copied)
        copied()
    assert refused == 2 * (len(five_files.SIZES) - 1)
