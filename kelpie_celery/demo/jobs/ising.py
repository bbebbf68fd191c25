"""One block of a Monte Carlo simulation: the two-dimensional Ising model at one temperature.

``ising.py --block 2 --sweeps 20000`` reads ``model.json`` from ``INPUT_DIR`` and writes ``series.npy`` (energy and
magnetisation a spin), ``lattice.npy`` (the last configuration) and ``block.json`` to ``OUTPUT_DIR``.

The checkpoint holds lattice, series and the state of the random numbers, so that a run that was interrupted ends with
the very bytes of one that was not. Limits: Metropolis' rule on a checkerboard, which is slow near the critical point.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kelpie_celery.demo.jobs.resumable import Checkpoint, Pace, directory

MEASURE_EVERY = 10  # sweeps; neighbours in time are alike
PIECE = 10  # sweeps between two looks at the clock
THERMALISE = 0.2  # of the measurements, left out of the averages


@dataclass
class Simulation:
    """The state; ``advance`` changes it, and nothing else does."""

    temperature: float
    spins: NDArray[np.int8]
    series: NDArray[np.float64]
    rng: np.random.Generator
    sweep: int = 0

    def __post_init__(self) -> None:
        size = len(self.spins)
        colour = np.indices((size, size)).sum(axis=0) % 2
        self._colours = (colour == 0, colour == 1)
        # The energy that a flip costs is one of -8, -4, 0, 4, 8.
        self._odds = np.exp(-np.arange(-8, 9, 4) / self.temperature).astype(np.float32)

    def advance(self, sweeps: int) -> None:
        """Do some sweeps, each a look at every spin."""
        for _ in range(sweeps):
            for colour in self._colours:
                self._flip(colour)
            self.sweep += 1
            if self.sweep % MEASURE_EVERY == 0:
                self.series[self.sweep // MEASURE_EVERY - 1] = self._measure()

    def _flip(self, colour: NDArray[np.bool_]) -> None:
        cost = 2 * self.spins * _neighbours(self.spins)
        accepted = self.rng.random(self.spins.shape, dtype=np.float32) < self._odds[cost // 4 + 2]
        np.negative(self.spins, out=self.spins, where=accepted & colour)

    def _measure(self) -> tuple[float, float]:
        energy = -float(np.sum(self.spins * _neighbours(self.spins), dtype=np.int64)) / 2
        return energy / self.spins.size, float(np.sum(self.spins, dtype=np.int64)) / self.spins.size


def _neighbours(spins: NDArray[np.int8]) -> NDArray[np.int8]:
    total: NDArray[np.int8] = (
        np.roll(spins, 1, 0) + np.roll(spins, -1, 0) + np.roll(spins, 1, 1) + np.roll(spins, -1, 1)
    )
    return total


def fresh(model: dict[str, Any], block: int, sweeps: int) -> Simulation:
    """A block at its start; its random numbers are its own."""
    rng = np.random.default_rng([model["seed"], block])
    size = model["size"]
    # Ordered at the start: below the critical temperature a random lattice may freeze in stripes.
    spins = np.ones((size, size), np.int8)
    return Simulation(model["temperatures"][block], spins, np.zeros((sweeps // MEASURE_EVERY, 2)), rng)


def restore(simulation: Simulation, checkpoint: Checkpoint) -> None:
    """Go on where the checkpoint was taken, if there is one."""
    stored = checkpoint.load(simulation.rng)
    if stored is not None:
        simulation.spins[:] = stored["spins"]
        simulation.series[:] = stored["series"]
        simulation.sweep = int(stored["sweep"])


def run(simulation: Simulation, sweeps: int, checkpoint: Checkpoint) -> None:
    """Simulate to the end, with checkpoints on the way."""

    def save() -> None:
        checkpoint.save(
            simulation.rng, spins=simulation.spins, series=simulation.series, sweep=np.array(simulation.sweep)
        )

    pace = Pace("sweeps", sweeps, simulation.sweep)
    while simulation.sweep < sweeps:
        simulation.advance(min(PIECE, sweeps - simulation.sweep))
        pace.after(simulation.sweep, save)


def write(simulation: Simulation, block: int, output: Path) -> None:
    """Write the results; they depend on the input and the arguments only."""
    settled = simulation.series[int(len(simulation.series) * THERMALISE) :]
    summary = {
        "block": block,
        "temperature": simulation.temperature,
        "sweeps": simulation.sweep,
        "energy": float(settled[:, 0].mean()),
        "magnetisation": float(np.abs(settled[:, 1]).mean()),
    }
    np.save(output / "series.npy", simulation.series)
    np.save(output / "lattice.npy", simulation.spins)
    (output / "block.json").write_text(json.dumps(summary, indent=2) + "\n")


def main() -> None:
    """Run one block."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--block", type=int, required=True)
    parser.add_argument("--sweeps", type=int, required=True)
    options = parser.parse_args()
    model = json.loads((directory("INPUT_DIR") / "model.json").read_text())
    checkpoint = Checkpoint(directory("CHECKPOINT_DIR") / "ising.npz")
    simulation = fresh(model, options.block, options.sweeps)
    restore(simulation, checkpoint)
    run(simulation, options.sweeps, checkpoint)
    write(simulation, options.block, directory("OUTPUT_DIR"))


if __name__ == "__main__":
    main()
