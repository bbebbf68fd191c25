"""The shell scripts of the images, run here with as much of an image as they need."""

from __future__ import annotations

import subprocess
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "containers"


def run(script: str, *args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    path = f"{cwd}:/usr/bin:/bin"
    return subprocess.run(
        [str(FOLDER / script), *args], cwd=cwd, env={"PATH": path, **env}, capture_output=True, text=True, timeout=30,
        check=False,
    )  # fmt: skip


def pretend(program: str, cwd: Path) -> None:
    """A program that tells its arguments, its stdin and the environment that it got."""
    (cwd / program).write_text('#!/bin/sh\necho "$@"\ncat\n')
    (cwd / program).chmod(0o755)


def test_new_secrets_are_for_their_owner_alone_and_never_replace_old_ones(tmp_path: Path) -> None:
    assert run("make-env", cwd=tmp_path).returncode == 0
    file = tmp_path / ".env"
    first = file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    values = [line.split("=", 1)[1] for line in first.splitlines()]
    assert len(set(values)) == len(values) == 4
    assert all(len(value) >= 20 for value in values)
    again = run("make-env", cwd=tmp_path)
    assert again.returncode == 1
    assert "is there already" in again.stderr
    assert file.read_text() == first
    run("make-env", "other", cwd=tmp_path)
    assert not set((tmp_path / "other").read_text().splitlines()) & set(first.splitlines())


def test_redis_gets_its_password_by_stdin_and_not_on_its_command_line(tmp_path: Path) -> None:
    pretend("redis-server", tmp_path)
    done = run("redis-server.sh", cwd=tmp_path, REDIS_PASSWORD="a1-b2")
    arguments, *config = done.stdout.splitlines()
    assert arguments == "-"
    assert "requirepass a1-b2" in config
    assert "appendfsync always" in config


def test_redis_does_not_start_without_a_password_or_with_one_that_no_url_can_hold(tmp_path: Path) -> None:
    pretend("redis-server", tmp_path)
    for env, said in (({}, "make-env"), ({"REDIS_PASSWORD": "a b\nsave 1 1"}, "letters, digits")):
        done = run("redis-server.sh", cwd=tmp_path, **env)
        assert done.returncode != 0
        assert said in done.stderr
        assert done.stdout == ""


def test_the_storage_does_not_start_without_its_keys(tmp_path: Path) -> None:
    pretend("weed", tmp_path)
    done = run("storage-server.sh", cwd=tmp_path, AWS_ACCESS_KEY_ID="k")
    assert done.returncode != 0
    assert "AWS_SECRET_ACCESS_KEY" in done.stderr
