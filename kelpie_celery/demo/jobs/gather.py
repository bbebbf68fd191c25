"""Gathers the blocks of the Ising simulation into one curve, with error bars by bootstrap and Onsager's exact values.

``gather.py --resamples 400`` is the body of a chord: it looks at its parents' results (``KELPIE_PARENTS``), reads what
they wrote (``INPUT_DIR`` is their output prefix, one folder a block) and writes ``curve.csv`` and ``summary.json`` to
``OUTPUT_DIR``.

Limits: L. Onsager (1944) and C. N. Yang (1952) solved the infinite lattice; a small one rounds the transition off.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kelpie_celery.demo.jobs.ising import THERMALISE
from kelpie_celery.demo.jobs.resumable import Checkpoint, Pace, directory

BIN = 10  # measurements; longer than they remember each other, away from the critical point
CRITICAL = 2 / math.log(1 + math.sqrt(2))

Floats = NDArray[np.float64]


def parents_results() -> list[dict[str, Any]]:
    """The results of the jobs that this one follows; a chord's body gets all of them as one list."""
    (results,) = json.loads(Path(os.environ["KELPIE_PARENTS"]).read_text())
    return [dict(result) for result in results]


def load_blocks(folder: Path) -> list[tuple[float, Floats]]:
    """Temperature and binned series (energy, size of the magnetisation) of each block, by temperature."""
    blocks = []
    for path in sorted(folder.glob("*/block.json")):
        series = np.load(path.parent / "series.npy")
        settled = np.abs(series[int(len(series) * THERMALISE) :]) * [-1, 1]  # the energy is below zero
        binned = settled[: len(settled) // BIN * BIN].reshape(-1, BIN, 2).mean(axis=1)
        blocks.append((float(json.loads(path.read_text())["temperature"]), binned))
    return sorted(blocks, key=lambda block: block[0])


def onsager(temperature: float) -> float:
    """The exact magnetisation of the infinite lattice."""
    if temperature >= CRITICAL:
        return 0.0
    return float((1 - math.sinh(2 / temperature) ** -4) ** 0.125)


def resample(blocks: list[tuple[float, Floats]], rng: np.random.Generator) -> Floats:
    """Means of energy and magnetisation of each block, from bins drawn with replacement."""
    return np.array([bins[rng.integers(len(bins), size=len(bins))].mean(axis=0) for _, bins in blocks])


def run(blocks: list[tuple[float, Floats]], resamples: int, checkpoint: Checkpoint, rng: np.random.Generator) -> Floats:
    """All resamples, with checkpoints on the way: ``(resample, block, quantity)``."""
    stored = checkpoint.load(rng)
    drawn = np.zeros((resamples, len(blocks), 2)) if stored is None else np.array(stored["drawn"], np.float64)
    done = 0 if stored is None else int(stored["done"])

    def save() -> None:
        checkpoint.save(rng, drawn=drawn, done=np.array(done))

    pace = Pace("resamples", resamples, done)
    while done < resamples:
        drawn[done] = resample(blocks, rng)
        done += 1
        pace.after(done, save)
    return drawn


def write(blocks: list[tuple[float, Floats]], drawn: Floats, output: Path) -> None:
    """Write the curve; it depends on the blocks and the arguments only."""
    errors = drawn.std(axis=0, ddof=1)
    lines = ["temperature,energy,energy_error,magnetisation,magnetisation_error,onsager"]
    deviations = []
    for (temperature, bins), (energy_error, magnetisation_error) in zip(blocks, errors, strict=True):
        energy, magnetisation = bins.mean(axis=0)
        exact = onsager(temperature)
        row = (temperature, energy, energy_error, magnetisation, magnetisation_error, exact)
        lines.append(",".join(repr(float(value)) for value in row))
        if temperature < CRITICAL:
            deviations.append(abs(magnetisation - exact))
    summary = {"blocks": len(blocks), "largest_deviation_from_onsager": float(max(deviations, default=0.0))}
    (output / "curve.csv").write_text("\n".join(lines) + "\n")
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def main() -> None:
    """Gather the blocks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--resamples", type=int, required=True)
    options = parser.parse_args()
    parents = parents_results()
    blocks = load_blocks(directory("INPUT_DIR"))
    if len(parents) != len(blocks) or any(parent["exit_code"] != 0 for parent in parents):
        raise SystemExit(f"{len(blocks)} blocks in INPUT_DIR, and the results of {len(parents)} jobs")
    checkpoint = Checkpoint(directory("CHECKPOINT_DIR") / "gather.npz")
    drawn = run(blocks, options.resamples, checkpoint, np.random.default_rng(len(blocks)))
    write(blocks, drawn, directory("OUTPUT_DIR"))


if __name__ == "__main__":
    main()
