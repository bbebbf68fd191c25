"""Training of a small neural network: which arm of a spiral does a point belong to?

``train.py --hidden 48 --epochs 200 --seed 1`` reads ``points.npy`` and ``labels.npy`` from ``INPUT_DIR`` and writes
``weights.npz``, ``history.csv`` and ``metrics.json`` to ``OUTPUT_DIR``.

The checkpoint holds weights, the optimizer's moments, the random numbers and the history: without any one of these the
training would go on, and end elsewhere. Limits: everything fits into memory; one thread, since the order in which
several add numbers up is not theirs to keep.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kelpie_celery.demo.jobs.resumable import Arrays, Checkpoint, Pace, directory

Floats = NDArray[np.float64]

BATCH = 64
RATE, DECAY_1, DECAY_2, TINY = 3e-3, 0.9, 0.999, 1e-8  # Adam's
HELD_OUT = 5  # every fifth point is for the test


@dataclass
class Data:
    """Points and the arm that each belongs to."""

    points: Floats
    labels: NDArray[np.int64]

    def split(self) -> tuple[Data, Data]:
        """For training, and for the test."""
        test = np.arange(len(self.labels)) % HELD_OUT == 0
        return Data(self.points[~test], self.labels[~test]), Data(self.points[test], self.labels[test])


@dataclass
class Training:
    """The state; ``epoch`` changes it, and nothing else does."""

    weights: list[Floats]
    rng: np.random.Generator
    epochs: int = 0
    steps: int = 0
    history: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.means = [np.zeros_like(w) for w in self.weights]
        self.squares = [np.zeros_like(w) for w in self.weights]

    def epoch(self, data: Data) -> None:
        """One pass over the data in a fresh order."""
        order = self.rng.permutation(len(data.labels))
        losses = []
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            loss, gradients = _loss_and_gradients(self.weights, data.points[chosen], data.labels[chosen])
            self._adam(gradients)
            losses.append(loss)
        self.epochs += 1
        self.history.append(float(np.mean(losses)))

    def _adam(self, gradients: list[Floats]) -> None:
        self.steps += 1
        for i, gradient in enumerate(gradients):
            self.means[i] += (1 - DECAY_1) * (gradient - self.means[i])
            self.squares[i] += (1 - DECAY_2) * (gradient * gradient - self.squares[i])
            unbiased = self.means[i] / (1 - DECAY_1**self.steps)
            self.weights[i] -= RATE * unbiased / (np.sqrt(self.squares[i] / (1 - DECAY_2**self.steps)) + TINY)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Everything but the random numbers."""
        groups = {"weight": self.weights, "mean": self.means, "square": self.squares}
        arrays: dict[str, NDArray[np.generic]] = {
            f"{name}{i}": array for name, group in groups.items() for i, array in enumerate(group)
        }
        return arrays | {"history": np.array(self.history), "counts": np.array([self.epochs, self.steps])}

    def take(self, arrays: Arrays) -> None:
        """The opposite of ``arrays``."""
        for name, group in (("weight", self.weights), ("mean", self.means), ("square", self.squares)):
            for i, array in enumerate(group):
                array[:] = arrays[f"{name}{i}"]
        self.history = [float(loss) for loss in arrays["history"]]
        self.epochs, self.steps = (int(count) for count in arrays["counts"])


def fresh(hidden: int, seed: int) -> Training:
    """An untrained network with two hidden layers."""
    rng = np.random.default_rng(seed)
    sizes = [2, hidden, hidden, 3]
    weights: list[Floats] = []
    for inputs, outputs in pairwise(sizes):
        weights += [rng.normal(0, np.sqrt(2 / inputs), (inputs, outputs)), np.zeros(outputs)]
    return Training(weights, rng)


def _forward(weights: list[Floats], points: Floats) -> list[Floats]:
    """What each layer puts out; the last are logarithms of odds."""
    layers = [points]
    for i in range(0, len(weights), 2):
        raw = layers[-1] @ weights[i] + weights[i + 1]
        layers.append(raw if i + 2 == len(weights) else np.maximum(raw, 0))
    return layers


def _loss_and_gradients(weights: list[Floats], points: Floats, labels: NDArray[np.int64]) -> tuple[float, list[Floats]]:
    layers = _forward(weights, points)
    odds = np.exp(layers[-1] - layers[-1].max(axis=1, keepdims=True))
    chances = odds / odds.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    loss = float(-np.log(chances[rows, labels] + TINY).mean())
    error = chances
    error[rows, labels] -= 1
    error /= len(labels)
    gradients: list[Floats] = []
    for i in range(len(weights) - 2, -1, -2):
        gradients = [layers[i // 2].T @ error, error.sum(axis=0), *gradients]
        error = (error @ weights[i].T) * (layers[i // 2] > 0)
    return loss, gradients


def accuracy(training: Training, data: Data) -> float:
    """The share of points that are put on the right arm."""
    return float((_forward(training.weights, data.points)[-1].argmax(axis=1) == data.labels).mean())


def run(training: Training, data: Data, epochs: int, checkpoint: Checkpoint) -> None:
    """Train to the end, with checkpoints on the way."""

    def save() -> None:
        checkpoint.save(training.rng, **training.arrays())

    pace = Pace("epochs", epochs, training.epochs)
    while training.epochs < epochs:
        training.epoch(data)
        pace.after(training.epochs, save)


def write(training: Training, test: Data, output: Path) -> None:
    """Write the results; they depend on the input and the arguments only."""
    weights = {f"weight{i}": weight for i, weight in enumerate(training.weights)}
    with (output / "weights.npz").open("wb") as file:
        np.savez(file, **weights)  # type: ignore[arg-type]  # numpy's stubs take the names for options
    lines = [f"{epoch},{loss!r}" for epoch, loss in enumerate(training.history, start=1)]
    (output / "history.csv").write_text("\n".join(["epoch,loss", *lines]) + "\n")
    metrics = {"epochs": training.epochs, "loss": training.history[-1], "accuracy": accuracy(training, test)}
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


def load(folder: Path) -> Data:
    """The data set."""
    return Data(np.load(folder / "points.npy"), np.load(folder / "labels.npy"))


def main() -> None:
    """Train one network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name in ("hidden", "epochs", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    data, test = load(directory("INPUT_DIR")).split()
    checkpoint = Checkpoint(directory("CHECKPOINT_DIR") / "training.npz")
    training = fresh(options.hidden, options.seed)
    stored = checkpoint.load(training.rng)
    if stored is not None:
        training.take(stored)
    run(training, data, options.epochs, checkpoint)
    write(training, test, directory("OUTPUT_DIR"))


if __name__ == "__main__":
    main()
