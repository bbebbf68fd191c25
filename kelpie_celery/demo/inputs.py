"""The demo's input, how large its jobs are made, and the way to and from the storage.

Limits: small files, whole in memory.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kelpie_celery.clock import Clock
from kelpie_celery.demo import plan
from kelpie_celery.demo.jobs import gather, ising, train

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_s3 import S3Client

GATHER_S = 3.0
"""How long the gathering would take on a core of its own, in seconds."""

_PROBE_S = 0.25
# Not shorter than a few checkpoints whatever the clock says, and not for ever on a machine that is busy now.
_SWEEPS, _EPOCHS, _RESAMPLES = (1_000, 60_000), (20, 2_000), (1_000, 400_000)
_OWN = ".kelpie/"  # ends the name of each folder in which kelpie keeps its own records


def make(folder: Path) -> None:
    """Write the model of the simulation and the data set of the training, under their later keys."""
    model, spiral = folder / "input/ising", folder / "input/spiral"
    for path in (model, spiral):
        path.mkdir(parents=True)
    (model / "model.json").write_text(json.dumps(plan.MODEL, indent=2) + "\n")
    data = spirals(plan.POINTS, plan.NOISE)
    np.save(spiral / "points.npy", data.points)
    np.save(spiral / "labels.npy", data.labels)


def spirals(count: int, noise: float, seed: int = 11) -> train.Data:
    """Points on three arms of a spiral; the arms overlap where ``noise`` (radians) is large."""
    rng = np.random.default_rng(seed)
    arm = rng.integers(3, size=count)
    radius = np.sqrt(rng.random(count))
    angle = 5 * radius + arm * 2 * np.pi / 3 + rng.normal(0, noise, count)
    return train.Data(np.column_stack([radius * np.cos(angle), radius * np.sin(angle)]), arm)


def measure(clock: Clock) -> plan.Sizes:
    """Sizes with which the jobs take `job_s` and ``GATHER_S`` on this machine, as busy as it is now."""
    simulation = ising.fresh(plan.MODEL, 2, ising.MEASURE_EVERY * 100_000)
    data = spirals(plan.POINTS, plan.NOISE)
    learning, _ = data.split()
    training = train.fresh(plan.NETWORKS[-1], 1)
    block_s = job_s(len(os.sched_getaffinity(0)))
    sweeps = _steps_in(block_s, lambda: simulation.advance(1), clock)
    epochs = _steps_in(block_s, lambda: training.epoch(learning), clock)
    bins = int(sweeps / ising.MEASURE_EVERY * (1 - ising.THERMALISE) / gather.BIN)
    blocks = [(1.0, np.zeros((max(1, bins), 2)))] * plan.BLOCKS
    rng = np.random.default_rng(1)
    resamples = _steps_in(GATHER_S, lambda: gather.resample(blocks, rng), clock)
    whole = round(_within(sweeps, _SWEEPS), -3)  # whole bins of whole measurements, after the share left out
    return plan.Sizes(whole, _within(epochs, _EPOCHS), _within(resamples, _RESAMPLES))


def job_s(cores: int) -> float:
    """How long a block or a training should take on a core of its own, in seconds.

    Four processes compute at a time. Where each has its own core a job must be longer, or it is done before there is
    something in it to lose.
    """
    return max(3.5, min(6.0, 1.5 * cores))


def _steps_in(seconds: float, step: Callable[[], object], clock: Clock) -> int:
    step()  # the first one is slow
    began, steps = clock.boottime(), 0
    while (spent := clock.boottime() - began) < _PROBE_S:
        step()
        steps += 1
    return int(seconds * steps / spent)


def _within(value: int, limits: tuple[int, int]) -> int:
    return max(limits[0], min(limits[1], value))


def upload(s3: S3Client, folder: Path) -> int:
    """Put what `make` wrote on the storage, under the same names; how many files."""
    files = [path for path in sorted((folder / "input").rglob("*")) if path.is_file()]
    for path in files:
        s3.upload_file(str(path), plan.BUCKET, path.relative_to(folder).as_posix())
    return len(files)


def download(s3: S3Client, prefix: str) -> dict[str, bytes]:
    """Every plain object under a prefix, by its path below that."""
    found: dict[str, bytes] = {}
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=plan.BUCKET, Prefix=prefix):
        for item in page.get("Contents", []):
            name = item["Key"].removeprefix(prefix)
            if _OWN not in name:
                found[name] = s3.get_object(Bucket=plan.BUCKET, Key=item["Key"])["Body"].read()
    return found
