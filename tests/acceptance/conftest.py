"""One stack of three workers for the tests that only hurt workers: it is mended after each test, not started anew."""

from __future__ import annotations

import contextlib
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from kelpie_celery.lifecycle import Status
from kelpie_celery.local.servers import SeaweedServer
from tests.harness.stack import Stack

WORKERS = 3


class SharedStack:
    """Starts the stack when it is first needed, and mends it for each test that follows."""

    def __init__(self, directory: Path, s3_server: SeaweedServer) -> None:
        self._directory, self._s3_server = directory, s3_server
        self._stack: Stack | None = None
        self._made = 0

    def ready(self) -> Stack:
        """The stack, whole: the three workers serve, nothing is armed, no job of another test is left."""
        if not self._s3_server.running:
            self._s3_server.start()
        self._s3_server.resume()
        if self._stack is not None:
            try:
                self._mend(self._stack)
            except Exception:  # whatever a test has broken must not break the next one
                self.close()
        if self._stack is None:
            self._made += 1
            self._stack = Stack(
                self._directory / f"shared{self._made}",
                self._s3_server,
                workers=WORKERS,
                bucket=f"shared-{uuid.uuid4().hex[:12]}",
            ).start()
        return self._stack

    def _mend(self, stack: Stack) -> None:
        if stack.local.redis is not None:
            stack.local.redis.resume()
        stack.faults.disarm()
        for job_id in stack.submitted:
            stack.ledger.cancel(job_id)
        for number, process in list(stack.local.workers.items()):
            process.send_signal(signal.SIGCONT)
            if number > WORKERS:
                process.kill()
        for number in range(1, WORKERS + 1):
            if number not in stack.local.workers:
                stack.local.start_worker(number)
        dead = [number for number in stack.local.machines if number > WORKERS]
        for number in dead:
            # Nobody waits for it to be ready any more.
            del stack.local.machines[number], stack.local.processes[f"worker-{number}"]
        stack.local.wait_ready()
        for job_id in stack.submitted:
            stack.wait_status(job_id, *(status for status in Status if status.ended))
        stack.submitted.clear()

    def close(self) -> None:
        """Kill everything."""
        if self._stack is not None:
            with contextlib.suppress(Exception):
                self._stack.close()
            self._stack = None


@pytest.fixture(scope="session")
def shared_stack(servers_directory: Path, s3_server: SeaweedServer) -> Iterator[SharedStack]:
    """The one stack of this test process."""
    shared = SharedStack(servers_directory, s3_server)
    yield shared
    shared.close()


@pytest.fixture
def stack(shared_stack: SharedStack, s3_server: SeaweedServer) -> Iterator[Stack]:
    """Three workers on three machines, each with one slot, that a test may kill, stop and start again."""
    yield shared_stack.ready()
    s3_server.resume()


@pytest.fixture(scope="module")
def flower_stack(tmp_path_factory: pytest.TempPathFactory, s3_server: SeaweedServer) -> Iterator[Stack]:
    """One worker, control worker and Flower; a job that failed waits for an hour before it is tried again."""
    stack = Stack(
        tmp_path_factory.mktemp("flower"),
        s3_server,
        workers=1,
        flower=True,
        bucket=f"flower-{uuid.uuid4().hex[:12]}",
        env={"KELPIE_RETRY_BASE_S": "3600", "KELPIE_RETRY_MAX_S": "3600"},
    )
    try:
        yield stack.start()
    finally:
        stack.close()


@pytest.fixture
def prefix() -> str:
    """A prefix of this test alone, in the stack's bucket."""
    return f"{uuid.uuid4().hex[:12]}/"
