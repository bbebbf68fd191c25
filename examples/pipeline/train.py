"""The second step: logistic regression by gradient descent; goes on where its checkpoint ends.

python3 train.py EPOCHS
"""

import json
import math
import os
import random
import sys
from pathlib import Path

DATA, STATE, OUT = Path("data"), Path("state"), Path("out")
REPORT = Path(os.environ.get("KELPIE_REPORT", os.devnull))
RATE = 0.05


def save(state):
    """Replace the checkpoint as a whole."""
    draft = STATE / "weights.new"
    draft.write_text(json.dumps(state))
    draft.replace(STATE / "weights.json")


def load():
    """The last checkpoint, or where everything begins."""
    path = STATE / "weights.json"
    return json.loads(path.read_text()) if path.exists() else {"epoch": 0, "weights": [0.0, 0.0, 0.0]}


def report(**fields):
    """Tell kelpie: it shows the progress, and takes a checkpoint where "commit" says so."""
    with REPORT.open("a") as file:
        file.write(json.dumps(fields) + "\n")


def descend(weights, rows, epoch):
    """One epoch; the order of the rows depends on the epoch alone, so no random state has to be kept."""
    rows = random.Random(epoch).sample(rows, len(rows))
    for row in rows:
        inputs = [1.0, *row["features"]]
        error = 1 / (1 + math.exp(-sum(w * x for w, x in zip(weights, inputs, strict=True)))) - row["label"]
        weights = [w - RATE * error * x for w, x in zip(weights, inputs, strict=True)]
    return weights


def main(epochs):
    """Do the epochs that are left."""
    for folder in (STATE, OUT):
        folder.mkdir(exist_ok=True)
    rows, state = json.loads((DATA / "train.json").read_text()), load()
    print(f"starting at epoch {state['epoch']}", flush=True)
    while state["epoch"] < epochs:
        state = {"epoch": state["epoch"] + 1, "weights": descend(state["weights"], rows, state["epoch"])}
        save(state)
        report(progress=state["epoch"] / epochs, message=f"epoch {state['epoch']}", commit=True)
    (OUT / "model.json").write_text(json.dumps(state["weights"]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
