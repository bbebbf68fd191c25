"""Pi by throwing darts, in blocks; goes on where its checkpoint ends.

    python3 pi.py BLOCKS SECONDS_A_BLOCK

The checkpoint is one small file, written under another name and renamed, so that it is whole at any moment.
"""

import json
import os
import random
import sys
import time
from pathlib import Path

DARTS_A_BLOCK = 100_000
# The defaults are for a run by hand, without a worker.
CHECKPOINT = Path(os.environ.get("CHECKPOINT_DIR", ".")) / "state.json"
RESULT = Path(os.environ.get("OUTPUT_DIR", ".")) / "pi.json"
REPORT = Path(os.environ.get("KELPIE_REPORT", os.devnull))


def load() -> dict[str, int]:
    """Where to go on."""
    if CHECKPOINT.exists():
        state: dict[str, int] = json.loads(CHECKPOINT.read_text())
        print(f"resumed at block {state['blocks']}", flush=True)
        return state
    print("started at block 0", flush=True)
    return {"blocks": 0, "inside": 0}


def save(state: dict[str, int]) -> None:
    """Keep the state, all of it or what was there before."""
    new = CHECKPOINT.with_suffix(".new")
    new.write_text(json.dumps(state))
    new.replace(CHECKPOINT)


def report(**fields: object) -> None:
    """Tell kelpie: it shows the progress, and takes a checkpoint where "commit" says so."""
    with REPORT.open("a") as file:
        file.write(json.dumps(fields) + "\n")


def throw(block: int) -> int:
    """One block; the same darts whoever throws them, so that an interrupted job has the result of a whole one."""
    darts = random.Random(block)
    return sum(darts.random() ** 2 + darts.random() ** 2 <= 1 for _ in range(DARTS_A_BLOCK))


def main(blocks: int, pause_s: float) -> None:
    """Throw all blocks and write the result."""
    state = load()
    while state["blocks"] < blocks:
        state["inside"] += throw(state["blocks"])
        state["blocks"] += 1
        save(state)
        report(progress=state["blocks"] / blocks, message=f"block {state['blocks']} of {blocks}", commit=True)
        time.sleep(pause_s)
    pi = 4 * state["inside"] / (blocks * DARTS_A_BLOCK)
    RESULT.write_text(json.dumps({"pi": pi, "blocks": blocks}))
    print(f"pi is about {pi:.4f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
