"""The simulated SaladCloud with real processes: their environment, their ends, and that none is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from kelpie_celery.client import Kelpie
from kelpie_celery.local.errors import LocalStackError
from kelpie_celery.local.salad import containers
from kelpie_celery.local.salad.behaviour import Behaviour, Timings, fixed
from kelpie_celery.local.salad.containers import members
from kelpie_celery.local.salad.sim import SaladSim
from kelpie_celery.local.salad.snapshot import GroupView, InstanceView
from kelpie_celery.settings import load_settings
from tests.harness.waiting import eventually

IN_TIME_S = 90.0
PROCESSES = 2  # of a container of these tests
NAME = "demo-workers"
FAST = Timings(
    prepare=fixed(1), acknowledge=fixed(0), allocate=fixed(1), download=fixed(1), create=fixed(1), stop_lag=fixed(5),
    act=fixed(1), relaunch=fixed(1), silence=fixed(10), reserved=fixed(1),
)  # fmt: skip

# A container that tells of its start in a file that outlives it, and then waits; so does a process in a session of its
# own whose parent is gone.
PROGRAM = """
import json, os, signal, subprocess, sys
from dataclasses import replace
from pathlib import Path

left = Path("left-behind")
with Path(os.environ["STARTS"]).open("a") as starts:
    facts = {"env": dict(os.environ), "cwd": os.getcwd(), "pid": os.getpid(), "found": left.exists()}
    starts.write(json.dumps(facts) + "\\n")
left.touch()
subprocess.Popen([sys.executable, "-c", "import os, time; os.fork() or (os.setsid(), time.sleep(600))"])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
signal.pause()
"""

# A simulator in a process of its own, which is then killed.
PARENT = """
import sys, time
from dataclasses import replace
from pathlib import Path
from kelpie_celery.local.errors import LocalStackError
from kelpie_celery.local.salad import containers
from kelpie_celery.local.salad.behaviour import Behaviour
from kelpie_celery.local.salad.sim import SaladSim

sim = SaladSim(Path(sys.argv[1]), Behaviour(time_factor=5000), command=["/bin/sleep", "600"])
sim.start()
sim.create_group("demo", replicas=3, status="deploying")
pids = sim.wait_until(lambda s: p if len(p := [i.pid for i in s.group("demo").instances if i.pid]) == 3 else None, 60)
print(*pids, flush=True)
time.sleep(600)
"""


class Started:
    """A simulator whose containers tell of themselves."""

    def __init__(self, directory: Path, **behaviour: Any) -> None:
        self.starts_file = directory / "starts"
        chosen: dict[str, Any] = {"time_factor": 10.0, "mean_run_s": 0.0, "timings": FAST, **behaviour}
        self.sim = SaladSim(
            directory / "salad",
            Behaviour(**chosen),
            command=[sys.executable, "-c", PROGRAM],
            env={"STARTS": str(self.starts_file)},
        )

    def starts(self) -> list[dict[str, Any]]:
        """What containers told at their starts, whole lines only."""
        if not self.starts_file.exists():
            return []
        return [json.loads(line) for line in self.starts_file.read_text().splitlines(keepends=True) if line[-1] == "\n"]

    def up(self, replicas: int = 1) -> list[InstanceView]:
        """That many instances whose program runs with all its processes."""
        self.sim.create_group(NAME, replicas=replicas, status="deploying")
        return self.again(replicas)

    def again(self, replicas: int = 1, *, besides: frozenset[str] = frozenset()) -> list[InstanceView]:
        def look(sim: SaladSim) -> list[InstanceView] | None:
            found = [i for i in sim.group(NAME).instances if i.id not in besides and len(processes(i)) == PROCESSES]
            return found if len(found) == replicas else None

        return self.sim.wait_until(look, IN_TIME_S)


def processes(instance: InstanceView) -> set[int]:
    """Its processes, without those that only start another."""
    if instance.pid is None:
        return set()
    return {pid for pid in members(instance.pid, instance.id) if _is_up(pid)}


def _is_up(pid: int) -> bool:
    # Each leads a session; what starts the second does not, nor does the second before it has come so far.
    try:
        return os.getsid(pid) == pid and "leash.py" not in " ".join(psutil.Process(pid).cmdline())
    except (OSError, psutil.Error):
        return False


def are_gone(pids: set[int]) -> bool:
    return set(map(_status, pids)) <= {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}


def _status(pid: int) -> str:
    try:
        return psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return psutil.STATUS_DEAD


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    one = Started(tmp_path)
    with one.sim:
        yield one


def test_a_container_has_the_platforms_environment_its_own_directory_and_its_own_metadata(started: Started) -> None:
    first, second = started.up(2)
    told = {start["env"]["SALAD_INSTANCE_ID"]: start for start in started.starts()}
    assert set(told) == {first.id, second.id}
    for instance in (first, second):
        env, cwd = told[instance.id]["env"], str(told[instance.id]["cwd"])
        assert isinstance(env, dict)
        group = started.sim.group(NAME)
        assert env["SALAD_CONTAINER_GROUP_ID"] == group.id
        assert (env["SALAD_MACHINE_ID"], env["HOSTNAME"]) == (instance.machine_id, instance.id)
        assert env["SALAD_ORGANIZATION_NAME"] == "local"
        assert "SALAD_API_KEY" not in env
        assert all(env[name].startswith(cwd) for name in ("INPUT_DIR", "OUTPUT_DIR", "CHECKPOINT_DIR", "TMPDIR"))
        answer = requests.get(f"{env['SALAD_METADATA_URI']}/v1/token", headers={"Metadata": "true"}, timeout=IN_TIME_S)
        assert answer.status_code == 200
    assert told[first.id]["cwd"] != told[second.id]["cwd"]


def test_an_interrupted_node_takes_all_its_processes_along_and_another_one_comes(tmp_path: Path) -> None:
    # Silent for 5 s, so that a busy machine does not miss it.
    started = Started(tmp_path, timings=replace(FAST, silence=fixed(50)))
    with started.sim:
        lost = started.up()[0]
        pids = processes(lost)
        started.sim.interrupt(lost.id)
        # Silent at first: frozen, not dead, so that its connections stay open.
        eventually(
            "all processes stand still",
            lambda: set(map(_status, pids)) == {psutil.STATUS_STOPPED},
            IN_TIME_S,
        )
        eventually("they are killed", lambda: are_gone(pids), IN_TIME_S)
        new = started.again()[0]
        assert new.machine_id != lost.machine_id
        assert new.id != lost.id
        assert started.sim.group(NAME).interruptions == started.sim.interruptions == 1


def test_what_ends_by_itself_is_started_again_on_its_node_with_nothing_of_what_it_left(started: Started) -> None:
    first = started.up()[0]
    pids = processes(first)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    second = started.again(besides=frozenset({first.id}))[0]
    assert second.machine_id == first.machine_id
    assert [start["found"] for start in started.starts()] == [False, False]
    assert are_gone(pids), "what a container leaves behind ends with it"
    assert "Instance Exited:137" in started.sim.group(NAME).events


def test_a_restart_by_metadata_keeps_the_files(started: Started) -> None:
    first = started.up()[0]
    url = f"{started.sim.metadata_url(first.id)}/v1/restart"
    assert requests.post(url, headers={"Metadata": "true"}, timeout=IN_TIME_S).status_code == 204
    second = started.again(besides=frozenset({first.id}))[0]
    assert second.machine_id == first.machine_id
    assert [start["found"] for start in started.starts()] == [False, True]


def test_a_stopped_group_ends_its_containers_and_erases_their_files(started: Started) -> None:
    instances = started.up(2)
    pids = set().union(*map(processes, instances))
    sim = started.sim
    url = f"{sim.api_url}/organizations/local/projects/default/containers/{NAME}/stop"
    assert requests.post(url, headers={"Salad-Api-Key": sim.api_key}, timeout=IN_TIME_S).status_code == 202

    def stopped(one: SaladSim) -> GroupView | None:
        group = one.group(NAME)
        return group if not group.instances else None

    group = sim.wait_until(stopped, IN_TIME_S)
    eventually("the processes are gone", lambda: are_gone(pids), IN_TIME_S)
    eventually("the files are gone", lambda: not list((sim.directory / "machines").iterdir()), IN_TIME_S)
    assert group.status == "stopped"
    assert 0 < group.running_s < 2 * IN_TIME_S


def test_a_signal_is_sent_before_the_kill_when_it_is_wanted(tmp_path: Path) -> None:
    started = Started(tmp_path, stop_signal=signal.SIGTERM, stop_grace_s=IN_TIME_S)
    with started.sim as sim:
        instance = started.up()[0]
        sim.wait_until(lambda one: one.group(NAME).status == "running", IN_TIME_S)
        url = f"{sim.api_url}/organizations/local/projects/default/containers/{NAME}/stop"
        requests.post(url, headers={"Salad-Api-Key": sim.api_key}, timeout=IN_TIME_S)
        # It ends by itself upon the signal, long before its grace is over.
        sim.wait_until(lambda one: not one.group(NAME).instances, IN_TIME_S / 2)
        assert are_gone({instance.pid or 0})


def test_a_program_that_cannot_run_is_moved_to_other_nodes(tmp_path: Path) -> None:
    behaviour = Behaviour(time_factor=10.0, mean_run_s=0.0, timings=FAST, exits_before_move=1)
    with SaladSim(tmp_path, behaviour, command=[sys.executable, "-c", "import sys; sys.exit(3)"]) as sim:
        sim.create_group(NAME, replicas=1, status="deploying")
        group = sim.wait_until(lambda one: g if (g := one.group(NAME)).moves else None, IN_TIME_S)
        assert "Instance Exited:3" in group.events
        assert "Instance Reallocated by Platform" in group.events


def test_nothing_is_left_when_the_simulator_stops_however_its_containers_are(started: Started) -> None:
    frozen, whole = started.up(2)
    pids = processes(frozen) | processes(whole)
    started.sim.interrupt(frozen.id)
    started.sim.stop()
    assert are_gone(pids)


def test_a_stop_waits_for_what_takes_long_to_die(tmp_path: Path) -> None:
    # The kernel gives memory back before a killed process is gone, a tenth of a second or so for this much.
    work = "os.setsid(), setattr(os, 'held', b'x' * (1 << 29)), open('up', 'w'), time.sleep(600)"
    orphan = f"import os, time; os.fork() or ({work})"
    program = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {orphan!r}]); time.sleep(600)"
    behaviour = Behaviour(time_factor=10.0, mean_run_s=0.0, timings=FAST)
    with SaladSim(tmp_path, behaviour, command=[sys.executable, "-c", program]) as sim:
        sim.create_group(NAME, replicas=1, status="deploying")
        eventually("the orphan holds its memory", lambda: list(tmp_path.glob("machines/*/*/up")), IN_TIME_S)
        pids = processes(sim.group(NAME).instances[0])
        assert len(pids) == PROCESSES
        sim.stop()
        assert are_gone(pids)


def test_what_does_not_die_holds_up_the_others_for_a_moment_only(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process that is stuck in the kernel."""
    stuck, other = started.up(2)
    assert stuck.pid is not None
    lives = containers._lives
    monkeypatch.setattr(containers, "_lives", lambda pid: pid == stuck.pid or lives(pid))
    for instance in (stuck, other):
        pids = processes(instance)
        started.sim.interrupt(instance.id)
        eventually("it is killed", lambda pids=pids: are_gone(pids), IN_TIME_S)  # type: ignore[misc]
    started.again(2, besides=frozenset({stuck.id, other.id}))


def test_a_stop_says_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started(tmp_path)
    started.sim.start()
    pid = started.up()[0].pid
    with monkeypatch.context() as patched:
        patched.setattr(containers, "_lives", lambda _: True)
        patched.setattr(containers, "REAP_S", 0.3)
        with pytest.raises(LocalStackError, match=f"still there: .*{pid}"):
            started.sim.stop()
    with pytest.raises(requests.ConnectionError):
        requests.get(started.sim.api_url, timeout=IN_TIME_S)
    started.sim.stop()


def test_nothing_is_left_when_the_simulator_itself_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = {int(word) for word in parent.stdout.readline().split()}
        assert len(pids) == 3
        parent.send_signal(signal.SIGKILL)
    eventually("the containers are gone", lambda: are_gone(pids), IN_TIME_S)


def test_a_job_is_run_by_a_real_worker_of_the_simulator_and_survives_its_node(
    redis_url: str, s3_env: dict[str, str], tmp_path: Path
) -> None:
    env = {"KELPIE_REDIS_URL": redis_url, "KELPIE_MIN_LEASE_S": "2", "KELPIE_PULSE_S": "0.2", **s3_env}
    kelpie = Kelpie(settings=load_settings(env))
    behaviour = Behaviour(time_factor=100.0, mean_run_s=0.0, timings=FAST)
    with kelpie, SaladSim(tmp_path / "salad", behaviour, env=env) as sim:
        group = sim.create_group(NAME, group_id=str(uuid.uuid4()), replicas=1, status="deploying")
        first, proceed = tmp_path / "first", tmp_path / "proceed"
        script = f"touch {first}; while [ ! -e {proceed} ]; do sleep 0.05; done"
        job = kelpie.submit(
            {"command": "sh", "arguments": ["-c", script], "container_group_id": group.id, "sync": {},
             "heartbeat_interval": 1}
        )  # fmt: skip
        eventually("the job runs", first.exists, IN_TIME_S, explain=lambda: str(sim.groups))
        machine = kelpie.get(job.id).machine_id
        instance = sim.group(NAME).instances[0]
        assert machine == instance.machine_id
        sim.interrupt(instance.id)
        eventually("the node is gone", lambda: are_gone({instance.pid or 0}), IN_TIME_S)
        proceed.touch()
        record = kelpie.wait(job.id, timeout=IN_TIME_S)
        assert (record.status, record.num_failures) == ("completed", 0)
        assert record.machine_id != machine


def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    argv = [
        sys.executable, "-m", "kelpie_celery", "salad-sim", "--dir", str(tmp_path / "salad"), "--group", "demo=2",
        "--time-factor", "5000", "--mean-run", "0", "--record", str(tmp_path / "record"), "--", "/bin/sleep", "600",
    ]  # fmt: skip
    env = {**os.environ, "COLUMNS": "200", "SALAD_API_KEY": "a-key-of-the-users-choice"}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) as command:
        assert command.stdout is not None
        lines: list[str] = []
        while not any("is up" in line for line in lines):
            lines.append(command.stdout.readline())
            assert lines[-1], lines
        told = dict(
            line.removeprefix("export ").strip().split("=", 1)
            for line in (tmp_path / "salad" / "env").read_text().splitlines()
            if "=" in line
        )
        url, key = (told[name].strip("'\"") for name in ("KELPIE_SALAD_API_URL", "SALAD_API_KEY"))
        assert key == env["SALAD_API_KEY"]
        assert key not in "".join(lines)
        group = f"{url}/organizations/local/projects/default/containers/demo"
        assert requests.post(f"{group}/start", headers={"Salad-Api-Key": key}, timeout=IN_TIME_S).status_code == 202
        while not any("Instance Running" in line for line in lines):
            lines.append(command.stdout.readline())
        command.send_signal(signal.SIGINT)
        rest = command.stdout.read()
    assert command.returncode == 0
    assert "GPU hours billed" in rest
    assert (tmp_path / "record").read_text().count("start") >= 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--fault", "slov", "--", "sleep", "1"], "did you mean"),
        (["--group", "Upper", "--", "sleep", "1"], "NAME=REPLICAS"),
        (["--time-factor", "0", "--", "sleep", "1"], "time-factor"),
        (["--organization", "Mine", "--", "sleep", "1"], "'Mine' is no name of an organization"),
        (["--", "no-such-program"], "no-such-program"),
        ([], "KELPIE_REDIS_URL"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(options: list[str], why: str, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "kelpie_celery", "salad-sim", "--dir", str(tmp_path), *options]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=IN_TIME_S, check=False)
    assert done.returncode == 2
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_command_says_what_to_install_when_the_server_library_is_missing(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['aiohttp'] = None\n"
        "from kelpie_celery.cli import run\n"
        "sys.exit(run(['salad-sim', '--dir', sys.argv[1], '--', 'sleep', '1']))"
    )
    argv = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=IN_TIME_S, check=False)
    assert done.returncode == 2
    assert "pip install 'kelpie-celery[local]'" in done.stderr
