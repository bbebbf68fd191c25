"""Where the cache of inputs is, whom it trusts, and what it does when it cannot be had."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

import pytest

from kelpie_celery.settings import Settings, load_settings
from kelpie_worker.sync import cached_inputs
from kelpie_worker.sync.cached_inputs import cache_directories, open_cached_inputs


def settings(**more: str) -> Settings:
    return load_settings({"KELPIE_REDIS_URL": "rediss://h", "KELPIE_CACHE_BYTES": "1G", **more})


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached_inputs._warn_once.cache_clear()
    monkeypatch.setattr(cached_inputs, "_USUAL", tmp_path / "usual")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))


def test_without_bytes_there_is_no_cache_and_nothing_is_made(tmp_path: Path) -> None:
    without = settings(KELPIE_CACHE_BYTES="0", KELPIE_CACHE_DIR=str(tmp_path / "c"))

    assert (open_cached_inputs(without), cache_directories(without)) == (None, [])
    assert list(tmp_path.iterdir()) == []


def test_the_usual_place_comes_first_and_the_temporary_directory_next(tmp_path: Path) -> None:
    assert cache_directories(settings()) == [tmp_path / "usual", tmp_path / "tmp" / "kelpie-cache"]
    assert open_cached_inputs(settings())
    assert (tmp_path / "usual" / "inputs-v1" / "objects").is_dir()

    (tmp_path / "usual" / "inputs-v1").chmod(0o777)
    assert open_cached_inputs(settings())
    assert (tmp_path / "tmp" / "kelpie-cache" / "inputs-v1" / "objects").is_dir()


def test_a_place_that_is_named_is_the_only_one_and_relative_to_the_working_directory(tmp_path: Path) -> None:
    named = settings(KELPIE_WORKDIR=str(tmp_path / "work"), KELPIE_CACHE_DIR="cache")

    assert cache_directories(named) == [tmp_path / "work" / "cache"]
    assert open_cached_inputs(named)
    assert oct((tmp_path / "work" / "cache" / "inputs-v1").stat().st_mode & 0o777) == "0o700"


@pytest.mark.parametrize("what", ["home", "directory", "link", "file", "owner"])
def test_a_place_that_somebody_else_could_fill_is_refused_with_a_warning_once(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "cache"
    directory.mkdir()
    home = directory / "inputs-v1"
    if what == "home":
        home.mkdir()
        home.chmod(0o777)
    elif what == "directory":
        directory.chmod(0o777)
    elif what == "link":
        (tmp_path / "elsewhere").mkdir()
        home.symlink_to(tmp_path / "elsewhere")
    elif what == "file":
        home.write_text("")
    else:
        home.mkdir()
        monkeypatch.setattr(os, "geteuid", lambda: 4321)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert open_cached_inputs(settings(KELPIE_CACHE_DIR=str(directory))) is None

    assert [getattr(record, "action", "") for record in caplog.records] == ["cache_failed"]


def test_a_directory_as_the_temporary_one_in_which_all_may_write_but_not_rename_is_taken(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o1777)

    assert open_cached_inputs(settings(KELPIE_CACHE_DIR=str(tmp_path / "cache")))
