"""Directories that workers of one machine claim: never two at once; cleaned after a death, but not from the living."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kelpie_worker.places import Places
from kelpie_worker.scratch import Scratch
from kelpie_worker.sync.dirs import Aside

DIES = """
import json, os, sys
from pathlib import Path
from kelpie_worker.scratch import Scratch
from kelpie_worker.sync.dirs import Aside
home, paths, moved = Path(sys.argv[1]), [Path(path) for path in sys.argv[2].split(",")], sys.argv[3:]
scratch = Scratch(home)
claim = scratch.claims.take(paths)
for path in paths:
    path.mkdir(exist_ok=True)
    (path / "left").write_text("x")
if moved:
    aside = Aside(paths, scratch.path)
    claim.let_go()
print(scratch.path, flush=True)
os.kill(os.getpid(), 9)
"""


def dead_worker(home: Path, *paths: Path, moved: bool = False) -> Path:
    """A worker that died with these directories in use; its scratch folder."""
    argv = [sys.executable, "-c", DIES, str(home), ",".join(map(str, paths)), *(["moved"] if moved else [])]
    ended = subprocess.run(argv, stdout=subprocess.PIPE, check=False, text=True)
    assert ended.returncode == -9
    return Path(ended.stdout.strip())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "tmp"
    made.mkdir()
    return made


@pytest.fixture
def other(home: Path) -> Iterator[Scratch]:
    """A worker of this machine that lives."""
    scratch = Scratch(home)
    yield scratch
    scratch.close()


def test_what_a_dead_worker_left_is_emptied_by_the_next(home: Path, tmp_path: Path) -> None:
    one, two, foreign = tmp_path / "one", tmp_path / "two", tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "mine").touch()
    folder = dead_worker(home, one, two)
    assert (one / "left").exists()
    Scratch(home).close()
    assert [list(path.iterdir()) for path in (one, two)] == [[], []]
    assert not folder.exists()
    assert (foreign / "mine").exists()


def test_what_a_dead_worker_had_moved_aside_is_removed_and_the_directory_left_alone(home: Path, tmp_path: Path) -> None:
    """Given a worker that died while outputs went up, and whose slot was free again."""
    one = tmp_path / "one"
    dead_worker(home, one, moved=True)
    assert list(tmp_path.glob(".kelpie-aside-one-*"))
    (one / "next").write_text("of somebody who needs no claim")
    Scratch(home).close()
    assert not list(tmp_path.glob(".kelpie-aside-*"))
    assert (one / "next").exists()


@pytest.mark.parametrize("below", ["", "below"])
def test_what_a_living_worker_has_by_now_is_not_emptied(home: Path, other: Scratch, tmp_path: Path, below: str) -> None:
    one = tmp_path / "one"
    folder = dead_worker(home, one)
    assert other.claims.take([one / below]) is not None
    Scratch(home).close()
    assert (one / "left").exists()
    assert not folder.exists()


def test_nobody_takes_a_directory_while_it_is_cleaned(
    home: Path, other: Scratch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = tmp_path / "one"
    dead_worker(home, one)
    taken = []

    def while_emptying(path: Path) -> None:
        taken.append(other.claims.take([path]))
        (path / "left").unlink()

    monkeypatch.setattr("kelpie_worker.claims.empty", while_emptying)
    Scratch(home).close()
    assert taken == [None]
    assert other.claims.take([one]) is not None


@pytest.mark.parametrize(
    ("mine", "theirs", "clash"),
    [("a", "a", True), ("a", "a/b", True), ("a/b", "a", True), ("a", "ab", False), ("a/b", "a/c", False)],
)
def test_two_workers_never_have_one_directory(
    home: Path, other: Scratch, tmp_path: Path, mine: str, theirs: str, clash: bool
) -> None:
    me = Scratch(home)
    claim = me.claims.take([tmp_path / mine])
    assert claim is not None
    assert (other.claims.take([tmp_path / theirs]) is None) is clash
    claim.let_go()
    assert other.claims.take([tmp_path / theirs]) is not None
    me.close()


def test_a_dead_workers_claim_keeps_nobody_out(home: Path, other: Scratch, tmp_path: Path) -> None:
    dead_worker(home, tmp_path / "one")
    assert other.claims.take([tmp_path / "one"]) is not None


def test_a_folder_that_others_can_write_to_is_not_believed(home: Path, tmp_path: Path) -> None:
    """Given somebody who would have a worker of root's empty a directory."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "mine").touch()
    folder = home / "kelpie-worker-planted"
    (folder / "claims").mkdir(parents=True)
    (folder / "lock").touch()
    (folder / "claims" / "x.json").write_text(json.dumps({"uses": [str(victim)]}))
    folder.chmod(0o777)
    Scratch(home).close()
    assert (victim / "mine").exists()


def test_a_claim_that_cannot_be_read_is_passed_over(home: Path, tmp_path: Path) -> None:
    folder = dead_worker(home, tmp_path / "one")
    for text in ("", "[]", "{", '{"uses": 3}'):
        (folder / "claims" / "broken.json").write_text(text)
        (folder / "claims" / "broken2.json").write_text(text)
    Scratch(home).close()
    assert list((tmp_path / "one").iterdir()) == []


async def test_an_attempt_holds_its_claim_as_long_as_its_directories(
    home: Path, other: Scratch, tmp_path: Path
) -> None:
    me = Scratch(home)
    places = Places([None, None], me.claims)
    async with places.slot() as place:
        await place.take([tmp_path / "one"])
        assert other.claims.take([tmp_path / "one"]) is None
        place.leave()
        freed = other.claims.take([tmp_path / "one"])
        assert freed is not None
        assert [file.name for file in (me.path / "claims").iterdir()], "what was moved aside is remembered"
        freed.close()
    assert not list((me.path / "claims").iterdir())
    me.close()


def test_an_aside_of_the_living_is_left_alone(home: Path, tmp_path: Path) -> None:
    one = tmp_path / "one"
    dead_worker(home, one)
    aside = Aside([one], tmp_path)
    Scratch(home).close()
    assert (aside.where(one) / "left").exists()
    aside.remove()


def test_a_worker_whose_turn_it_is_not_asks_again(home: Path, tmp_path: Path) -> None:

    me = Scratch(home)
    turn = os.open(home / f"kelpie-claims-{os.geteuid()}", os.O_CREAT | os.O_RDWR)
    fcntl.flock(turn, fcntl.LOCK_EX)
    assert me.claims.take([tmp_path / "one"]) is None
    os.close(turn)
    assert me.claims.take([tmp_path / "one"]) is not None
    me.close()
