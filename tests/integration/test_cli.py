"""The real command in processes of its own, against a real server."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kelpie_celery.client import Kelpie
from kelpie_celery.ledger.types import Ending, FencingToken, Granted
from kelpie_celery.lifecycle import Outcome, Phase, Reason, Status
from kelpie_celery.local.binaries import script
from kelpie_celery.local.ports import reserve
from kelpie_celery.local.servers import ValkeyServer
from tests.harness.isolation import FOREIGN_PREFIXES

BOUND_S = 60.0
CANARY = "canary-8c1f-secret"
COMMAND = str(script("kelpie", "kelpie-celery"))

Done = subprocess.CompletedProcess[str]


def definition(**more: Any) -> dict[str, Any]:
    return {"command": "true", "container_group_id": "g", "sync": {}, **more}


class Cli:
    """Runs ``kelpie`` against one server."""

    def __init__(self, url: str) -> None:
        bare = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN_PREFIXES)}
        self.env = {**bare, "KELPIE_REDIS_URL": url}

    def __call__(self, *argv: str, stdin: str = "", code: int | None = 0) -> Done:
        done = subprocess.run(
            [COMMAND, *argv], env=self.env, input=stdin, capture_output=True, text=True, timeout=BOUND_S, check=False
        )
        assert code in (None, done.returncode), done
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def start(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [COMMAND, *argv], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )

    def submit(self, **more: Any) -> str:
        return self("submit", "-", stdin=json.dumps(definition(**more))).stdout.strip()


@pytest.fixture
def cli(redis_url: str) -> Cli:
    return Cli(redis_url)


@pytest.fixture
def kelpie(redis_url: str) -> Iterator[Kelpie]:
    with Kelpie(redis_url) as client:
        yield client


@pytest.fixture
def nobodys_port() -> Iterator[int]:
    """A port on which nobody listens."""
    block = reserve()
    yield block[0]
    block.release()


def claim(kelpie: Kelpie, job_id: str) -> FencingToken:
    granted = kelpie.app.ledger.claim(job_id, uuid.uuid4().hex, "machine-1", "w@m", None, may_run=True)
    assert isinstance(granted, Granted)
    return granted.token


def complete(kelpie: Kelpie, token: FencingToken) -> None:
    kelpie.app.ledger.end_attempt(token, Ending(Outcome.COMPLETED, Reason.DONE, result={"exit_code": 0}))


def line_with(process: subprocess.Popen[str], words: str) -> str:
    """The first line on stderr that holds ``words``; the test's own time-out bounds it."""
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return line
    raise AssertionError(f"stderr ended without {words!r}")


def test_a_jobs_life_on_the_command_line(cli: Cli, kelpie: Kelpie) -> None:
    job_id = cli.submit(environment={"TOKEN": CANARY}, tags={"name": "life"})
    outputs = [cli("list", "--json", "--group", "g")]
    token = claim(kelpie, job_id)
    kelpie.app.ledger.renew(token, Phase.EXECUTING, '{"progress": 0.5}')
    outputs += [cli("get", job_id), cli("cancel", job_id)]
    assert "machine-1" in outputs[-2].stdout
    assert outputs[-1].stdout == f"{job_id} canceling\n"
    kelpie.app.ledger.end_attempt(token, Ending(Outcome.CANCELED, Reason.CANCELED))
    outputs.append(cli("wait", job_id, "--json", code=1))
    assert json.loads(outputs[-1].stdout)[0]["status"] == "canceled"
    assert CANARY not in "".join(done.stdout + done.stderr for done in outputs)


def test_many_jobs_come_from_a_file(cli: Cli, kelpie: Kelpie, tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text("\n".join(json.dumps(definition(tags={"name": str(n)})) for n in range(1200)))
    ids = cli("submit", str(path)).stdout.split()
    assert [record.name for record in kelpie.get_many(ids)] == [str(n) for n in range(1200)]
    assert cli("purge", "--group", "g", "--yes").stdout == "1200 canceled, 0 canceling\n"


def test_errors_are_one_line_with_the_right_code(cli: Cli) -> None:
    for argv, stdin in ((("get", "nonesuch"), ""), (("submit", "-"), '{"comand": 1}'), (("submit", "-"), "{")):
        done = cli(*argv, stdin=stdin, code=2)
        assert done.stdout == ""
        assert done.stderr.startswith("kelpie: error: ")
        assert done.stderr.count("\n") == 1


def test_redis_away_has_its_own_code(nobodys_port: int) -> None:
    done = Cli(f"redis://:{CANARY}@127.0.0.1:{nobodys_port}/0")("list", code=69)
    assert "cannot be reached" in done.stderr
    assert CANARY not in done.stderr


def test_the_option_wins_over_the_environment(cli: Cli, redis_url: str, nobodys_port: int) -> None:
    cli.env["KELPIE_REDIS_URL"] = f"redis://127.0.0.1:{nobodys_port}/0"
    assert cli("list", "--json", "--redis-url", redis_url).stdout == "[]\n"


def test_wait_ends_when_the_job_does(cli: Cli, kelpie: Kelpie) -> None:
    job_id = cli.submit()
    with cli.start("wait", job_id) as process:
        line_with(process, "pending")
        complete(kelpie, claim(kelpie, job_id))
        out, _ = process.communicate(timeout=BOUND_S)
    assert process.returncode == 0
    assert out.startswith(f"{job_id} completed")


def test_wait_sits_out_a_restart_of_redis_and_says_so(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path / "redis") as server, Kelpie(server.url) as kelpie:
        cli = Cli(server.url)
        job_id = cli.submit()
        with cli.start("wait", job_id) as process:
            line_with(process, "pending")
            server.kill()
            line_with(process, "Redis is away; still waiting")
            server.start()
            line_with(process, "Redis is back; still waiting")
            complete(kelpie, claim(kelpie, job_id))
            process.communicate(timeout=BOUND_S)
        assert process.returncode == 0


def test_ctrl_c_ends_the_waiting_and_leaves_the_job_alone(cli: Cli, kelpie: Kelpie) -> None:
    job_id = cli.submit()
    with cli.start("wait", job_id) as process:
        line_with(process, "pending")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=BOUND_S)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert kelpie.get(job_id).status is Status.PENDING


def test_a_reader_who_goes_away_is_no_error(cli: Cli) -> None:
    pipeline = f'"{COMMAND}" schema | head -n 1; "{COMMAND}" list --json | true'
    done = subprocess.run(
        ["bash", "-c", pipeline], env=cli.env, capture_output=True, text=True, timeout=BOUND_S, check=False
    )
    assert done.stdout == "{\n"
    assert done.stderr == ""


def test_on_a_terminal_wait_shows_progress_and_asks_before_it_purges(cli: Cli, kelpie: Kelpie) -> None:
    job_id = cli.submit()
    token = claim(kelpie, job_id)
    kelpie.app.ledger.renew(token, Phase.EXECUTING, '{"progress": 0.25, "message": "epoch 1"}')
    with terminal(cli, "wait", job_id) as (process, read_until):
        read_until("25 %: epoch 1")
        complete(kelpie, token)
        read_until("completed")
    assert process.returncode == 0
    cli.submit()
    with terminal(cli, "purge", "--group", "g") as (process, read_until):
        read_until("Cancel 1 pending and 0 running jobs of the container group 'g'?")
        os.write(process.terminal, b"y\n")
        read_until("1 canceled, 0 canceling")
    assert process.returncode == 0


class terminal:  # noqa: N801 -- used like a function
    """A command on a terminal of its own."""

    def __init__(self, cli: Cli, *argv: str) -> None:
        self.terminal, inner = pty.openpty()
        env = {**cli.env, "TERM": "xterm", "COLUMNS": "200"}
        self._process = subprocess.Popen(
            [COMMAND, *argv], env=env, stdin=inner, stdout=inner, stderr=inner, start_new_session=True
        )
        os.close(inner)
        self._seen = ""

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def __enter__(self) -> tuple[Any, Any]:
        return self, self._read_until

    def __exit__(self, *_: object) -> None:
        try:
            self._process.wait(BOUND_S)
        finally:
            self._process.kill()
            os.close(self.terminal)

    def _read_until(self, words: str) -> None:
        while words not in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._seen):
            self._seen += os.read(self.terminal, 65_536).decode("utf-8", "replace")


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['kelpie', '--help']\n"
        "from kelpie_celery.cli import run; run()\n"
        "heavy = {'celery', 'pydantic', 'redis', 'rich', 'asyncio'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=BOUND_S)
    best_s = min(_cpu_s_of(COMMAND, "--help") for _ in range(3))
    assert best_s < 0.3


def _cpu_s_of(*argv: str) -> float:
    # CPU time, not wall time: it does not depend on what else this machine does.
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kelpie_celery", "--version"],
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=True,
    )
    assert done.stdout.startswith("kelpie-celery ")


def test_submit_and_wait_in_one_go(cli: Cli, kelpie: Kelpie) -> None:
    with cli.start("submit", "-", "--wait", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(definition()))
        process.stdin.close()
        job_id = process.stdout.readline().strip()
        complete(kelpie, claim(kelpie, job_id))
        ending = process.stdout.read()
        process.wait(BOUND_S)
    assert process.returncode == 0
    assert ending.startswith(f"{job_id} completed")


def test_a_wait_that_is_over_in_time_says_which_jobs_go_on(cli: Cli) -> None:
    job_id = cli.submit()
    began = time.monotonic()
    done = cli("wait", job_id, "--timeout", "1s", code=124)
    assert time.monotonic() - began >= 1
    assert job_id in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("command", ["worker", "beat", "inspect ping"])
def test_below_celery_too_a_refused_setting_is_told_in_words(cli: Cli, command: str) -> None:
    done = subprocess.run(
        [str(script("celery", "celery")), "-A", "kelpie_celery", *command.split()],
        env={**cli.env, "KELPIE_MIN_LEASE_S": "long"}, capture_output=True, text=True, timeout=BOUND_S, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "kelpie: the settings are refused: KELPIE_MIN_LEASE_S: must be a number (got 'long')" in done.stderr
    assert "Traceback" not in done.stderr
