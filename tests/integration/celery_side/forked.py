"""Worker processes that start in a moment: forked from a server that has imported Celery already.

A kill in these tests costs 0.2 s instead of the 2 s in which a fresh interpreter imports everything. What runs in the
child is Celery's own command line.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

from kelpie_celery.local.processes import describe_exit, tail_of
from tests.harness.waiting import eventually

_PRELOAD = [
    "pytest", "celery.bin.celery", "celery.bin.worker", "celery.apps.worker", "celery.worker.consumer",
    "celery.worker.control", "celery.events.receiver", "celery.backends.redis", "kombu.transport.redis",
    "celery.concurrency.thread", "kelpie_celery.celery", "kelpie_scaler.tasks", "tests.integration.celery_side.faults",
]  # fmt: skip
_context = multiprocessing.get_context("forkserver")
_PR_SET_PDEATHSIG = 1


def _main(argv: Sequence[str], env: Mapping[str, str], log: str) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["celery", *argv]
    from celery.bin.celery import main

    main()


class Forked:
    """One such process; the part of ``ManagedProcess`` that these tests need."""

    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path, ready_file: Path) -> None:
        self.name, self.log, self._ready_file = name, log, ready_file
        self._argv, self._env = list(argv), dict(env)
        self._process: Any = None

    def start(self) -> None:
        self._ready_file.unlink(missing_ok=True)
        _context.set_forkserver_preload(_PRELOAD)
        self._process = _context.Process(target=_main, args=(self._argv, self._env, str(self.log)), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    @property
    def running(self) -> bool:
        return self._process is not None and bool(self._process.is_alive())

    def wait_ready(self, timeout_s: float) -> None:
        eventually(f"{self.name} is ready", self._ready_file.exists, timeout_s, lambda: "\n".join(self.tail()))

    def wait(self, timeout_s: float) -> int:
        """Its exit code, once it has ended."""
        self._process.join(timeout_s)
        assert self._process.exitcode is not None, f"{self.name} still runs after {timeout_s:g} s"
        return int(self._process.exitcode)

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def pause(self) -> None:
        self.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        process = self._process  # whoever keeps it alive may start another one meanwhile
        process.kill()
        process.join()

    def tail(self, lines: int = 30) -> list[str]:
        ending = describe_exit(self._process.exitcode if self._process else None)
        return [f"({ending})", *tail_of(self.log, lines)]


def stop_server() -> None:
    """End the server, which would live as long as the test process."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]
