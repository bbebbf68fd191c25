"""``kelpie up``: the whole local stack in one terminal, used from another shell, and gone when it is told to go."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from kelpie_celery.local.processes import ManagedProcess
from kelpie_celery.local.servers import SeaweedServer, ValkeyServer
from tests.harness.looking import is_gone
from tests.harness.waiting import eventually

KELPIE = str(Path(sys.executable).with_name("kelpie"))
UP_S = 90.0
DOWN_S = 60.0


class Terminal:
    """``kelpie up`` in a terminal of its own."""

    def __init__(self, directory: Path, *options: str, env: dict[str, str] | None = None) -> None:
        self.directory = directory / "stack"
        argv = [KELPIE, "up", "--dir", str(self.directory), *options]
        environ = {**os.environ, "KELPIE_PULSE_S": "0.2", "KELPIE_MIN_LEASE_S": "3", **(env or {})}
        self.process = ManagedProcess("up", argv, env=environ, cwd=directory, log=directory / "terminal")

    @property
    def text(self) -> str:
        """What stands on the terminal."""
        log = self.process.log
        return log.read_text() if log.exists() else ""

    def await_text(self, words: str, timeout_s: float = UP_S) -> None:
        def seen() -> bool:
            return words in self.text or not self.process.running

        eventually(f"{words!r} stands on the terminal", seen, timeout_s, lambda: self.text)
        assert words in self.text, self.text

    def start(self) -> Terminal:
        self.process.start()
        self.await_text("kelpie is up")
        return self

    def shell(self, script: str, stdin: str = "") -> str:
        """The output of a script in another shell that has sourced the env file."""
        done = subprocess.run(
            ["sh", "-euc", f'. "{self.directory}/env"; {script}'],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={"PATH": f"{Path(KELPIE).parent}:{os.defpath}"},
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.text}"
        return done.stdout

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def worker(self, number: int) -> psutil.Process:
        ours = f"local-machine-{number}"
        return next(p for p in self.descendants() if p.environ().get("SALAD_MACHINE_ID") == ours)


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[list[Terminal]]:
    """The terminals that a test opened; killed at its end, and all that they started with them."""
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.process.kill()


def gone(processes: list[psutil.Process]) -> bool:
    return all(is_gone(process) for process in processes)


def job(script: str, **fields: object) -> str:
    return json.dumps(
        {"command": "sh", "arguments": ["-c", script], "container_group_id": "up-test", "sync": {}, **fields}
    )


def flower_status(url: str, password: str) -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Basic {b64encode(password.encode()).decode()}"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def submit(terminal: Terminal, definition: str) -> str:
    answer = json.loads(terminal.shell("kelpie submit --json -", definition))
    record = answer[0] if isinstance(answer, list) else answer
    return str(record["id"])


def test_up_runs_jobs_for_other_shells_replaces_what_dies_and_stops_on_sigterm(
    tmp_path: Path, terminals: list[Terminal]
) -> None:
    terminal = Terminal(tmp_path, "--workers", "2", "--group", "up-test")
    terminals.append(terminal)
    terminal.start()

    env_file = terminal.directory / "env"
    assert env_file.stat().st_mode & 0o777 == 0o600
    secret = terminal.shell('printf %s "$AWS_SECRET_ACCESS_KEY"')
    assert len(secret) > 20
    for word in ("redis://127.0.0.1:", "http://127.0.0.1:", ". stack/env"):
        assert word in terminal.text

    output = {
        "direction": "upload",
        "bucket": "kelpie",
        "prefix": "out/",
        "local_path": "results",
    }
    script = "mkdir -p results; echo 42 > results/answer"
    job_id = submit(terminal, job(script, sync={"after": [output]}))
    terminal.shell(f"kelpie wait {job_id}")
    s3 = SeaweedServer(terminal.directory / "s3", int(terminal.shell("echo ${AWS_ENDPOINT_URL##*:}")))
    assert s3.client().get_object(Bucket="kelpie", Key="out/answer")["Body"].read() == b"42\n"

    terminal.worker(1).kill()
    terminal.await_text("worker-1 ended (killed by SIGKILL); starting it again")
    terminal.await_text("worker-1 is started again")

    everything = terminal.descendants()
    terminal.process.send_signal(signal.SIGTERM)
    terminal.process.wait(DOWN_S)
    assert terminal.process.exit_code == 0
    eventually("every process is gone", lambda: gone(everything), 10)
    assert secret not in terminal.text


def test_a_second_ctrl_c_kills_a_stack_whose_job_does_not_want_to_end(
    tmp_path: Path, terminals: list[Terminal]
) -> None:
    terminal = Terminal(tmp_path, "--workers", "1", "--group", "up-test")
    terminals.append(terminal)
    terminal.start()
    started = tmp_path / "started"
    submit(terminal, job(f"trap '' TERM; touch {started}; while :; do sleep 1; done", grace_period=300))
    eventually("the job runs", started.exists, 30, lambda: terminal.text)

    everything = terminal.descendants()
    terminal.process.send_signal(signal.SIGINT)
    terminal.await_text("stopping", 10)
    assert terminal.process.running
    terminal.process.send_signal(signal.SIGINT)
    terminal.process.wait(20)
    assert terminal.process.exit_code == 1
    eventually("every process is gone, the job's too", lambda: gone(everything), 10)


def test_a_stack_on_a_redis_and_a_storage_of_the_users_starts_neither_and_shows_flower_behind_a_password(
    tmp_path: Path, terminals: list[Terminal]
) -> None:
    with ValkeyServer(tmp_path / "own") as own:
        options = ["--workers", "1", "--group", "up-test", "--no-s3", "--redis-url", own.url, "--flower"]
        terminal = Terminal(tmp_path, *options, env={"AWS_ACCESS_KEY_ID": "mine"})
        terminals.append(terminal)
        terminal.start()
        assert not {p.name() for p in terminal.descendants()} & {"valkey-server", "weed"}
        assert "AWS_" not in (terminal.directory / "env").read_text()
        assert terminal.worker(1).environ()["AWS_ACCESS_KEY_ID"] == "mine"
        job_id = submit(terminal, job("true"))
        terminal.shell(f"kelpie wait {job_id}")

        url, password = terminal.shell('echo "$FLOWER_URL $FLOWER_BASIC_AUTH"').split()
        assert url in terminal.text
        assert password not in terminal.text
        assert flower_status(url, password) == 200
        assert flower_status(url, "kelpie:guess") == 401

        other = Terminal(tmp_path, "--workers", "1", "--redis-url", own.url)
        other.process.log = tmp_path / "second-terminal"
        terminals.append(other)
        other.process.start()
        assert other.process.wait(30) not in (0, None)
        assert "another 'kelpie up'" in other.text

        terminal.process.send_signal(signal.SIGINT)
        terminal.process.wait(DOWN_S)
        assert terminal.process.exit_code == 0
        assert own.running
