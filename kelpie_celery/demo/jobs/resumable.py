"""What a program needs to survive the death of its machine: an atomic checkpoint, a report, an orderly end.

Standard library and numpy only, and nothing of kelpie-celery: copy this file beside your own program.

Limits: one checkpoint file a program. A program that keeps several must make them visible at once, which takes a
directory and a rename of that.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

import numpy as np
from numpy.typing import NDArray

CHECKPOINT_EVERY_S = 1.0  # for a demonstration; minutes suit a job of days
REPORT_EVERY_S = 0.25
RUN_ME_AGAIN = os.EX_TEMPFAIL  # exit code 75: "I have checkpointed, run me again"

Arrays = Mapping[str, NDArray[np.generic]]


def directory(name: str) -> Path:
    """``INPUT_DIR``, ``CHECKPOINT_DIR`` or ``OUTPUT_DIR``."""
    return Path(os.environ[name])


class Checkpoint:
    """One file with everything that the rest of the computation depends on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, rng: np.random.Generator, **arrays: NDArray[np.generic]) -> None:
        """Replace the file at once: whoever reads it finds the old state or the new one, never a mixture."""
        draft = self.path.with_name(self.path.name + ".draft")
        state = np.array(json.dumps(rng.bit_generator.state))
        with draft.open("wb") as file:
            np.savez(file, rng=state, **arrays)  # type: ignore[arg-type]  # numpy's stubs take the names for options
            file.flush()
            # Before the rename: otherwise a power failure may leave the new name with no content.
            os.fsync(file.fileno())
        draft.replace(self.path)

    def load(self, rng: np.random.Generator) -> Arrays | None:
        """The arrays that were saved, and ``rng`` where it was then; None when there is no checkpoint."""
        if not self.path.exists():
            return None
        with np.load(self.path) as stored:
            arrays = {name: stored[name] for name in stored.files}
        rng.bit_generator.state = json.loads(str(arrays.pop("rng")))
        return arrays


class Pace:
    """Says when to checkpoint, reports progress, and ends the program in order when it is told to stop."""

    def __init__(self, unit: str, total: int, resumed_at: int) -> None:
        """Start to listen for SIGTERM.

        Args:
            unit: What a step is called, in the plural.
            total: How many steps there are.
            resumed_at: How many of them the checkpoint had.
        """
        self._unit, self._total, self._resumed_at = unit, total, resumed_at
        self._saved_at = self._reported_at = time.perf_counter()
        self._told_to_stop = False
        signal.signal(signal.SIGTERM, self._on_sigterm)
        self._report(resumed_at)

    def _on_sigterm(self, _signum: int, _frame: FrameType | None) -> None:
        # Only a note: a checkpoint in a signal handler could see the state between two steps.
        self._told_to_stop = True

    def after(self, step: int, save: Callable[[], None]) -> None:
        """Call it after each piece of work, with the number of steps done and what saves a checkpoint."""
        now = time.perf_counter()
        if self._told_to_stop:
            save()
            self._report(step)
            sys.exit(RUN_ME_AGAIN)
        if now - self._saved_at >= CHECKPOINT_EVERY_S:
            save()
            self._saved_at = time.perf_counter()
        if now - self._reported_at >= REPORT_EVERY_S or step >= self._total:
            self._report(step)

    def _report(self, step: int) -> None:
        self._reported_at = time.perf_counter()
        report = os.environ.get("KELPIE_REPORT")
        if report is None:  # run by hand
            return
        message = f"{step}/{self._total} {self._unit}, from {self._resumed_at}"
        with Path(report).open("a") as file:
            file.write(json.dumps({"progress": step / self._total, "message": message}) + "\n")
