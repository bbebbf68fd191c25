"""Children of the local stack: stopped in time, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from kelpie_celery.local import envfile
from kelpie_celery.local.console import LogFollower
from kelpie_celery.local.errors import LocalStackError
from kelpie_celery.local.processes import ManagedProcess, live_processes
from tests.harness.waiting import eventually

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)

# A parent that starts two children, tells their ids, and then does what its argument says.
PARENT = """
import os, signal, sys, time
from pathlib import Path
from kelpie_celery.local.processes import ManagedProcess
from kelpie_celery.local.servers import ValkeyServer

directory = Path(sys.argv[1])
sleeper = ManagedProcess("sleeper", ["/bin/sleep", "600"], env={}, cwd=directory, log=directory / "log")
sleeper.start()
server = ValkeyServer(directory / "redis")
server.start()
print(sleeper.pid, server.pid, flush=True)
if sys.argv[2] == "exit":
    sys.exit(0)
if sys.argv[2] == "raise":
    raise RuntimeError("on purpose")
os.kill(os.getpid(), getattr(signal, sys.argv[2]))
time.sleep(60)
"""


def sleeper(directory: Path, *argv: str) -> ManagedProcess:
    command = argv or ("/bin/sleep", "600")
    return ManagedProcess("sleeper", command, env=dict(os.environ), cwd=directory, log=directory / "log")


@pytest.mark.parametrize("ending", ["SIGKILL", "SIGTERM", "exit", "raise"])
def test_children_are_gone_when_their_parent_is_however_it_ended(ending: str, tmp_path: Path) -> None:
    parent = subprocess.run(
        [sys.executable, "-c", PARENT, str(tmp_path), ending], capture_output=True, text=True, timeout=60, check=False
    )
    pids = [int(word) for word in parent.stdout.split()]
    assert len(pids) == 2, parent.stderr
    eventually("the children are gone", lambda: not any(psutil.pid_exists(pid) for pid in pids), 10)


def test_a_child_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    child = sleeper(tmp_path)
    thread = threading.Thread(target=child.start)
    thread.start()
    thread.join()
    with pytest.raises(LocalStackError, match="still runs after"):
        child.wait(0.5)
    child.kill()
    assert child.exit_code == -signal.SIGKILL


def test_the_process_id_is_that_of_the_program_itself(tmp_path: Path) -> None:
    child = sleeper(tmp_path)
    child.start()
    eventually("the program runs", lambda: psutil.Process(child.pid).name() == "sleep", 10)
    assert child in live_processes()
    assert child.stop(grace_s=5)
    assert child not in live_processes()
    assert child.ending == "killed by SIGTERM"


def test_a_program_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    child = sleeper(tmp_path, sys.executable, "-c", STUBBORN)
    child.start()
    child.wait_ready(20, lambda: child.tail() == ["up"])
    assert not child.stop(grace_s=0.2)
    assert child.exit_code == -signal.SIGKILL


def test_a_paused_process_can_be_stopped(tmp_path: Path) -> None:
    child = sleeper(tmp_path)
    child.start()
    child.pause()
    assert psutil.Process(child.pid).status() == psutil.STATUS_STOPPED
    assert child.running
    assert child.stop(grace_s=5)


def test_a_second_start_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    child = sleeper(tmp_path)
    child.start()
    with pytest.raises(LocalStackError, match="runs already"):
        child.start()
    child.kill()
    child.start()
    child.kill()


def test_a_program_that_ends_before_it_is_ready_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    child = sleeper(tmp_path, "/bin/sh", "-c", "echo no port left; exit 3")
    child.start()
    with pytest.raises(LocalStackError, match=r"(?s)exit code 3.*no port left"):
        child.wait_ready(20, lambda: False)


def test_waiting_for_readiness_ends_when_it_is_cancelled(tmp_path: Path) -> None:
    child = sleeper(tmp_path)
    child.start()
    with pytest.raises(LocalStackError, match="interrupted"):
        child.wait_ready(20, lambda: False, cancelled=lambda: True)
    child.kill()


def test_a_ready_file_of_an_earlier_run_does_not_count(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    ready.touch()
    script = f"until [ -e go-on ]; do sleep 0.02; done; touch {ready}; sleep 600"
    child = ManagedProcess(
        "late", ["/bin/sh", "-c", script], env=dict(os.environ), cwd=tmp_path, log=tmp_path / "log", ready_file=ready
    )
    child.start()
    with pytest.raises(LocalStackError, match="was not ready"):
        child.wait_ready(0.1)
    (tmp_path / "go-on").touch()
    child.wait_ready(20)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait(10)


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    child = sleeper(tmp_path, "/nonexistent/program")
    child.start()
    with pytest.raises(LocalStackError, match="/nonexistent/program"):
        child.wait_ready(20, lambda: False)


def test_the_env_file_can_be_sourced_and_is_for_its_owner_only(tmp_path: Path) -> None:
    env = {"PLAIN": "1", "AWKWARD": 'it\'s a "b" $HOME `id`\nnext', "EMPTY": ""}
    path = tmp_path / "env"
    path.write_text("old")
    path.chmod(0o644)
    envfile.write(path, env)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["env"]
    script = '. "$0" && printf "%s|" "$PLAIN" "$AWKWARD" "$EMPTY"'
    shell = subprocess.run(["sh", "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert shell.stdout == "|".join(env.values()) + "|"


def test_a_log_is_followed_by_whole_lines_from_its_end_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    follower = LogFollower(log)
    with log.open("a") as file:
        file.write("one\ntw")
        file.flush()
        assert follower.new_lines() == ["one"]
        file.write("o\n")
        file.flush()
        assert follower.new_lines() == ["two"]
    log.write_text("cut\n")
    assert follower.new_lines() == ["cut"]


def test_a_log_that_does_not_exist_yet_is_followed_from_its_start(tmp_path: Path) -> None:
    follower = LogFollower(tmp_path / "log")
    assert follower.new_lines() == []
    (tmp_path / "log").write_text("first\n")
    assert follower.new_lines() == ["first"]
