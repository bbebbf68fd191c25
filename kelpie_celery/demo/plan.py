"""What the demo runs and whom it kills: jobs, where their data is, the order of the strikes, and the second act.

Limits: values only; nothing here starts anything.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kelpie_celery.scaling.rule import ScalingRule

GROUP = "demo"
BUCKET = "demo"
WORKERS = 3
BLOCKS = 4
MODEL = {"size": 48, "temperatures": [1.8, 2.1, 2.3, 2.6], "seed": 20}
NETWORKS = (40, 48)  # hidden units of each training
POINTS, NOISE = 6000, 0.22  # of the training's data set
PROGRAMS = Path(__file__).with_name("jobs")

# Seconds where production has minutes, so that a demo of a minute sees all of it.
LIVELY = {
    "KELPIE_MIN_LEASE_S": "5",
    "KELPIE_PULSE_S": "0.5",
    "KELPIE_MAINTAIN_S": "1",
    "KELPIE_QUIET_S": "0.5",
    "KELPIE_COMMIT_INTERVAL_S": "1",
    "KELPIE_SCALE_INTERVAL_S": "1",
}
# Several threads add numbers up in no fixed order, and would take the cores from each other.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Sizes:
    """How many steps each kind of job has."""

    sweeps: int
    epochs: int
    resamples: int


@dataclass(frozen=True)
class PlannedJob:
    """One job.

    Attributes:
        name: Its name in the table; a tag of the job.
        program: File name in ``jobs``.
        arguments: Of the program.
        inputs: Prefix of its input.
        outputs: Prefix of its output.
        parents: How many jobs of a chord it follows.
    """

    name: str
    program: str
    arguments: tuple[str, ...]
    inputs: str
    outputs: str
    parents: int = 0

    @property
    def argv(self) -> list[str]:
        """The command, the same for the job and for the run that it is compared with."""
        return [sys.executable, str(PROGRAMS / self.program), *self.arguments]

    def definition(self) -> dict[str, Any]:
        """The job definition."""
        command, *arguments = self.argv
        return {
            "command": command,
            "arguments": arguments,
            "environment": ONE_THREAD,
            "input_bucket": BUCKET,
            "input_prefix": self.inputs,
            "checkpoint_bucket": BUCKET,
            "checkpoint_prefix": f"checkpoint/{self.name}/",
            "output_bucket": BUCKET,
            "output_prefix": self.outputs,
            "container_group_id": GROUP,
            "heartbeat_interval": 2,
            "grace_period": 5,
            "tags": {"name": self.name},
        }


@dataclass(frozen=True)
class Strike:
    """An interruption that is planned: this signal to the worker that runs this job.

    Attributes:
        required: Whether the demo fails without any of its signal. The gathering is short, and no job follows that
            could be struck in its stead.
    """

    victim: str
    signum: signal.Signals
    required: bool = True


STRIKES = (
    Strike("ising-0", signal.SIGKILL),
    Strike("ising-1", signal.SIGTERM),
    Strike("ising-2", signal.SIGKILL),
    Strike("ising-3", signal.SIGKILL),
    Strike("train-40", signal.SIGTERM),
    Strike("train-48", signal.SIGKILL),
    Strike("gather", signal.SIGKILL, required=False),
)


@dataclass(frozen=True)
class Plan:
    """All jobs: the blocks and what gathers them are one chord, the trainings are jobs by themselves."""

    blocks: tuple[PlannedJob, ...]
    gather: PlannedJob
    trainings: tuple[PlannedJob, ...]

    @property
    def jobs(self) -> Sequence[PlannedJob]:
        """Every job, one that needs others after them."""
        return (*self.blocks, *self.trainings, self.gather)


def make(sizes: Sizes) -> Plan:
    """The plan with jobs of these sizes."""
    return Plan(
        blocks=tuple(_block(number, sizes.sweeps) for number in range(BLOCKS)),
        gather=PlannedJob(
            "gather", "gather.py", ("--resamples", str(sizes.resamples)), "output/ising/", "output/gather/", BLOCKS
        ),
        trainings=tuple(_training(hidden, sizes.epochs) for hidden in NETWORKS),
    )


def _block(number: int, sweeps: int) -> PlannedJob:
    arguments = ("--block", str(number), "--sweeps", str(sweeps))
    return PlannedJob(f"ising-{number}", "ising.py", arguments, "input/ising/", f"output/ising/block-{number}/")


def _training(hidden: int, epochs: int) -> PlannedJob:
    arguments = ("--hidden", str(hidden), "--epochs", str(epochs), "--seed", "3")
    return PlannedJob(f"train-{hidden}", "train.py", arguments, "input/spiral/", f"output/train/hidden-{hidden}/")


# -- the second act --------------------------------------------------------------------------------------------------

CLOUD_GROUP = "0d6c1f52-6d5e-4b0e-9b63-3f0c6f7f2a11"
CLOUD_NAME = "demo-workers"
CLOUD_JOBS, CLOUD_NODES = 24, 3
CLOUD_FASTER = 40.0
"""Times: a node that takes a minute to come is here after one or two seconds."""

CLOUD_LOSS_S = 4.0
"""One node vanishes so often, seconds."""

CLOUD_RULE = ScalingRule(
    container_group_id=CLOUD_GROUP, max_replicas=CLOUD_NODES, idle_threshold_seconds=2.0, scale_in_cooldown_s=300.0
)


def cloud_job(number: int) -> dict[str, Any]:
    """A job of a second that computes nothing: the act is about nodes, and this machine has to play them all."""
    return {
        "command": "sleep",
        "arguments": ["1"],
        "container_group_id": CLOUD_GROUP,
        "heartbeat_interval": 2,
        "sync": {},
        "tags": {"name": f"short-{number}"},
    }
