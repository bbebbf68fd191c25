from __future__ import annotations

import os
from pathlib import Path

import pytest

from kelpie_worker.sync.errors import LocalFileError
from kelpie_worker.sync.snapshot import take


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
