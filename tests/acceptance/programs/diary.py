"""What a program tells the test behind the product's back: JSON lines in a file outside of the job's directories."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

REFUSED = 23
"""Exit code of a program whose checkpoint does not fit together."""


class Refused(Exception):
    """The checkpoint does not fit together."""


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        what: ``start``, with the step that was resumed at; ``burst``, when a file was written; ``saved``, when
            all were; ``refused``; ``done``.
    """

    what: str
    attempt: int
    pid: int
    step: int = -1
    why: str = ""


class Diary:
    """The diary of one job, which all of its attempts write to."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, what: str, step: int = -1, why: str = "") -> None:
        line = {"what": what, "attempt": int(os.environ.get("KELPIE_ATTEMPT", "0")), "pid": os.getpid(),
                "step": step, "why": why}  # fmt: skip
        # In one write, and on a line of its own, so that the end of a program that is killed does not lie within
        # another one's line. SIGKILL may cut a write at the end of a page.
        with self._path.open("ab", buffering=0) as file:
            file.write(b"\n" + json.dumps(line).encode() + b"\n")

    def refuse(self, error: Refused) -> NoReturn:
        """Say why, and end."""
        self.write("refused", why=str(error))
        print(f"REFUSED: {error}", flush=True)
        sys.exit(REFUSED)

    def read(self) -> list[Line]:
        """Its lines, but for one that was cut: a refusal that is lost so comes again with the next attempt."""
        if not self._path.exists():
            return []
        found = []
        for text in self._path.read_bytes().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                found.append(Line(**json.loads(text)))
        return found


def report(**fields: object) -> None:
    """Append a line to ``KELPIE_REPORT``, where there is one."""
    path = os.environ.get("KELPIE_REPORT")
    if path:
        with Path(path).open("a") as file:
            file.write(json.dumps(fields) + "\n")
