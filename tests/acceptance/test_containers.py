"""The images and the compose file, built and run for real; a worker's container is killed, and another one goes on.

Not part of the default run: ``make test-containers``. It needs podman and podman-compose, or docker with compose, and
base images; it fails where they are missing. One stack for all tests; each job has a container group of its own.
"""

from __future__ import annotations

import base64
import json
import runpy
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.harness.engine import ROOT, Engine
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.containers, pytest.mark.timeout(3600)]

TARGETS = ("redis", "storage", "control", "worker")
SERVICES = ("redis", "seaweedfs", "control", "beat", "flower", "worker")
TWO_LINES = 'COPY --from=kelpie/worker /opt/kelpie /opt/kelpie\nENTRYPOINT ["/opt/kelpie/kelpie-worker"]\n'
# A user's image, and what its jobs must find as the user left it.
FOREIGN = {
    "without-python": "FROM debian:12.12-slim\n",
    "old-boto3": (
        "FROM debian:11.11-slim\n"
        "RUN apt-get update && apt-get install -y --no-install-recommends python3-boto3\n"
        # Modules and libraries that the worker must not take for its own.
        "RUN mkdir /app && for name in celery redis json ssl; do echo 'raise SystemExit(1)' >/app/$name.py; done\n"
        "ENV PYTHONPATH=/app LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu PYTHONHOME= LANG=C\n"
    ),
    "nothing-but-a-shell": (
        "FROM debian:12.12-slim AS tools\n"
        "RUN apt-get update && apt-get install -y --no-install-recommends busybox-static && mkdir /empty\n"
        "FROM scratch\nCOPY --from=tools /bin/busybox /bin/sh\nCOPY --from=tools /empty /tmp\n"
    ),
    "newer-python": "FROM debian:13.1-slim\nRUN apt-get update && apt-get install -y --no-install-recommends python3\n",
}
OF_THE_WORKER = (
    "KELPIE_", "SALAD_", "AWS_", "INPUT_DIR=", "OUTPUT_DIR=", "CHECKPOINT_DIR=", "CELERY_LOG_", "_MP_FORK_",
    "HOSTNAME=", "PWD=", "TERM=", "SHLVL=", "_=", "container=", "HOME=",
)  # fmt: skip


class Stack:
    """The compose project, with the example image as its worker."""

    def __init__(self, engine: Engine, secrets: dict[str, str], flower_port: int) -> None:
        self.engine, self.secrets, self.flower_port = engine, secrets, flower_port

    @property
    def control(self) -> str:
        return self.engine.id_of("control")

    def env(self, group: str) -> dict[str, str]:
        """What a worker is told."""
        return {
            "KELPIE_REDIS_URL": f"redis://:{self.secrets['REDIS_PASSWORD']}@redis:6379/0",
            "AWS_ACCESS_KEY_ID": self.secrets["AWS_ACCESS_KEY_ID"],
            "AWS_SECRET_ACCESS_KEY": self.secrets["AWS_SECRET_ACCESS_KEY"],
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": "http://seaweedfs:8333",
            "SALAD_CONTAINER_GROUP_ID": group,
            "SALAD_METADATA_URI": "http://127.0.0.1",
            "KELPIE_ALLOW_INSECURE": "1",  # as in the compose file: a network of this machine
        }

    def kelpie(self, *command: str, given: str = "") -> str:
        """A command in the control container; again, as podman's name server is away while a container starts."""
        run = lambda: self.engine.inside(self.control, "kelpie", *command, given=given)  # noqa: E731
        return eventually("kelpie answers", run, 90)

    def submit(self, definition: dict[str, Any]) -> str:
        once = {**definition, "idempotency_key": uuid.uuid4().hex}
        return self.kelpie("submit", "-", given=json.dumps(once))

    def record(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kelpie("get", "--json", job_id))
        return found

    def ended(self, job_id: str, timeout_s: float = 180) -> dict[str, Any]:
        record = eventually(
            "the job ends",
            lambda: next(
                (r for r in [self.record(job_id)] if r["status"] in ("completed", "failed", "canceled")), None
            ),
            timeout_s,
            lambda: json.dumps(self.record(job_id), indent=1),
        )
        assert record["status"] == "completed", json.dumps(record, indent=1)
        return record

    def stored(self, key: str) -> bytes:
        """An object of the bucket."""
        script = (
            "import boto3, sys; from botocore.config import Config;"
            "s3 = boto3.client('s3', config=Config(s3={'addressing_style': 'path'}));"
            "sys.stdout.write(s3.get_object(Bucket='kelpie', Key=sys.argv[1])['Body'].read().hex())"
        )
        return bytes.fromhex(self.engine.inside(self.control, "python3", "-c", script, key))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    env_file = tmp_path_factory.mktemp("containers") / "env"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        flower_port = probe.getsockname()[1]
    engine = Engine("kelpie-test", env_file, ["docker-compose.yml", "examples/image/compose.yml"])
    engine._run(["./containers/make-env", str(env_file)])
    secrets = dict(line.split("=", 1) for line in env_file.read_text().splitlines())
    env_file.write_text(env_file.read_text() + f"FLOWER_PORT={flower_port}\n")
    for target in TARGETS:
        timed(f"build kelpie/{target}", lambda target=target: engine.build(f"kelpie/{target}", ROOT, target=target))
    timed("build kelpie/example", lambda: engine.build("kelpie/example", ROOT / "examples" / "image"))
    try:
        timed("up", lambda: engine.compose("up", "-d", "--no-build"))
        yield Stack(engine, secrets, flower_port)
    finally:
        engine.compose("down", "-v", "-t", "5")


def timed(what: str, act: Any) -> None:
    before = time.monotonic()
    act()
    print(f"{what}: {time.monotonic() - before:.1f} s", flush=True)


def sized(engine: Engine, image: str) -> str:
    return f"{int(engine('image', 'inspect', '--format', '{{.Size}}', image)) / 1e6:.0f} MB"


def test_all_services_come_up_healthy_and_none_runs_as_root(stack: Stack) -> None:
    for image in (*TARGETS, "example"):
        print(f"kelpie/{image}: {sized(stack.engine, f'kelpie/{image}')}", flush=True)
    for service in SERVICES:
        container = stack.engine.id_of(service)
        eventually(f"{service} is healthy", lambda container=container: stack.engine.is_healthy(container), 120)  # type: ignore[misc]
        # The example is a user's image, and runs as its user wants.
        uid = stack.engine.inside(container, "id", "-u")
        assert uid != "0" or service == "worker", service


def test_flower_asks_for_the_password_and_knows_the_workers(stack: Stack) -> None:
    url = f"http://127.0.0.1:{stack.flower_port}/api/workers?refresh=1"
    with pytest.raises(HTTPError, match="401"):
        urlopen(url)
    token = base64.b64encode(stack.secrets["FLOWER_BASIC_AUTH"].encode()).decode()

    def both_are_there() -> bool:
        with urlopen(Request(url, headers={"Authorization": f"Basic {token}"})) as answer:
            names = " ".join(json.load(answer))
        return "control@" in names and "kelpie@" in names

    eventually("Flower knows control worker and worker", both_are_there, 60)


def test_redis_keeps_everything_and_lets_nobody_in_without_the_password(stack: Stack) -> None:
    redis = stack.engine.id_of("redis")
    assert "NOAUTH" in stack.engine.inside(redis, "redis-cli", "get", "x")
    script = 'export REDISCLI_AUTH=$REDIS_PASSWORD; for o in "$@"; do redis-cli config get $o | tail -1; done'
    names = ("appendonly", "appendfsync", "maxmemory-policy")
    assert stack.engine.inside(redis, "sh", "-c", script, "-", *names).split() == ["yes", "always", "noeviction"]
    listing = stack.engine.inside(redis, "sh", "-c", "cat /proc/[0-9]*/cmdline")
    assert stack.secrets["REDIS_PASSWORD"] not in listing


def test_a_job_whose_workers_container_is_killed_is_resumed_by_a_second_one(stack: Stack) -> None:
    engine = stack.engine
    definition = json.loads((ROOT / "examples" / "image" / "job.json").read_text())
    definition["arguments"][1:] = ["40", "1"]
    job_id = stack.submit(definition)
    eventually(
        "it has three checkpoints",
        lambda: stack.record(job_id)["num_commits"] >= 3,
        90,
        lambda: engine.logs(engine.id_of("worker"))[-3000:],
    )
    first = stack.record(job_id)["machine_id"]
    worker = engine.id_of("worker")
    engine("kill", "-s", "KILL", worker)
    killed_at = time.monotonic()
    print(f"killed the worker {first} of {job_id}", flush=True)
    engine.remove(worker)
    second = engine.start("kelpie-test-second", "kelpie/example", stack.env("local"))
    try:
        eventually("a second worker has it", lambda: stack.record(job_id)["machine_id"] != first, 90)
        print(f"resumed {time.monotonic() - killed_at:.1f} s later", flush=True)
        record = stack.ended(job_id)
        said = outputs(engine.logs(second))
    finally:
        engine.remove(second)
        engine.compose("up", "-d", "--no-build", "worker")
    print("\n".join(said), flush=True)
    assert any("resumed at block" in line and not line.endswith("block 0") for line in said)
    assert record["attempts"][0]["machine"] == first
    assert record["num_interruptions"] == 1
    assert record["num_failures"] == 0
    assert json.loads(stack.stored("pi/output/pi.json")) == uninterrupted(40)


def outputs(log: str) -> list[str]:
    """What jobs wrote, out of a worker's log."""
    lines = [line for line in log.splitlines() if " action=output " in line]
    return [line.split("INFO", 1)[1].split(" action=output ")[0].strip() for line in lines]


def uninterrupted(blocks: int) -> dict[str, float]:
    pi = runpy.run_path(str(ROOT / "examples" / "image" / "pi.py"), run_name="pi")
    inside = sum(pi["throw"](block) for block in range(blocks))
    return {"pi": 4 * inside / (blocks * pi["DARTS_A_BLOCK"]), "blocks": blocks}


def test_a_stopped_worker_hands_its_job_over_before_it_goes(stack: Stack) -> None:
    engine = stack.engine
    name = engine.start("kelpie-test-stopped", "kelpie/worker", stack.env("stopped"))
    try:
        job_id = stack.submit({"command": "sleep", "arguments": ["300"], "container_group_id": "stopped", "sync": {}})
        eventually("it runs", lambda: stack.record(job_id)["phase"] == "executing", 60)
        before = time.monotonic()
        engine("stop", "-t", "40", name)
        print(f"stopped in {time.monotonic() - before:.1f} s", flush=True)
        record = stack.record(job_id)
        assert (record["status"], record["num_failures"]) == ("pending", 0)
        assert engine("inspect", "--format", "{{.State.ExitCode}}", name) == "0"
    finally:
        engine.remove(name)


def test_what_nobody_waits_for_is_reaped_by_the_containers_first_process(stack: Stack) -> None:
    worker = stack.engine.id_of("worker")
    first = stack.engine.inside(worker, "sh", "-c", "tr '\\0' ' ' </proc/1/cmdline")
    assert first.startswith("/opt/kelpie/bin/tini -- /opt/kelpie/kelpie-worker")
    stack.engine.inside(worker, "sh", "-c", "for i in 1 2 3 4 5; do (sleep 0.2 &) ; done")

    def no_zombies() -> bool:
        states = stack.engine.inside(worker, "sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null || true")
        return "sleep" not in states

    eventually("nothing is left of them", no_zombies, 20)


def test_a_worker_and_a_control_worker_that_are_frozen_become_unhealthy(stack: Stack) -> None:
    engine = stack.engine
    containers = [engine.id_of("worker"), engine.id_of("control"), engine.id_of("beat")]
    for container in containers:
        eventually("it is healthy before", lambda container=container: engine.is_healthy(container), 90)  # type: ignore[misc]
    # All but the first process, which is the init, and the shell that does it.
    freeze = "for p in /proc/[0-9]*; do p=${p#/proc/}; [ $p = 1 ] || [ $p = $$ ] || kill -%s $p; done 2>/dev/null; true"
    try:
        for container in containers:
            engine.inside(container, "sh", "-c", freeze % "STOP")
        for container in containers:
            eventually("it is unhealthy", lambda container=container: not engine.is_healthy(container), 150)  # type: ignore[misc]
    finally:
        for container in containers:
            engine.inside(container, "sh", "-c", freeze % "CONT")
    for container in containers:
        eventually("it is healthy again", lambda container=container: engine.is_healthy(container), 120)  # type: ignore[misc]


@pytest.mark.parametrize("name", FOREIGN)
def test_two_lines_make_any_image_a_worker_whose_jobs_see_the_image_as_it_is(
    stack: Stack, name: str, tmp_path: Path
) -> None:
    engine, image = stack.engine, f"kelpie/test-{name}"
    (tmp_path / "Dockerfile").write_text(FOREIGN[name] + TWO_LINES)
    engine.build(image, tmp_path)
    shutil.rmtree(tmp_path)
    looks = "env | sort; unset PYTHONPATH; python3 -c 'import sys; print(sys.version_info[:2])' 2>&1; "
    looks += "python3 -c 'import boto3; print(boto3.__version__)' 2>&1; ldd /bin/sh; echo kept >$OUTPUT_DIR/kept"
    block = {"bucket": "kelpie", "prefix": f"foreign/{name}/", "local_path": "/output", "direction": "upload"}
    worker = engine.start(f"kelpie-test-{name}", image, stack.env(name))
    try:
        job_id = stack.submit(
            {"command": "sh", "arguments": ["-c", looks], "container_group_id": name, "sync": {"after": [block]}}
        )
        stack.ended(job_id)
        seen = outputs(engine.logs(worker))
    finally:
        engine.remove(worker)
    print("\n".join([f"-- {name}", *(line for line in seen if not line.startswith(OF_THE_WORKER))]), flush=True)
    own = engine("run", "--rm", "--entrypoint", "sh", image, "-c", "env").splitlines()
    given = {line for line in own if not line.startswith(OF_THE_WORKER)}
    as_seen = {line for line in seen if "=" in line.split(" ")[0] and not line.startswith(OF_THE_WORKER)}
    assert {line for line in as_seen if not line.startswith("\t")} == given
    assert not any("/opt/kelpie" in line for line in seen)
    assert stack.stored(f"foreign/{name}/kept") == b"kept\n"
