"""Become a job's command once somebody listens: ``python -I -S launch.py FOLDER PROGRAM [ARG...]``.

Standard library only, for it runs isolated, before the program that it becomes; the process id stays the same, so that
signals reach the program itself. It writes ``FOLDER/<attempt>.ready`` (who it is, and where its files are) and waits
for ``FOLDER/<attempt>.go``.

Limits: after ``WAIT_S`` it goes on unheard, so that a job never hangs on its listener.
"""

from __future__ import annotations

import json
import os
import sys
import time

WAIT_S = 60.0
_POLL_S = 0.01
NOT_FOUND, NOT_EXECUTABLE = 127, 126


def main(argv: list[str]) -> None:
    """Say that the command is about to start, wait, and become it; never returns."""
    folder, program = argv[1], argv[2:]
    path = os.path.join(folder, os.environ["KELPIE_ATTEMPT"])
    told = {
        "pid": os.getpid(),
        "cwd": os.getcwd(),
        "report": os.environ["KELPIE_REPORT"],
        "checkpoint_dir": os.environ["CHECKPOINT_DIR"],
    }
    with open(path + ".draft", "w", encoding="utf-8") as file:
        json.dump(told, file)
    os.rename(path + ".draft", path + ".ready")
    deadline = time.monotonic() + WAIT_S
    while not os.path.exists(path + ".go") and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    try:
        os.execvp(program[0], program)
    except OSError as error:
        print(f"{program[0]} cannot be run: {error.strerror}", file=sys.stderr)
        sys.exit(NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE)


if __name__ == "__main__":
    main(sys.argv)
