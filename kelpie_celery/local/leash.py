"""Become another program that dies with its parent: ``python -I -S leash.py PARENT_PID PROGRAM [ARG...]``.

Standard library only, for it runs isolated, before the program that it becomes. The process id stays the
same, so that a signal sent to it reaches the program itself.

Limits: Linux. Elsewhere it only executes the program, and a SIGKILLed parent leaves it behind.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(argv: list[str]) -> None:
    """Tie this process to ``PARENT_PID``, then execute the program; never returns."""
    parent_pid, program = int(argv[1]), argv[2:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        # Asked after the prctl: a parent that died before it would never send the signal.
        if os.getppid() != parent_pid:
            sys.exit(f"leash: the parent {parent_pid} is gone")
    try:
        os.execv(program[0], program)  # noqa: S606 - no shell is the point
    except OSError as error:
        sys.exit(f"leash: {program[0]} cannot be run: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv)
