"""Brings data up to the storage, and runs three jobs on it, one after the other: preprocess, train, evaluate.

    . .kelpie/env                                  # kelpie up runs in another terminal
    .venv/bin/python examples/pipeline/run.py

Each job's output prefix is the next one's input. A job begins when the one before it has completed, on any worker; the
whole is one Celery chain, which needs nobody to wait for it.

On SaladCloud: put the three programs into your image (see examples/image), and give `--programs /app
--group YOUR-CONTAINER-GROUP --bucket YOUR-BUCKET`; KELPIE_REDIS_URL and AWS_... say which Redis and storage.
"""

import argparse
import json
import os
import random
import tempfile
import time
import uuid
from pathlib import Path

from celery import chain

from kelpie_celery import Kelpie
from kelpie_celery.celery import run_job
from kelpie_celery.staging import fetch_outputs, upload


def make_measurements(folder):
    """Some data; yours is there already."""
    rng = random.Random(5)
    lines = ["x,y,label"]
    for number in range(600):
        label = rng.randrange(2)
        x, y = rng.gauss(3 * label, 1.5), rng.gauss(20 - 4 * label, 3)
        lines.append(f"{x:.3f},{y:.3f},{label}" if number % 50 else "no,measurement,today")
    (Path(folder) / "measurements.csv").write_text("\n".join(lines) + "\n")


class Pipeline:
    """The definitions of the three jobs."""

    def __init__(self, args, prefix):
        self.args, self.prefix = args, prefix

    def place(self, name, local_path, direction, **more):
        """A directory of the job and the prefix that it belongs to."""
        prefix = f"{self.prefix}/{name}/"
        return {"bucket": self.args.bucket, "prefix": prefix, "local_path": local_path, "direction": direction, **more}

    def job(self, program, *arguments, **sync):
        """What all three have in common."""
        return {
            "command": "python3",
            "arguments": [f"{self.args.programs}/{program}.py", *arguments],
            "container_group_id": self.args.group,
            "sync": sync,
            "heartbeat_interval": 5,
            "tags": {"name": program},
        }

    def preprocess(self):
        """From raw to data."""
        return self.job(
            "preprocess",
            before=[self.place("raw", "raw", "download")],
            after=[self.place("data", "out", "upload")],
        )

    def train(self):
        """From data to a model, with checkpoints."""
        return self.job(
            "train", str(self.args.epochs),
            before=[self.place("data", "data", "download"), self.place("state", "state", "download")],
            during=[self.place("state", "state", "upload", commit="report")],
            after=[self.place("model", "out", "upload")],
        )  # fmt: skip

    def evaluate(self):
        """From data and model to metrics."""
        return self.job(
            "evaluate",
            before=[self.place("data", "data", "download"), self.place("model", "model", "download")],
            after=[self.place("metrics", "out", "upload")],
        )


def main():
    """Stage, submit, wait, fetch, show."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10_000)
    parser.add_argument("--group", default=os.environ.get("SALAD_CONTAINER_GROUP_ID", "local"))
    parser.add_argument("--bucket", default="kelpie")
    parser.add_argument("--programs", default=str(Path(__file__).resolve().parent))
    parser.add_argument("--output", default="pipeline-out")
    args = parser.parse_args()
    # Nobody else's: two runs with one prefix would go on with each other's checkpoints.
    pipeline = Pipeline(args, f"examples/pipeline/{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}")

    with tempfile.TemporaryDirectory() as folder:
        make_measurements(folder)
        sent = upload(folder, args.bucket, f"{pipeline.prefix}/raw/")
    print(f"{sent.files} file is at {sent.url}", flush=True)

    steps = (pipeline.preprocess(), pipeline.train(), pipeline.evaluate())
    result = chain(*(run_job.s(step) for step in steps)).apply_async()
    print(f"three jobs are submitted; the last one is {result.id}", flush=True)
    result.get()  # raises JobFailed if one of them failed

    with Kelpie() as kelpie:
        fetch_outputs(kelpie, result.id, args.output)
    print(json.loads((Path(args.output) / "metrics.json").read_text()))


if __name__ == "__main__":
    main()
