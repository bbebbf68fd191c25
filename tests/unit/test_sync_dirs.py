from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kelpie_worker.sync.dirs import Aside, empty, prepare, remove_stale_asides


@pytest.fixture
def output(tmp_path: Path) -> Path:
    directory = tmp_path / "out"
    (directory / "sub").mkdir(parents=True)
    (directory / "a").write_text("a")
    (directory / "sub" / "b").write_text("b")
    return directory


def test_emptying_leaves_the_directory_and_follows_no_link(output: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    (output / "link").symlink_to(outside)
    (output / "sub" / "link").symlink_to(outside / "mine")
    empty(output)
    assert list(output.iterdir()) == []
    assert (outside / "mine").read_text() == "mine"


def test_a_link_in_the_directorys_place_is_removed_and_its_target_kept(output: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(output)
    prepare(link)
    assert link.is_dir()
    assert not link.is_symlink()
    assert (output / "a").exists()


def test_a_directory_that_does_not_exist_is_made(tmp_path: Path) -> None:
    prepare(tmp_path / "x" / "y")
    assert (tmp_path / "x" / "y").is_dir()


def test_what_is_moved_aside_is_elsewhere_and_the_directory_is_free(output: Path, tmp_path: Path) -> None:
    owner = output.stat()
    aside = Aside([output], tmp_path)
    assert aside.moved
    assert list(output.iterdir()) == []
    assert output.stat().st_ino == owner.st_ino  # the directory itself stays
    assert (aside.where(output) / "sub" / "b").read_text() == "b"
    assert (aside.where(output / "sub") / "b").read_text() == "b"
    aside.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_cannot_be_moved_stays_where_it_is(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a mount point, whose neighbours are on another file system."""
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "sub" and "aside" in str(target):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    aside = Aside([output], tmp_path / "spare")
    assert not aside.moved
    assert aside.where(output) == output
    assert (output / "a").read_text() == "a"
    assert (output / "sub" / "b").read_text() == "b"
    assert not list(tmp_path.glob(".kelpie-aside-*"))


def test_all_directories_are_moved_or_none(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "stuck").write_text("x")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "stuck":
            raise OSError(errno.EACCES, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    assert not Aside([output, other], tmp_path / "spare").moved
    assert (output / "a").read_text() == "a"


def test_what_a_dead_worker_left_aside_is_removed_and_what_a_living_one_holds_is_not(
    output: Path, tmp_path: Path
) -> None:
    aside = Aside([output], tmp_path)
    remove_stale_asides(output)
    assert (aside.where(output) / "a").exists()
    for lock in aside._locks:
        os.close(lock)  # as the kernel does for a process that died
    aside._locks.clear()
    remove_stale_asides(output)
    assert not list(tmp_path.glob(".kelpie-aside-*"))
