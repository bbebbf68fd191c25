"""Submits blocks of a Monte Carlo integration and what gathers them, as one Celery chord; shows the result.

    . .kelpie/env                                  # kelpie up --workers 2 runs in another terminal
    .venv/bin/python examples/montecarlo/run.py --blocks 4

Blocks run on as many workers as there are. The gathering begins when the last one has completed, whatever happened to
workers meanwhile.

On SaladCloud: put block.py and gather.py into your image (see examples/image), and give `--programs /app
--group YOUR-CONTAINER-GROUP --bucket YOUR-BUCKET`; KELPIE_REDIS_URL and AWS_... say which Redis and storage.
"""

import argparse
import json
import os
import time
import uuid
from pathlib import Path

from celery import chord

from kelpie_celery import Kelpie
from kelpie_celery.celery import run_job
from kelpie_celery.staging import fetch_outputs


def block(args, prefix, number):
    """One block: a checkpoint of its own, and an output that the gathering finds by its folder."""
    state = {"bucket": args.bucket, "prefix": f"{prefix}/state/{number}/", "local_path": "state"}
    out = {"bucket": args.bucket, "prefix": f"{prefix}/blocks/{number}/", "local_path": "out"}
    return {
        "command": "python3",
        "arguments": [f"{args.programs}/block.py", str(number), str(args.batches)],
        "container_group_id": args.group,
        "sync": {
            "before": [{**state, "direction": "download"}],
            "during": [{**state, "direction": "upload", "commit": "report"}],
            "after": [{**out, "direction": "upload"}],
        },
        "heartbeat_interval": 5,
        "tags": {"name": f"block-{number}"},
    }


def gather(args, prefix):
    """What brings them together: its input is what all blocks have stored."""
    blocks = {"bucket": args.bucket, "prefix": f"{prefix}/blocks/", "local_path": "blocks"}
    out = {"bucket": args.bucket, "prefix": f"{prefix}/out/", "local_path": "out"}
    return {
        "command": "python3",
        "arguments": [f"{args.programs}/gather.py"],
        "container_group_id": args.group,
        "sync": {"before": [{**blocks, "direction": "download"}], "after": [{**out, "direction": "upload"}]},
        "heartbeat_interval": 5,
        "tags": {"name": "gather"},
    }


def main():
    """Submit, wait, fetch, show."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--batches", type=int, default=1000, help="Of 10,000 points each.")
    parser.add_argument("--group", default=os.environ.get("SALAD_CONTAINER_GROUP_ID", "local"))
    parser.add_argument("--bucket", default="kelpie")
    parser.add_argument("--programs", default=str(Path(__file__).resolve().parent))
    parser.add_argument("--output", default="montecarlo-out")
    args = parser.parse_args()
    if args.blocks < 2:  # noqa: PLR2004
        parser.error("--blocks: at least 2, since the error is told from how they differ")
    # Nobody else's: two runs with one prefix would go on with each other's checkpoints.
    prefix = f"examples/montecarlo/{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"

    blocks = [run_job.s(block(args, prefix, number)) for number in range(args.blocks)]
    result = chord(blocks)(run_job.s(gather(args, prefix)))
    print(f"{args.blocks} blocks are submitted, and job {result.id} gathers them", flush=True)
    result.get()  # raises JobFailed if a block or the gathering failed

    with Kelpie() as kelpie:
        fetch_outputs(kelpie, result.id, args.output)
    print(json.loads((Path(args.output) / "result.json").read_text()))


if __name__ == "__main__":
    main()
