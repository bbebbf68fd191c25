"""A whole stack of real processes for one test: own Redis, shared S3, workers to kill, jobs to follow."""

from __future__ import annotations

import signal
import sys
import uuid
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import pytest

from kelpie_celery.errors import KelpieError
from kelpie_celery.ledger.records import JobRecord
from kelpie_celery.lifecycle import Phase, Status
from kelpie_celery.local.processes import tail_of
from kelpie_celery.local.servers import Fsync, SeaweedServer
from kelpie_celery.local.stack import LocalStack
from tests.harness.faults import Action, Faults
from tests.harness.looking import processes_of
from tests.harness.waiting import eventually

if TYPE_CHECKING:
    from celery.result import AsyncResult
    from mypy_boto3_s3 import S3Client

    from kelpie_celery.app import KelpieApp
    from kelpie_celery.ledger.ledger import Ledger

T = TypeVar("T")
GROUP = "test-group"
FAULTY_WORKER = (sys.executable, "-P", str(Path(__file__).with_name("faulty_worker.py")))

# Seconds where production has minutes; the proportions between them are production's.
FAST = {
    "KELPIE_MIN_LEASE_S": "3",
    "KELPIE_RETRY_BASE_S": "0.2",
    "KELPIE_PULSE_S": "0.2",
    "KELPIE_MAINTAIN_S": "0.5",
    "KELPIE_QUIET_S": "0.3",
    "KELPIE_COMMIT_INTERVAL_S": "0.5",
    "KELPIE_OUTBOX_LEASE_S": "2",
}
TAIL_LINES = 25


class Stack:
    """One test's stack.

    Attributes:
        local: The processes.
        faults: The fault points of its workers.
        group: The container group of its workers.
        bucket: A bucket of this stack alone.
        app: A Celery app of this test process that talks to it.
    """

    def __init__(
        self,
        directory: Path,
        s3_server: SeaweedServer,
        *,
        workers: int = 2,
        slots: int = 1,
        control: bool = True,
        beat: bool = True,
        flower: bool = False,
        appendfsync: Fsync = "everysec",
        bucket: str = "test",
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.group, self.bucket, self._s3_server = GROUP, bucket, s3_server
        self.faults = Faults(directory / "faults")
        self.local = LocalStack(
            directory,
            workers=workers,
            group=GROUP,
            slots=slots,
            appendfsync=appendfsync,
            s3=s3_server,
            bucket=bucket,
            control=control,
            beat=beat,
            flower=flower,
            env={**FAST, **self.faults.env(), **(env or {})},
            worker_command=FAULTY_WORKER,
        )
        self._env = {**FAST, **(env or {})}
        self._app: KelpieApp | None = None
        self.submitted: list[str] = []

    def start(self) -> Self:
        """Start everything and wait until it is ready."""
        self.local.start()
        return self

    def close(self) -> None:
        """Kill everything."""
        if self._app is not None:
            # Results that are garbage collected later must not look for a Redis that is gone, with Celery's patience.
            backend: Any = self._app.backend
            backend.result_consumer.subscribed_to.clear()
            self._app.close()
            self._app.ledger.redis.close()
        self.local.kill()

    # -- the client's side --------------------------------------------------------------------------------------

    def env(self) -> dict[str, str]:
        """The environment for a client of this stack, such as a CLI that is run as a process."""
        return {**self.local.env(), **self._env}

    @property
    def app(self) -> KelpieApp:
        """A Celery app with this stack's settings."""
        if self._app is None:
            from kelpie_celery.celery import create_app
            from kelpie_celery.settings import load_settings

            self._app = create_app(load_settings(self.env()))
        return self._app

    @property
    def run_job(self) -> Any:
        """The job's task, for ``delay``, ``s``, chains, groups and chords."""
        return self.app.tasks["kelpie.run_job"]

    @property
    def ledger(self) -> Ledger:
        """The ledger."""
        return self.app.ledger

    @cached_property
    def s3(self) -> S3Client:
        """A boto3 client of the S3 server; to make one takes a quarter of a second."""
        return self._s3_server.client()

    def definition(self, command: str, *arguments: str, **fields: Any) -> dict[str, Any]:
        """A job definition for this stack's workers: quick heartbeats, and no storage unless it is asked for."""
        base = {"command": command, "arguments": list(arguments), "container_group_id": self.group}
        quick = {"heartbeat_interval": 1, "grace_period": 5}
        storage: dict[str, Any] = {} if any(name.endswith("_bucket") for name in fields) else {"sync": {}}
        return {**base, **quick, **storage, **fields}

    def shell(self, script: str, **fields: Any) -> dict[str, Any]:
        """A job definition that runs a ``sh`` script."""
        return self.definition("sh", "-c", script, **fields)

    def submit(self, definition: Mapping[str, Any]) -> str:
        """Submit a job; its id."""
        return str(self.submit_async(definition).id)

    def submit_async(self, definition: Mapping[str, Any]) -> AsyncResult[Any]:
        """Submit a job; its ``AsyncResult``."""
        result: AsyncResult[Any] = self.run_job.delay(dict(definition))
        self.submitted.append(result.id)
        return result

    def get(self, job_id: str) -> JobRecord:
        """A job's record."""
        return self.ledger.get(job_id)

    # -- the workers --------------------------------------------------------------------------------------------

    def start_worker(self, number: int | None = None, *, machine_id: str | None = None, **env: str) -> int:
        """Start one more worker, or a dead one again, and wait until it is ready; its number."""
        number = self.local.start_worker(number, machine_id=machine_id, env=env)
        self.local.wait_ready()
        return number

    def kill_worker(self, number: int, signum: int = signal.SIGKILL) -> None:
        """Signal one worker."""
        self.local.kill_worker(number, signum)

    def worker_of(self, job_id: str) -> int:
        """The number of the worker that runs a job now.

        Raises:
            AssertionError: None does.
        """
        record = self.get(job_id)
        assert record.status is Status.RUNNING, f"job {job_id} does not run: {record.status}"
        return next(m.number for m in self.local.machines.values() if m.machine_id == record.machine_id)

    def arm(self, point: str, action: Action = "kill", job: str | None = None) -> None:
        """Have a worker kill or stop itself at a point of the pipeline; see ``Faults``."""
        self.faults.arm(point, action, job)

    def armed(self, point: str, job: str | None = None) -> bool:
        """Whether no worker has passed that point yet."""
        return self.faults.armed(point, job)

    # -- waiting ------------------------------------------------------------------------------------------------

    def wait(self, what: str, look: Callable[[], T | None], timeout_s: float = 30.0) -> T:
        """Wait until ``look`` answers with something true-like, and return that; else say how things stand."""
        return eventually(what, look, timeout_s, self.dump)

    def wait_status(self, job_id: str, *statuses: str, timeout_s: float = 30.0) -> JobRecord:
        """Wait until a job has one of these statuses; its record. Fails at once when it ended with another."""

        def look() -> JobRecord | None:
            record = self.get(job_id)
            if record.status in statuses:
                return record
            if record.status.ended:
                pytest.fail(f"job {job_id} is {record.status}, not {' or '.join(statuses)}\n{self.dump()}")
            return None

        return self.wait(f"job {job_id} is {' or '.join(statuses)}", look, timeout_s)

    def wait_executing(self, job_id: str, attempt: int | None = None, timeout_s: float = 30.0) -> JobRecord:
        """Wait until a job's command runs, in a given attempt if one is named; its record."""

        def look() -> JobRecord | None:
            record = self.get(job_id)
            launched = record.phase is Phase.EXECUTING and attempt in (None, record.attempt)
            # The ledger hears of a launch a moment before it happens.
            return record if launched and processes_of(job_id) else None

        return self.wait(f"the command of job {job_id} runs", look, timeout_s)

    def wait_fired(self, point: str, job: str | None = None, timeout_s: float = 30.0) -> None:
        """Wait until a worker has met an armed fault point."""
        self.wait(f"a worker passes {point}", lambda: not self.armed(point, job), timeout_s)

    def dump(self) -> str:
        """How things stand: each job submitted here, each process, the ends of their logs."""
        lines = ["-- jobs"]
        lines += [self._described(job_id) for job_id in self.submitted]
        lines.append("-- processes")
        for name, process in self.local.processes.items():
            lines.append(f"{name} (pid {process.pid}): {process.ending}")
        for name, process in self.local.processes.items():
            lines.append(f"-- the end of {name}'s log ({process.log})")
            lines += tail_of(process.log, TAIL_LINES)
        return "\n".join(lines)

    def _described(self, job_id: str) -> str:
        try:
            record = self.get(job_id)
        except KelpieError as error:
            return f"{job_id}: {error}"
        tries = "; ".join(f"#{a.n} {a.machine} {a.outcome} {a.reason} {a.message}" for a in record.attempts)
        return f"{job_id}: {record.status}/{record.phase} failures={record.num_failures} attempts: {tries}"


class StackFactory:
    """Makes the stacks of one test, and ends them."""

    def __init__(self, directory: Path, s3_server: SeaweedServer) -> None:
        self._directory, self._s3_server = directory, s3_server
        self._made: list[Stack] = []

    def __call__(
        self,
        workers: int = 2,
        *,
        slots: int = 1,
        control: bool = True,
        beat: bool = True,
        flower: bool = False,
        appendfsync: Fsync = "everysec",
        start: bool = True,
        **env: str,
    ) -> Stack:
        """A stack, started unless told otherwise; ``env`` is more environment for all of its processes."""
        number = len(self._made)
        stack = Stack(
            self._directory / f"stack{number}",
            self._s3_server,
            workers=workers,
            slots=slots,
            control=control,
            beat=beat,
            flower=flower,
            appendfsync=appendfsync,
            bucket=f"stack-{uuid.uuid4().hex[:12]}",
            env=env,
        )
        self._made.append(stack)
        return stack.start() if start else stack

    def close(self) -> None:
        """Kill every process of every stack."""
        for stack in self._made:
            stack.close()
