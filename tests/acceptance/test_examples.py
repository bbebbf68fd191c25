"""The examples, run as their users run them, while workers are killed; each result is that of an uninterrupted run."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kelpie_celery.client import Kelpie
from kelpie_celery.ledger.records import JobRecord
from kelpie_celery.local.binaries import script
from kelpie_celery.local.servers import SeaweedServer
from kelpie_celery.settings import load_settings
from tests.harness.looking import outputs_under
from tests.harness.stack import GROUP, Stack

EXAMPLES = Path(__file__).parents[2] / "examples"
KELPIE = str(script("kelpie", "kelpie-celery"))
BOUND_S = 150.0
BATCHES, EPOCHS, BLOCKS = 40, 400, 2


@pytest.fixture(scope="module")
def stack(servers_directory: Path, s3_server: SeaweedServer) -> Iterator[Stack]:
    """What ``kelpie up`` runs, with its bucket, and workers enough for all examples at once."""
    stack = Stack(servers_directory / "examples", s3_server, workers=4, bucket="kelpie")
    try:
        yield stack.start()
    finally:
        stack.close()


class Example:
    """A script of an example's, in a directory of its own."""

    def __init__(self, stack: Stack, directory: Path, *argv: str) -> None:
        directory.mkdir(parents=True)
        self.directory = directory
        self._log = (directory / "log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, *argv], cwd=directory, env={**os.environ, **stack.env()}, stdout=self._log,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def close(self) -> None:
        """End it: without its stack it would wait for ever."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def finish(self) -> str:
        """What it printed, once it has ended well."""
        code = self._process.wait(BOUND_S)
        self._log.seek(0)
        text = self._log.read()
        assert code == 0, text
        return text


StartExample = Callable[..., Example]


@pytest.fixture
def start_example(stack: Stack, tmp_path: Path) -> Iterator[StartExample]:
    """Starts scripts, and ends them with the test, however that ends."""
    started: list[Example] = []

    def start(name: str, *argv: str) -> Example:
        started.append(Example(stack, tmp_path / name, *argv))
        return started[-1]

    yield start
    for one in started:
        one.close()


def kelpie(stack: Stack, *argv: str, cwd: Path) -> str:
    """The output of a command."""
    env = {**os.environ, **stack.env()}
    done = subprocess.run(
        [KELPIE, *argv], cwd=cwd, env=env, capture_output=True, text=True, timeout=BOUND_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def await_strikes(stack: Stack, *names: str) -> list[JobRecord]:
    """Wait until the workers of these jobs have killed themselves, start them again, and give the jobs' records."""
    for name in names:
        stack.wait_fired("after_commit", name, BOUND_S)
        for number in list(stack.local.machines):
            if not stack.local.worker(number).running:
                stack.local.start_worker(number)
    with Kelpie(settings=load_settings(stack.env())) as client:
        records = {record.name: record for record in client.list(GROUP)}
    return [records[name] for name in names]


def by_hand(directory: Path, inputs: dict[str, Path], *argv: str) -> Path:
    """Run a program without any worker, undisturbed; where its outputs are."""
    directory.mkdir(parents=True)
    for name, source in inputs.items():
        shutil.copytree(source, directory / name)
    subprocess.run(argv, cwd=directory, check=True, timeout=BOUND_S, capture_output=True)
    return directory / "out"


def the_same(fetched: Path, expected: Path) -> None:
    """Both hold the same files, byte for byte."""
    names = sorted(path.name for path in expected.iterdir())
    assert sorted(path.name for path in fetched.iterdir()) == names
    for name in names:
        assert (fetched / name).read_bytes() == (expected / name).read_bytes(), name


@pytest.mark.timeout(600)
def test_examples_survive_the_death_of_workers_with_the_results_of_undisturbed_runs(
    stack: Stack, start_example: StartExample, tmp_path: Path
) -> None:
    shell, montecarlo, pipeline = (EXAMPLES / name for name in ("shell", "montecarlo", "pipeline"))
    for name in ("shell", "block-0", "train"):
        stack.arm("after_commit", job=name)  # its worker kills itself when the first checkpoint is stored
    # As docs/examples.md says it.
    kelpie(stack, "stage", str(shell / "input"), "s3://kelpie/examples/shell/input", cwd=tmp_path)
    shell_id = kelpie(stack, "submit", str(shell / "job.json"), "--group", GROUP, cwd=tmp_path).strip()
    options = ("--group", GROUP)
    runs = {
        "montecarlo": start_example(
            "montecarlo", str(montecarlo / "run.py"), *options, "--blocks", str(BLOCKS), "--batches", str(BATCHES)
        ),
        "pipeline": start_example("pipeline", str(pipeline / "run.py"), *options, "--epochs", str(EPOCHS)),
    }  # fmt: skip
    struck = await_strikes(stack, "shell", "block-0", "train")

    # Meanwhile the same by hand.
    walked = by_hand(tmp_path / "hand/shell", {"input": shell / "input"}, "sh", "input/simulate.sh", "100")
    blocks = tmp_path / "hand/blocks"
    for number in range(BLOCKS):
        argv = ("python3", str(montecarlo / "block.py"), str(number), str(BATCHES))
        out = by_hand(tmp_path / f"hand/block-{number}", {}, *argv)
        shutil.copytree(out, blocks / str(number))
    gathered = by_hand(tmp_path / "hand/gather", {"blocks": blocks}, "python3", str(montecarlo / "gather.py"))

    printed = {name: run.finish() for name, run in runs.items()}
    kelpie(stack, "wait", shell_id, cwd=tmp_path)
    kelpie(stack, "fetch", shell_id, "-o", "shell-out", cwd=tmp_path)
    the_same(tmp_path / "shell-out", walked)
    the_same(tmp_path / "montecarlo/montecarlo-out", gathered)
    volume = json.loads((gathered / "result.json").read_text())
    assert abs(volume["volume"] - math.pi**3 / 6) < 0.1
    assert "'volume'" in printed["montecarlo"]

    raw = tmp_path / "hand/raw"
    for key, body in outputs_under(stack.s3, "kelpie", "examples/pipeline/").items():
        if "/raw/" in key:
            raw.mkdir(parents=True)
            (raw / Path(key).name).write_bytes(body)
    data = by_hand(tmp_path / "hand/pre", {"raw": raw}, "python3", str(pipeline / "preprocess.py"))
    model = by_hand(tmp_path / "hand/train", {"data": data}, "python3", str(pipeline / "train.py"), str(EPOCHS))
    metrics = by_hand(
        tmp_path / "hand/evaluate", {"data": data, "model": model}, "python3", str(pipeline / "evaluate.py")
    )
    the_same(tmp_path / "pipeline/pipeline-out", metrics)
    assert "'accuracy'" in printed["pipeline"]
    records = [stack.get(record.id) for record in struck]
    assert [record.num_interruptions >= 1 for record in records] == [True] * 3
    assert [record.num_failures for record in records] == [0] * 3


@pytest.mark.torch
@pytest.mark.timeout(600)
def test_a_pytorch_training_has_the_same_weights_bit_for_bit_after_a_kill(
    stack: Stack, start_example: StartExample, tmp_path: Path
) -> None:
    program, epochs = str(EXAMPLES / "pytorch/train.py"), "40"
    whole = by_hand(tmp_path / "hand", {}, sys.executable, program, "--epochs", epochs)
    stack.arm("after_commit", job="pytorch")
    run = start_example("run", str(EXAMPLES / "pytorch/run.py"), "--group", GROUP, "--epochs", epochs)
    (struck,) = await_strikes(stack, "pytorch")
    assert "completed after 1 interruptions" in run.finish()
    record = stack.get(struck.id)
    assert (record.num_interruptions, record.num_failures, record.attempt) == (1, 0, 2)
    the_same(tmp_path / "run/pytorch-out", whole)
