"""A program whose state is a mapped file, open all the time: it flushes, reports, and rests a moment.

A sequence number stands at both ends, and a digest of what is between. Each step writes the first end, then the middle
in pieces with pauses, then the other end: whoever takes it in between has a torn state.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.acceptance.programs.diary import Diary, Refused, report

NAME = "state.npy"
WORDS, PIECES = 500_000, 4
Words = NDArray[np.int64]


def digest(words: Words) -> int:
    return int.from_bytes(hashlib.sha256(words[1:-2].tobytes()).digest()[:7], "big")


def middle(step: int) -> Words:
    return np.random.default_rng(step).integers(0, 1 << 62, WORDS - 3)


def load(directory: Path) -> int:
    """The step; 0 before the first checkpoint.

    Raises:
        Refused: It is torn.
    """
    if not (directory / NAME).exists():
        return 0
    words: Words = np.load(directory / NAME)
    first, last, told = int(words[0]), int(words[-2]), int(words[-1])
    if first != last:
        raise Refused(f"the sequence numbers are {first} and {last}")
    if digest(words) != told:
        raise Refused(f"the digest at step {first} differs")
    return first


def advance(words: Words, step: int, pause_s: float) -> None:
    words[0] = step
    for place, part in zip(
        np.array_split(np.arange(1, WORDS - 2), PIECES), np.array_split(middle(step), PIECES), strict=True
    ):
        words[place[0] : place[-1] + 1] = part
        time.sleep(pause_s)
    words[-2], words[-1] = step, digest(words)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--diary", type=Path, required=True)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--go", type=Path, required=True, help="there are more steps until this file is there")
    options = parser.parse_args()
    diary = Diary(options.diary)
    options.checkpoint.mkdir(parents=True, exist_ok=True)
    try:
        step = load(options.checkpoint)
    except Refused as error:
        diary.refuse(error)
    diary.write("start", step)
    path = options.checkpoint / NAME
    if not path.exists():
        # Whole from the start: the first thing that is seen of it must not be a file of zeros.
        fresh = np.zeros(WORDS, np.int64)
        fresh[-1] = digest(fresh)
        np.save(path, fresh)
    words: Words = np.lib.format.open_memmap(path, mode="r+")
    while step < options.steps or not options.go.exists():
        step += 1
        advance(words, step, options.pause)
        words.flush()  # type: ignore[attr-defined]  # of the memmap that it is
        report(commit=True)
        diary.write("saved", step)
        time.sleep(random.uniform(0.2, 0.7))
    options.output.mkdir(parents=True, exist_ok=True)
    np.save(options.output / NAME, words)
    diary.write("done", step)


if __name__ == "__main__":
    main()
