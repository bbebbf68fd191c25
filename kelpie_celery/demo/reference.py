"""The runs that the jobs are compared with: the same commands, one after the other, in plain directories, undisturbed.

Limits: one thread and one core, so that the machines of the demo keep the other.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from kelpie_celery.clock import Clock
from kelpie_celery.demo.plan import ONE_THREAD, PlannedJob
from kelpie_celery.local.errors import LocalStackError
from kelpie_celery.local.processes import ManagedProcess

_LIMIT_S = 180.0


class References:
    """Runs them in a thread.

    Attributes:
        seconds: What each one took, by the job's name; the finished ones.
    """

    def __init__(self, jobs: Sequence[PlannedJob], folder: Path, clock: Clock) -> None:
        """References that are not started yet.

        Args:
            jobs: What to run, in this order.
            folder: Holds ``input/`` and gets the outputs, all under their later keys.
            clock: Where time comes from.
        """
        self._jobs, self._folder, self._clock = jobs, folder, clock
        self._process: ManagedProcess | None = None
        self._stopped = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="demo-references", daemon=True)
        self.seconds: dict[str, float] = {}

    def start(self) -> None:
        """Start the first one, then the next."""
        self._thread.start()

    def stop(self) -> None:
        """End the one that runs; harmless when all are done."""
        self._stopped.set()
        if self._process is not None:
            self._process.kill()

    def wait(self) -> None:
        """Wait until all are done.

        Raises:
            LocalStackError: One failed.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error

    @property
    def done(self) -> bool:
        """Whether all are done, or one failed."""
        return not self._thread.is_alive()

    def outputs(self, job: PlannedJob) -> dict[str, bytes]:
        """What a job must have written, by path."""
        folder = self._folder / job.outputs
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    def _run(self) -> None:
        try:
            for job in self._jobs:
                if not self._stopped.is_set():
                    self.seconds[job.name] = self._run_one(job)
        except Exception as error:
            self._error = error

    def _run_one(self, job: PlannedJob) -> float:
        began = self._clock.boottime()
        process = ManagedProcess(
            f"reference of {job.name}", job.argv, env=self._environment(job), cwd=self._folder,
            log=self._folder / f"{job.name}.log", clock=self._clock,
        )  # fmt: skip
        self._process = process
        process.start()
        if self._stopped.is_set():
            process.kill()
        if process.wait(_LIMIT_S) != 0 and not self._stopped.is_set():
            raise LocalStackError(f"{process.name} failed ({process.ending}): {' | '.join(process.tail(5))}")
        return self._clock.boottime() - began

    def _environment(self, job: PlannedJob) -> Mapping[str, str]:
        places = {"INPUT_DIR": job.inputs, "OUTPUT_DIR": job.outputs, "CHECKPOINT_DIR": f"checkpoint/{job.name}"}
        directories = {name: self._folder / place for name, place in places.items()}
        for path in directories.values():
            path.mkdir(parents=True, exist_ok=True)
        parents = self._folder / f"{job.name}.parents.json"
        parents.write_text(json.dumps([[{"exit_code": 0}] * job.parents] if job.parents else []))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("KELPIE_")}
        paths = {name: str(path) for name, path in directories.items()}
        return {**inherited, **paths, **ONE_THREAD, "KELPIE_PARENTS": str(parents)}
