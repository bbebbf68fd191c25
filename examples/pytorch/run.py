"""Submits the training in train.py, waits for it, and fetches the model.

    . .kelpie/env                                  # kelpie up runs in another terminal
    .venv/bin/pip install torch                    # for the workers of this machine
    .venv/bin/python examples/pytorch/run.py

Kill a worker meanwhile: the training goes on from its last checkpoint, and the model is the same.

On SaladCloud: put train.py into your image (see examples/image), and give `--python python3 --program /app/train.py
--group YOUR-CONTAINER-GROUP --bucket YOUR-BUCKET`; KELPIE_REDIS_URL and AWS_... say which Redis and storage.
"""

import argparse
import os
import sys
import time
import uuid
from pathlib import Path

from kelpie_celery import Kelpie
from kelpie_celery.staging import fetch_outputs


def definition(args, prefix):
    """The job: what runs, and which of its directories are checkpoints and outputs."""
    state = {"bucket": args.bucket, "prefix": f"{prefix}/state/", "local_path": "state"}
    out = {"bucket": args.bucket, "prefix": f"{prefix}/out/", "local_path": "out"}
    return {
        "command": args.python,
        "arguments": [args.program, "--epochs", str(args.epochs)],
        "environment": {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
        "container_group_id": args.group,
        "sync": {
            "before": [{**state, "direction": "download"}],
            # A checkpoint is taken when train.py says that it has one.
            "during": [{**state, "direction": "upload", "commit": "report"}],
            "after": [{**out, "direction": "upload"}],
        },
        # An epoch that takes longer than this without a word is stuck: it is ended and tried again.
        "stall_timeout": 3600,
        "grace_period": 60,  # time for the epoch to end after SIGTERM
        "heartbeat_interval": 5,
        "tags": {"name": "pytorch"},
    }


def main():
    """Submit, wait, fetch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--group", default=os.environ.get("SALAD_CONTAINER_GROUP_ID", "local"))
    parser.add_argument("--bucket", default="kelpie")
    parser.add_argument("--python", default=sys.executable, help="The Python of the workers, which has torch.")
    parser.add_argument("--program", default=str(Path(__file__).resolve().with_name("train.py")))
    parser.add_argument("--output", default="pytorch-out")
    args = parser.parse_args()
    with Kelpie() as kelpie:
        # Nobody else's: two runs with one prefix would go on with each other's checkpoints.
        prefix = f"examples/pytorch/{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"
        job = kelpie.submit(definition(args, prefix))
        print(f"job {job.id}; look at it with: kelpie get {job.id}", flush=True)
        record = job.wait(raise_on_failure=True)
        fetch_outputs(kelpie, job, args.output)
        print(f"completed after {record.num_interruptions} interruptions; the model is in {args.output}")


if __name__ == "__main__":
    main()
