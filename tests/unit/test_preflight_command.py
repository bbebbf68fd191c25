from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from kelpie_celery.errors import DirectoryError
from kelpie_celery.local.errors import LocalStackError
from kelpie_worker.preflight import folder
from kelpie_worker.preflight import verify as module
from tests.unit.cli_harness import Cli, cli

__all__ = ["cli"]  # a fixture

STATE = {"bucket": "bbb", "prefix": "run/state", "local_path": "state", "direction": "upload"}


@pytest.fixture(autouse=True)
def _nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a stack was started")

    monkeypatch.setattr(module, "Rig", fail)


def definition(**more: Any) -> str:
    base = {"command": sys.executable, "container_group_id": "g", "sync": {"during": [STATE]}}
    return json.dumps({**base, **more})


def test_a_job_without_a_checkpoint_is_told_what_to_add(cli: Cli, tmp_path: Path) -> None:
    answer = cli("verify", "-", "--directory", str(tmp_path), "--json", stdin=definition(sync={}))
    assert answer.code == 1
    assert answer.document["resumes"] is False
    assert "sync.during" in answer.document["findings"][0]["mend"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"command": "no-such-program-here"}, "'no-such-program-here' is not to be found"),
        ({"command": "./not-here"}, "'./not-here' is not to be found"),
        ({"commnd": "true"}, "did you mean 'command'"),
        ({"sync": {"during": [{**STATE, "local_path": "/usr/lib"}]}}, "/usr/lib"),
        ({"sync": {"during": [STATE], "before": [{"bucket": "data", "prefix": "set", "local_path": "in",
                                                  "direction": "download"}]}}, "--input data/set=DIR"),
    ],
)  # fmt: skip
def test_what_cannot_be_tried_ends_with_2_and_one_line(
    cli: Cli, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    answer = cli("verify", "-", "--directory", str(tmp_path), stdin=definition(**change))
    assert answer.code == 2, answer
    assert told in answer.err
    assert answer.err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--directory", "/nonesuch"], "is no directory"),
        (["--input", "data=x"], "must be BUCKET/PREFIX=DIR"),
        (["--input", "data/set=/nonesuch"], "is no directory"),
        (["--input", "data/set=/"], "is no input of the job"),
        (["--timeout", "soon"], "is no duration"),
    ],
)
def test_wrong_options_end_with_2_before_anything_is_started(
    cli: Cli, tmp_path: Path, argv: list[str], told: str
) -> None:
    given = argv if "--directory" in argv else [*argv, "--directory", str(tmp_path)]
    answer = cli("verify", "-", *given, stdin=definition())
    assert answer.code == 2, answer
    assert told in answer.err


@pytest.mark.parametrize("linked", ["state", "deep"])
def test_a_directory_of_the_job_that_is_a_link_is_refused_as_a_worker_would_empty_what_it_leads_to(
    cli: Cli, tmp_path: Path, linked: str
) -> None:
    home, precious = tmp_path / "home", tmp_path / "precious"
    home.mkdir()
    precious.mkdir()
    (home / linked).symlink_to(precious)
    sync = {"during": [{**STATE, "local_path": "state" if linked == "state" else "deep/state"}]}
    answer = cli("verify", "-", "--directory", str(home), stdin=definition(sync=sync))
    assert answer.code == 2
    assert "a link on its path" in answer.err


def test_links_within_the_directory_lead_into_the_copy_and_others_where_they_led(tmp_path: Path) -> None:
    home, copy = tmp_path / "home", tmp_path / "copy"
    (home / "real").mkdir(parents=True)
    (home / "real" / "a").write_text("mine")
    (home / "inside").symlink_to("real")
    (home / "outside").symlink_to(tmp_path)
    (home / ".venv").mkdir()
    (home / ".git").mkdir()
    folder.copy(home, copy)
    (copy / "inside" / "a").write_text("theirs")
    assert (home / "real" / "a").read_text() == "mine"
    assert (copy / "outside").resolve() == tmp_path
    assert (copy / ".venv").resolve() == home / ".venv"
    assert not (copy / ".git").exists()


def test_two_definitions_at_once_are_refused(cli: Cli) -> None:
    answer = cli("verify", "-", stdin=f"[{definition()}, {definition()}]")
    assert answer.code == 2
    assert "one at a time" in answer.err


def test_a_directory_that_is_too_large_is_told_with_what_is_large(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kelpie_worker.preflight.folder.MAX_BYTES", 1000)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "pack").write_bytes(bytes(5000))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "set").write_bytes(bytes(2000))
    answer = cli("verify", "-", "--directory", str(tmp_path), stdin=definition())
    assert answer.code == 2
    assert "'data'" in answer.err


def test_a_link_that_leads_to_itself_is_copied_as_it_is(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "loop").symlink_to("loop")
    folder.check(home)
    folder.copy(home, tmp_path / "copy")
    assert (tmp_path / "copy" / "loop").is_symlink()


def test_a_directory_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("kelpie_worker.preflight.folder.os.scandir", refuse)  # root may read everything
    with pytest.raises(DirectoryError, match=r"cannot be copied \(Permission denied\)"):
        folder.check(tmp_path)


def test_nothing_is_left_where_the_servers_cannot_even_be_made(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise LocalStackError("no Redis server here")

    monkeypatch.setattr(module, "Rig", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "home").mkdir()
    answer = cli("verify", "-", "--directory", str(tmp_path / "home"), stdin=definition())
    assert answer.code == 2
    assert list((tmp_path / "temporary").iterdir()) == []
