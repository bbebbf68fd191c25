"""A training on a real NVIDIA GPU: killed, resumed, watched and looked at beforehand (``make test-gpu``).

Both workers share the machine's one GPU, and the program holds 60 % of its memory: an attempt that outlived its worker
would show.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from kelpie_celery.local.binaries import script
from kelpie_celery.local.ports import PortBlock, reserve
from kelpie_celery.local.servers import SeaweedServer
from tests.acceptance.test_metrics import scrape
from tests.harness.looking import outputs_under
from tests.harness.stack import Stack

PROGRAM = Path(__file__).parent / "programs/gpu_training.py"
STEPS, EVERY = 900, 50
HELD = 0.6
OPTIONS = ("--steps", str(STEPS), "--every", str(EVERY), "--hold", str(HELD))
BLOWS = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
BOUND_S = 120.0

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(500)]


@pytest.fixture(scope="module")
def ports() -> Iterator[PortBlock]:
    block = reserve()
    yield block
    block.release()


@pytest.fixture(scope="module")
def stack(servers_directory: Path, s3_server: SeaweedServer, ports: PortBlock) -> Iterator[Stack]:
    stack = Stack(servers_directory / "gpu", s3_server, workers=0, bucket="gpu", control=False, beat=False)
    try:
        stack.start()
        for number in (1, 2):
            stack.start_worker(number, KELPIE_METRICS_PORT=str(ports[number]))
        yield stack
    finally:
        stack.close()


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the model that an undisturbed run makes."""
    directory = tmp_path_factory.mktemp("undisturbed")
    began = time.monotonic()
    argv = [sys.executable, str(PROGRAM), *OPTIONS]
    done = subprocess.run(argv, cwd=directory, capture_output=True, text=True, timeout=BOUND_S, check=False)
    assert done.returncode == 0, done.stderr
    size = (directory / "state/checkpoint.pt").stat().st_size
    print(f"undisturbed, by hand: {time.monotonic() - began:.1f} s, a checkpoint of {size / 1e6:.0f} MB, {done.stdout}")
    return digest((directory / "out/model.pt").read_bytes())


def test_a_training_is_bit_for_bit_the_same_after_kills_and_its_gpu_is_seen(
    stack: Stack, ports: PortBlock, undisturbed: str
) -> None:
    state = {"bucket": stack.bucket, "prefix": "lm/state/", "local_path": "state"}
    sync = {
        "before": [{**state, "direction": "download"}],
        "during": [{**state, "direction": "upload", "commit": "report"}],
        "after": [{**state, "prefix": "lm/out/", "local_path": "out", "direction": "upload"}],
    }
    definition = stack.definition(sys.executable, str(PROGRAM), *OPTIONS, sync=sync, grace_period=30)
    began = time.monotonic()
    job = stack.submit(definition)
    handed_over = []
    for n, blow in enumerate(BLOWS, start=1):
        stack.wait_executing(job, attempt=n, timeout_s=BOUND_S)
        before = stack.get(job).commit

        def moved_on(before: object = before) -> bool:
            return stack.get(job).commit != before

        stack.wait(f"attempt {n} has a checkpoint of its own", moved_on, BOUND_S)
        victim = stack.worker_of(job)
        if n == 1:
            _expect_seen(stack, ports[victim])
        struck = time.monotonic()
        stack.kill_worker(victim, blow)
        stack.wait_executing(job, attempt=n + 1, timeout_s=BOUND_S)
        handed_over.append((blow.name, round(time.monotonic() - struck, 2)))
        if stack.local.worker(victim).running:
            stack.local.worker(victim).wait(BOUND_S)
        stack.start_worker(victim, KELPIE_METRICS_PORT=str(ports[victim]))
    record = stack.wait_status(job, "completed", timeout_s=BOUND_S)
    took_s = time.monotonic() - began

    assert (record.num_interruptions, record.num_failures, record.completions) == (len(BLOWS), 0, 1)
    [model] = [body for key, body in outputs_under(stack.s3, stack.bucket, "lm/out/").items() if "model.pt" in key]
    assert digest(model) == undisturbed
    lost = [round(one.lost_s or 0, 2) for one in record.attempts]
    print(f"{len(BLOWS)} blows, {took_s:.1f} s; from a blow to the next command: {handed_over}; seconds lost: {lost}")
    print(f"median hand-over after SIGKILL {median(s for name, s in handed_over if name == 'SIGKILL'):.2f} s")


def _expect_seen(stack: Stack, port: int) -> None:
    """The worker's metrics tell what its GPU does."""
    at_work, used = "kelpie_gpu_utilization_ratio{gpu=0}", "kelpie_gpu_memory_used_bytes{gpu=0}"

    def look() -> dict[str, float] | None:
        told = scrape(port)
        return told if told.get(at_work, 0) > 0.1 else None

    told = stack.wait("the GPU is seen at work", look)
    share = told[used] / told["kelpie_gpu_memory_total_bytes{gpu=0}"]
    assert HELD <= share < 1
    print(f"seen by the worker: at work {told[at_work]:.0%}, memory {share:.0%}")


def test_the_doctor_finds_the_gpu(stack: Stack) -> None:
    argv = [str(script("kelpie", "kelpie-celery")), "doctor", "--json"]
    done = subprocess.run(
        argv, env={**os.environ, **stack.env()}, capture_output=True, text=True, timeout=BOUND_S, check=False
    )
    [found] = [one for one in json.loads(done.stdout)["findings"] if one["check"] == "gpu"]
    assert found["level"] == "ok", found
    print(found["text"])


def test_verify_says_that_the_training_resumes(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_bytes(PROGRAM.read_bytes())
    state = {"bucket": "any", "prefix": "lm/state/", "local_path": "state"}
    definition = {
        "command": sys.executable, "arguments": ["train.py", *OPTIONS], "container_group_id": "theirs",
        "grace_period": 30,
        "sync": {
            "before": [{**state, "direction": "download"}],
            "during": [{**state, "direction": "upload", "commit": "report"}],
            "after": [{**state, "prefix": "lm/out/", "local_path": "out", "direction": "upload"}],
        },
    }  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(definition))
    argv = [str(script("kelpie", "kelpie-celery")), "verify", "job.json"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
