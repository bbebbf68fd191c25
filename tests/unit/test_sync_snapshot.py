from __future__ import annotations

import os
from pathlib import Path

import pytest

from kelpie_worker.sync.errors import LocalFileError
from kelpie_worker.sync.snapshot import Snapshot, take


def test_regular_files_are_seen_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a" / "b" / "c").write_text("123")
    (tmp_path / "d").write_text("")
    snapshot = take(tmp_path)
    assert {name: stamp.size_bytes for name, stamp in snapshot.files.items()} == {"a/b/c": 3, "d": 0}


def test_a_replaced_file_has_another_stamp_even_with_the_same_time_and_size(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    before = take(tmp_path)
    new = tmp_path / "b"
    new.write_text("new")
    os.utime(new, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    new.rename(path)
    assert take(tmp_path) != before


def test_a_renamed_file_has_the_same_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    before = take(tmp_path).files["a"]
    (tmp_path / "a").rename(tmp_path / "b")
    assert take(tmp_path).files["b"].is_same_content(before)


def test_a_directory_that_is_not_there_is_told_from_an_empty_one(tmp_path: Path) -> None:
    assert take(tmp_path).exists
    assert not take(tmp_path / "nothing").exists


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("kelpie_worker.sync.snapshot.os.scandir", refuse)
    with pytest.raises(LocalFileError, match=str(tmp_path)):
        take(tmp_path)


def test_a_folder_that_vanishes_under_the_walk_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def vanish(path: str) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("kelpie_worker.sync.snapshot.os.scandir", vanish)
    assert take(tmp_path).files == {}


def test_a_link_in_the_directorys_place_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("1")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    assert not take(tmp_path / "link").exists
    (tmp_path / "above").symlink_to(tmp_path)
    assert not take(tmp_path / "above" / "there").exists


def test_folders_with_reserved_names_are_told(tmp_path: Path) -> None:
    (tmp_path / "a" / "x.kelpie").mkdir(parents=True)
    (tmp_path / "a" / "x.kelpie" / "file").write_text("1")
    (tmp_path / "y.kelpie").write_text("a file may have such a name")
    snapshot = take(tmp_path)
    assert snapshot.reserved == ("a/x.kelpie",)
    assert list(snapshot.files) == ["y.kelpie"]


def test_links_are_noted_with_their_text_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "folder-link").symlink_to("../there")
    (tmp_path / "dangling").symlink_to("/no/such\nplace")
    (tmp_path / ".kelpie-tmp-1").symlink_to("there")
    (tmp_path / "not-text").symlink_to("\udcff")
    snapshot = take(tmp_path)
    assert snapshot.links == {"a/folder-link": "../there", "dangling": "/no/such\nplace", "not-text": "\udcff"}
    assert list(snapshot.files) == ["there/file"]


def test_folders_are_noted_empty_ones_too(tmp_path: Path) -> None:
    (tmp_path / "a" / "empty").mkdir(parents=True)
    (tmp_path / "a" / "x.kelpie" / "below").mkdir(parents=True)
    assert take(tmp_path).folders == {"a", "a/empty"}


def test_permission_bits_are_noted_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder").chmod(0o2750)
    (tmp_path / "program").touch()
    (tmp_path / "program").chmod(0o4755)
    (tmp_path / "link").symlink_to("program")
    (tmp_path / "secret").touch(0o600)
    assert take(tmp_path).modes == {"folder": 0o750, "program": 0o755, "secret": 0o600}


def test_what_is_neither_file_nor_link_nor_folder_is_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert take(tmp_path) == Snapshot({})


@pytest.mark.parametrize("change", ["link", "folder", "mode of a folder"])
def test_snapshots_differ_by_all_that_they_note(tmp_path: Path, change: str) -> None:
    (tmp_path / "a").mkdir()
    before = take(tmp_path)
    assert take(tmp_path) == before
    if change == "link":
        (tmp_path / "link").symlink_to("a")
    elif change == "folder":
        (tmp_path / "b").mkdir()
    else:
        (tmp_path / "a").chmod(0o700)
    assert take(tmp_path) != before


def test_a_file_that_takes_the_place_of_a_link_under_the_walk_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").symlink_to("nowhere")
    (tmp_path / "new").write_text("123")
    readlink = os.readlink

    def readlink_late(path: str) -> str:
        (tmp_path / "new").rename(tmp_path / "a")
        return readlink(path)

    monkeypatch.setattr("kelpie_worker.sync.snapshot.os.readlink", readlink_late)
    snapshot = take(tmp_path)
    assert snapshot.files["a"].size_bytes == 3
    assert snapshot.modes["a"] == (tmp_path / "a").stat().st_mode & 0o777
    assert snapshot.links == {}
