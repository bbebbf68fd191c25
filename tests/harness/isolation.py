"""Keeps the tests apart from the machine that they run on, and finds processes that they left behind."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable

import psutil

from kelpie_celery.local import binaries

# Inherited by every descendant, also by one whose parents are long gone.
MARK = "TEST_RUN_OF_KELPIE_CELERY"
FOREIGN_PREFIXES = ("KELPIE_", "AWS_", "SALAD_", "CELERY_", "FLOWER_")
KEPT = {binaries.REDIS_VARIABLE, binaries.WEED_VARIABLE}


def scrub_environment() -> None:
    """Drop what a developer's shell may say about Redis, storage and machines, and mark this process."""
    for name in list(os.environ):
        if name.startswith(FOREIGN_PREFIXES) and name not in KEPT:
            del os.environ[name]
    os.environ[MARK] = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"


def descendants() -> list[psutil.Process]:
    """Every live process that descends from this test process, orphans included."""
    mark, found = os.environ[MARK], []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def leftovers(timeout_s: float = 5.0, is_ours: Callable[[psutil.Process], bool] = lambda _: True) -> list[str]:
    """Descendants that are still there after ``timeout_s``, described; they are killed."""

    def counts(process: psutil.Process) -> bool:
        try:
            return is_ours(process)
        except psutil.Error:
            return False  # it ends meanwhile

    deadline = time.monotonic() + timeout_s
    while (left := [process for process in descendants() if counts(process)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    lines = []
    for process in left:
        try:
            lines.append(f"{process.pid}: {' '.join(process.cmdline())[:200]}")
            process.kill()
        except psutil.NoSuchProcess:
            continue
    return lines
