"""One block of a Monte Carlo integration: how much of a cube is within the ball that touches its sides.

    python3 block.py BLOCK BATCHES          # writes state/ and out/ here, and goes on where state/ ends

The checkpoint is one small JSON file, with the state of the random numbers in it: a block that was interrupted throws
the same points as one that was not.
"""

import json
import os
import random
import sys
from pathlib import Path

DIMENSIONS = 6
POINTS_A_BATCH = 10_000
STATE, OUT = Path("state"), Path("out")  # the directories of the job definition, in run.py
REPORT = Path(os.environ.get("KELPIE_REPORT", os.devnull))


def load(seed):
    """Where to go on, and the random numbers as they were then."""
    rng = random.Random(seed)
    path = STATE / "block.json"
    if not path.exists():
        return {"batches": 0, "inside": 0}, rng
    state = json.loads(path.read_text())
    version, numbers, gauss = state.pop("rng")
    rng.setstate((version, tuple(numbers), gauss))
    return state, rng


def save(state, rng):
    """Replace the checkpoint as a whole: the old one or the new one is there, never half of one."""
    draft = STATE / "block.new"
    draft.write_text(json.dumps({**state, "rng": rng.getstate()}))
    draft.replace(STATE / "block.json")


def report(**fields):
    """Tell kelpie: it shows the progress, and takes a checkpoint where "commit" says so."""
    with REPORT.open("a") as file:
        file.write(json.dumps(fields) + "\n")


def batch(rng):
    """How many of a batch of points are within the ball."""
    return sum(
        sum(rng.uniform(-1, 1) ** 2 for _ in range(DIMENSIONS)) <= 1 for _ in range(POINTS_A_BATCH)
    )  # fmt: skip


def main(block, batches):
    """Compute the rest of the block."""
    for folder in (STATE, OUT):
        folder.mkdir(exist_ok=True)
    state, rng = load(seed=block)
    print(f"block {block} starts at batch {state['batches']}", flush=True)
    while state["batches"] < batches:
        state["inside"] += batch(rng)
        state["batches"] += 1
        save(state, rng)
        report(progress=state["batches"] / batches, commit=True)
    points = batches * POINTS_A_BATCH
    volume = 2**DIMENSIONS * state["inside"] / points
    (OUT / "block.json").write_text(json.dumps({"block": block, "points": points, "volume": volume}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
