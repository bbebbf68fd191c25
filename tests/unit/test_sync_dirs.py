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


def test_a_link_in_a_directorys_place_is_put_away_and_its_target_untouched(output: Path, tmp_path: Path) -> None:
    place = tmp_path / "cache"
    place.symlink_to(output)
    aside = Aside([place], tmp_path)
    assert aside.moved
    assert not place.is_symlink()  # the next job would empty what it leads to
    assert not aside.where(place).exists()
    aside.remove()
    assert (output / "sub" / "b").read_text() == "b"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_directory_that_a_link_on_its_path_leads_to_is_left_alone(output: Path, tmp_path: Path) -> None:
    """The command replaced a folder above its directory."""
    (tmp_path / "above").symlink_to(output)
    place = tmp_path / "above" / "sub"
    with pytest.raises(OSError, match="leads elsewhere"):
        empty(place)
    spare = tmp_path / "spare"
    spare.mkdir()
    aside = Aside([place], spare)
    aside.remove()
    assert (output / "sub" / "b").read_text() == "b"
    assert sorted(path.name for path in output.iterdir()) == ["a", "sub"]


def test_a_directory_that_is_gone_is_elsewhere_as_well(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    aside = Aside([gone], tmp_path / "spare")
    gone.mkdir()
    (gone / "next").write_text("the next job's")
    assert aside.moved
    assert not aside.where(gone).exists()
    assert not aside.where(gone / "sub").exists()
    aside.remove()
    assert (gone / "next").exists()


def test_a_link_is_put_back_when_another_directory_cannot_be_moved(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "cache"
    place.symlink_to(tmp_path / "anywhere")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "sub":
            raise OSError(errno.EACCES, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    assert not Aside([place, output], tmp_path / "spare").moved
    assert place.is_symlink()
    assert not list(tmp_path.glob(".kelpie-aside-*"))
