"""``KELPIE_STATE_FILE``: what this worker does for its jobs, as Kelpie writes it, for a job to read.

JSON: ``start`` of the worker, and ``jobs``: ``id``, ``status`` (``running``, then the attempt's outcome), ``start``,
``exitTime``, ``exitCode``, ``end``, ``activeUploads``, ``activeDownloads``; times in ISO 8601. It is replaced as a
whole, by a thread of its own, so that no job waits for it.

Limits: the last 50 jobs. Where the file lies in a directory that a job stores, it is not written while that job runs:
each word about an upload would be something new to upload.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kelpie_celery.clock import Clock
from kelpie_celery.ledger.types import Ending
from kelpie_celery.lifecycle import Outcome
from kelpie_worker.sync.traffic import Traffic

log = logging.getLogger(__name__)

JOBS_KEPT = 50
_PAUSE_S = 0.2
_STATUS = {Outcome.FAILURE: "failed", Outcome.INTERRUPTION: "interrupted"}


@dataclass(eq=False)
class JobState:
    """One attempt of a job here."""

    file: StateFile
    id: str
    start: float
    status: str = "running"
    exited_at: float | None = None
    exit_code: int | None = None
    ended_at: float | None = None
    traffic: Traffic = field(init=False)

    def __post_init__(self) -> None:
        self.traffic = Traffic(self.file.changed)

    def exited(self, code: int | None) -> None:
        """The command has ended; no code where a signal ended it."""
        self.exited_at, self.exit_code = self.file.now(), code
        self.file.changed()

    def document(self) -> dict[str, Any]:
        """As it is written."""
        given = {
            "exitTime": _iso(self.exited_at), "exitCode": self.exit_code, "end": _iso(self.ended_at),
        }  # fmt: skip
        return {
            "id": self.id, "status": self.status, "start": _iso(self.start),
            **{name: value for name, value in given.items() if value is not None},
            "activeUploads": self.traffic.uploads, "activeDownloads": self.traffic.downloads,
        }  # fmt: skip


class StateFile:
    """The file of one worker process."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path, self._clock = path.absolute(), clock
        self._start = clock.now()
        self._jobs: list[JobState] = []
        self._in_the_way: list[JobState] = []
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._thread: threading.Thread | None = None
        self._failed = False

    def now(self) -> float:
        """Wall clock, seconds since the epoch."""
        return self._clock.now()

    def begin(self, job_id: str) -> JobState:
        """A job's attempt begins here."""
        state = JobState(self, job_id, self.now())
        with self._lock:
            self._jobs = [*self._jobs[-JOBS_KEPT + 1 :], state]
        self.changed()
        return state

    def end(self, state: JobState, ending: Ending | None) -> None:
        """It has ended here; without an ending it lost its job."""
        outcome = ending.outcome if ending else Outcome.INTERRUPTION
        state.status, state.ended_at = _STATUS.get(outcome, outcome.value), self.now()
        self.changed()

    @contextlib.contextmanager
    def unless_within(self, state: JobState, directories: Sequence[Path]) -> Iterator[None]:
        """Do not write while the body runs if that would change one of these directories."""
        within = any(self.path.resolve().is_relative_to(directory.resolve()) for directory in directories)
        if within:
            log.info(
                "the state file lies in a directory that the job stores, and is not written meanwhile",
                extra={"action": "state_file_left_out", "job_id": state.id, "path": str(self.path)},
            )
            self._in_the_way.append(state)
        else:
            # The command must find itself in it.
            self.save()
        try:
            yield
        finally:
            if within:
                self._in_the_way.remove(state)

    def changed(self) -> None:
        """Something is new; it is written soon."""
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="kelpie-state", daemon=True)
                    self._thread.start()
        self._news.set()

    def _run(self) -> None:
        while True:
            self._news.wait()
            self._news.clear()
            self.save()
            self._clock.sleep(_PAUSE_S)

    def save(self) -> None:
        """Write it now; blocking."""
        with self._lock:
            if self._in_the_way:
                return
            jobs = [job.document() for job in self._jobs]
            text = json.dumps({"start": _iso(self._start), "jobs": jobs}, indent=2)
            beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            try:
                beside.write_text(text)
                beside.replace(self.path)
            except OSError as e:
                with contextlib.suppress(OSError):
                    beside.unlink()
                if not self._failed:
                    self._failed = True
                    log.warning(
                        "the state file cannot be written; jobs do without it",
                        extra={"action": "state_file_failed", "path": str(self.path), "error": str(e)},
                    )


def _iso(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
