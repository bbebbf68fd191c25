"""Fault points: a worker that dies, or stands still, exactly where the test says.

A worker (``faulty_worker.py``) with ``TEST_FAULTS=DIR`` looks for the file ``DIR/POINT`` (or ``DIR/POINT.TAG``, for one
job) each time it passes a point, takes it away and sends itself the signal that the file names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Action = Literal["kill", "stop"]


class Faults:
    """The directory of armed fault points."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def env(self) -> dict[str, str]:
        """What a worker must have in its environment."""
        return {"TEST_FAULTS": str(self.directory)}

    def arm(self, point: str, action: Action = "kill", job: str | None = None) -> None:
        """Have the next worker that passes ``point`` (with ``job``) kill or stop itself; once."""
        draft = self.directory / f".{point}.draft"
        draft.write_text(action)
        draft.rename(self._file(point, job))  # at once: a worker never reads half a word

    def armed(self, point: str, job: str | None = None) -> bool:
        """Whether nobody has passed the point since it was armed."""
        return self._file(point, job).exists()

    def disarm(self) -> None:
        """Take back everything that is armed."""
        for file in self.directory.iterdir():
            file.unlink(missing_ok=True)

    def _file(self, point: str, job: str | None) -> Path:
        return self.directory / (f"{point}.{job}" if job else point)
