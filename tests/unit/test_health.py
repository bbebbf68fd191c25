"""A worker's health as a file, and what a probe makes of it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kelpie_celery.clock import SystemClock
from kelpie_celery.health import SIZE_BYTES, Health, HealthFile, default_path, path_of, verdict
from kelpie_celery.settings import load_settings
from kelpie_celery.watch import health_path
from kelpie_worker import entrypoint

WELL = Health(pid=os.getpid(), at=100.0, fresh_s=20.0, ok=True, why="takes jobs", jobs=2)


@pytest.fixture
def file(tmp_path: Path) -> HealthFile:
    return HealthFile(tmp_path / "health")


def told(file: HealthFile, health: Health, now: float = 101.0) -> tuple[bool, str]:
    file.write(health)
    return verdict(file.path, now)


def test_a_worker_that_is_well_is_told_with_its_jobs(file: HealthFile) -> None:
    assert told(file, WELL) == (True, "takes jobs; jobs at work: 2")
    assert file.path.stat().st_mode & 0o777 == 0o600


def test_a_worker_that_says_that_it_is_not_well_is_not(file: HealthFile) -> None:
    assert told(file, replace(WELL, ok=False, why="deaf")) == (False, "deaf; jobs at work: 2")


@pytest.mark.parametrize(("now", "well"), [(120.0, True), (121.0, False), (90.0, False)])
def test_a_word_is_good_for_as_long_as_it_says(file: HealthFile, now: float, well: bool) -> None:
    """Also after a reboot, by whose clock it lies in the future."""
    assert told(file, WELL, now)[0] is well


def test_a_worker_that_is_gone_is_told(file: HealthFile) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert told(file, replace(WELL, pid=gone.pid)) == (False, f"the worker (pid {gone.pid}) is gone")


def test_before_its_first_word_and_after_its_last_a_worker_is_not_well(file: HealthFile) -> None:
    assert "there is no" in verdict(file.path, 1.0)[1]
    file.write(WELL)
    file.close()
    assert not file.path.exists()
    assert verdict(file.path, 1.0)[0] is False


def test_it_is_written_in_place_and_never_grows(file: HealthFile) -> None:
    for number in range(3):
        file.write(replace(WELL, why="x" * 10_000, jobs=number))
        assert file.path.stat().st_size == SIZE_BYTES
    assert verdict(file.path, 101.0)[0]


def test_it_is_not_written_through_somebody_elses_link_or_into_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(OSError, match=name):
            HealthFile(tmp_path / name).write(WELL)
    assert (tmp_path / "victim").read_text() == "mine"


@given(st.binary(max_size=200) | st.sampled_from([b"[]", b"null", b'{"pid": []}', b'{"pid": 1e999}', b'{"pid": -1}']))
def test_whatever_the_file_holds_a_probe_is_answered(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("health") / "f"
    path.write_bytes(raw)
    assert verdict(path, 1.0)[0] is False


def test_worker_and_probe_find_the_same_file_by_their_environment(tmp_path: Path) -> None:
    base = {"KELPIE_REDIS_URL": " rediss://:secret-canary@h/0\n", "SALAD_CONTAINER_GROUP_ID": "g"}
    environments = [
        base, base | {"SALAD_MACHINE_ID": "m1"}, base | {"SALAD_MACHINE_ID": "m1", "SALAD_INSTANCE_ID": "i"},
        base | {"SALAD_CONTAINER_GROUP_ID": "other"}, base | {"KELPIE_HEALTH_FILE": str(tmp_path / "mine")},
    ]  # fmt: skip
    paths = [path_of(environ) for environ in environments]
    assert paths == [health_path(load_settings(environ)) for environ in environments]
    assert len(set(paths)) == len(paths)
    assert "secret" not in str(paths[0])
    assert default_path("rediss://another", "g", "m", "") != default_path("rediss://h", "g", "m", "")


# -- the command --------------------------------------------------------------------------------------------------


def test_the_probe_says_why_in_one_line_and_exits_accordingly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: HealthFile
) -> None:
    monkeypatch.setenv("KELPIE_HEALTH_FILE", str(file.path))
    for health, code, words in ((None, 1, "not well: no worker"), (WELL, 0, "ok: takes jobs")):
        if health:
            file.write(replace(health, at=SystemClock().boottime()))
        with pytest.raises(SystemExit) as exit_:
            entrypoint.main(["health"])
        out = capsys.readouterr().out
        assert (exit_.value.code, out.count("\n")) == (code, 1)
        assert out.startswith(words)


def test_a_probe_needs_no_settings_and_loads_neither_celery_nor_pydantic(tmp_path: Path) -> None:
    code = (
        "import sys; from kelpie_worker.entrypoint import main\n"
        "try: main(['health'])\n"
        "except SystemExit as e: print(e.code, sorted({'celery', 'pydantic', 'redis', 'kombu'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"KELPIE_HEALTH_FILE": str(tmp_path / "none")}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "1 []"


def test_what_is_no_command_is_told_with_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        entrypoint.main(["healt"])
    assert exit_.value.code == entrypoint.EX_USAGE
    assert "usage: kelpie-worker [health]" in capsys.readouterr().err
    entrypoint.main(["--help"])
    assert "SALAD_CONTAINER_GROUP_ID" in capsys.readouterr().out
