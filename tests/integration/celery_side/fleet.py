"""Worker processes to kill, started again when they die, and the client that the tests submit with."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from celery import Signature
from celery.exceptions import TimeoutError as NoResult
from celery.result import AsyncResult
from redis import Redis

from kelpie_celery.celery import create_app
from kelpie_celery.errors import JobNotFound
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.records import JobRecord
from kelpie_celery.local.processes import ManagedProcess
from kelpie_celery.local.servers import ValkeyServer
from kelpie_celery.settings import load_settings
from tests.harness.waiting import eventually
from tests.integration.celery_side.forked import Forked, stop_server
from tests.integration.celery_side.played import GROUP, Notes, register

T = TypeVar("T")
ROOT = Path(__file__).parents[3]
APP = "tests.integration.celery_side.worker_app"
READY_S = 60.0
# Seconds where production has minutes. A lease lasts max(2 x heartbeat_interval (1), this).
FAST = {
    "KELPIE_MIN_LEASE_S": "1.5",
    "KELPIE_OUTBOX_LEASE_S": "1.5",
    "KELPIE_PULSE_S": "0.3",
    "KELPIE_MAINTAIN_S": "0.5",
    "KELPIE_LOG_LEVEL": "debug",
}


class Process:
    """One Celery process; while ``kept_alive`` it is started again when something kills it."""

    def __init__(self, name: str, argv: list[str], env: Mapping[str, str], directory: Path, *, by_cli: bool) -> None:
        self.name, self.deaths, self.log = name, 0, directory / f"{name}.log"
        ready, argv = directory / f"{name}.ready", ["-A", APP, *argv]
        env = {**os.environ, **env, "KELPIE_READY_FILE": str(ready)}
        self.managed: Forked | ManagedProcess = (
            ManagedProcess(
                name, [sys.executable, "-m", "celery", *argv], env=env, cwd=ROOT, log=self.log, ready_file=ready
            )
            if by_cli
            else Forked(name, argv, env, self.log, ready)
        )
        self._kept_alive = False
        self._keeper: threading.Thread | None = None

    def start(self) -> Process:
        self.managed.start()
        return self

    def wait_ready(self) -> None:
        self.managed.wait_ready(READY_S)

    def keep_alive(self) -> Process:
        self._kept_alive = True
        self._keeper = threading.Thread(target=self._keep, name=f"keeper-{self.name}", daemon=True)
        self._keeper.start()
        return self

    def _keep(self) -> None:
        while self._kept_alive:
            if not self.managed.running:
                self.deaths += 1
                self.managed.start()
            time.sleep(0.05)

    def leave_alone(self) -> None:
        """What dies from now on stays dead."""
        self._kept_alive = False
        if self._keeper:
            self._keeper.join()

    def end(self) -> None:
        self.leave_alone()
        if self.managed.running:
            self.managed.kill()


class Fleet:
    """Workers on one Redis, and everything that a test asks about them."""

    def __init__(self, server: ValkeyServer, directory: Path, **env: str) -> None:
        self.server, self.directory, self._env = server, directory, env
        self.processes: dict[str, Process] = {}
        self.app = create_app(load_settings(self.env()))
        # Short time-outs are the workers' business; this client must not be the slow part.
        self.redis: Redis = Redis.from_url(server.url, decode_responses=True)
        self.notes = Notes(self.redis)
        register(self.app, self.notes)
        self.run_job: Any = self.app.tasks["kelpie.run_job"]

    def env(self, **more: str) -> dict[str, str]:
        return {"KELPIE_REDIS_URL": self.server.url, **FAST, **self._env, **more}

    # -- processes ------------------------------------------------------------------------------------------------

    def worker(
        self, name: str, queues: str = f"kelpie.{GROUP}", *, slots: int = 1, by_cli: bool = False, **env: str
    ) -> Process:
        """Start a worker; it is not ready yet. ``by_cli`` starts it as users do, which takes longer."""
        argv = ["worker", "-Q", queues, "-n", f"{name}@%h", "--without-gossip", "--without-mingle"]
        own = {"KELPIE_SLOTS": str(slots), "SALAD_MACHINE_ID": f"machine-{name}"}
        process = Process(name, argv, self.env(**own, **env), self.directory, by_cli=by_cli)
        self.processes[name] = process
        return process.start()

    def beat(self, name: str, **env: str) -> Process:
        """Start a beat."""
        process = Process(name, ["beat", "--pidfile", ""], self.env(**env), self.directory, by_cli=True)
        self.processes[name] = process
        return process.start()

    @contextmanager
    def extra(self, *processes: Process) -> Iterator[None]:
        """End these processes with the block."""
        try:
            yield
        finally:
            for process in processes:
                process.end()
                self.processes.pop(process.name, None)

    @contextmanager
    def paused(self, *names: str) -> Iterator[None]:
        """Have these processes stand still meanwhile."""
        for name in names:
            self.processes[name].managed.pause()
        try:
            yield
        finally:
            for name in names:
                self.processes[name].managed.resume()

    @contextmanager
    def without(self, *names: str) -> Iterator[None]:
        """Have these processes be killed, and stay dead meanwhile; they are ready again after the block."""
        for name in names:
            self.processes[name].end()
        try:
            yield
        finally:
            for name in names:
                self.processes[name].start()
            for name in names:
                self.processes[name].wait_ready()
                self.processes[name].keep_alive()

    def close(self) -> None:
        for process in list(self.processes.values()):
            process.end()
        stop_server()
        self.app.close()
        self.app.ledger.redis.close()
        self.redis.close()

    # -- questions ------------------------------------------------------------------------------------------------

    def plain(self, *args: Any, **kwargs: Any) -> Signature:
        """A signature of an ordinary task."""
        signature: Signature = self.app.tasks["plain"].s(*args, **kwargs)
        return signature

    def record(self, job_id: str) -> JobRecord:
        return self.app.ledger.get(job_id)

    def fields(self, job_id: str) -> dict[str, str]:
        """The raw record."""
        group = self.app.ledger.group_of(job_id)
        assert group is not None, f"no record of {job_id}"
        found: dict[str, str] = self.redis.hgetall(keys.job(group, job_id))  # type: ignore[assignment]
        return found

    def runs(self, job_id: str) -> int:
        """How many attempts were played."""
        return self.notes.count(f"runs:{job_id}")

    def arm(self, point: str, name: str, target: int = 0) -> str:
        """Have the worker that passes ``point`` with this job kill itself, or ``target``; the key that says so."""
        key = f"test:kill:{point}:{name}"
        self.redis.set(key, target)
        return key

    def armed(self) -> list[str]:
        """Points that nobody has passed."""
        return sorted(self.redis.scan_iter("test:kill:*"))

    def wait(self, what: str, look: Callable[[], T | None], timeout_s: float = 20.0) -> T:
        return eventually(what, look, timeout_s, self.explain)

    def wait_status(self, job_id: str, *statuses: str, timeout_s: float = 20.0) -> JobRecord:
        def look() -> JobRecord | None:
            with contextlib.suppress(JobNotFound):  # a step that is still to come
                record = self.record(job_id)
                return record if record.status in statuses else None
            return None

        return self.wait(f"job {job_id} is {' or '.join(statuses)}", look, timeout_s)

    def wait_started(self, job_id: str) -> None:
        self.wait(f"job {job_id} plays", lambda: self.runs(job_id) > 0)

    def wait_outbox(self, ids: Iterable[str], timeout_s: float = 45.0) -> None:
        """Wait until Celery has been told of every one of these jobs."""
        wanted = list(ids)
        for job_id in wanted:
            self.wait(f"celery_done of {job_id}", lambda i=job_id: self.record(i).celery_done, timeout_s)  # type: ignore[misc]
        left = [i for i in wanted for g in self.app.ledger.groups() if self.redis.zscore(keys.index(g, "outbox"), i)]
        assert left == []

    def get(self, result: AsyncResult[Any], timeout_s: float = 45.0) -> Any:
        """A result; what stands in the way is told when there is none."""
        try:
            return result.get(timeout=timeout_s)
        except NoResult as e:
            state = f"Celery says {self.state(result.id)}"
            raise AssertionError(f"no result of {result.id} in {timeout_s:g} s ({state})\n{self.explain()}") from e

    def expect_once(self, ids: Iterable[str]) -> None:
        """The ledger ended each of these jobs once, as completed, and took no kill for a failure."""
        for job_id in ids:
            fields = self.fields(job_id)
            seen = {name: fields.get(name, "0") for name in ("status", "completions", "endings", "num_failures")}
            assert seen == {"status": "completed", "completions": "1", "endings": "1", "num_failures": "0"}, job_id

    def explain(self) -> str:
        """How things stand, for the message of a failed test."""
        lines = []
        for group in self.app.ledger.groups():
            for job_id in self.app.ledger.ids(group, "created", -30, -1):
                fields = self.fields(job_id)
                shown = ("name", "status", "attempt", "num_interruptions", "endings", "celery_done")
                lines.append(f"{job_id} {group} {[fields.get(f) for f in shown]} runs={self.runs(job_id)}")
        for name, process in self.processes.items():
            lines += [f"--- {name} (deaths {process.deaths})", *process.managed.tail(12)]
        return "\n".join(lines)

    def state(self, job_id: str) -> str:
        """Celery's word for it."""
        return str(self.app.AsyncResult(job_id).state)


def ids_of(result: AsyncResult[Any]) -> list[str]:
    """The ids of a result, of its parents, and of the members of their groups."""
    found: list[str] = []
    node: Any = result
    while node is not None:
        members = getattr(node, "results", None)
        found += [i for member in members for i in ids_of(member)] if members else [node.id]
        node = node.parent
    return found


def dump(redis: Redis) -> Iterator[tuple[str, str]]:
    """Every key with all that it holds, as text."""
    readers: dict[str, Callable[[str], Any]] = {
        "string": redis.get,
        "hash": redis.hgetall,
        "list": lambda key: redis.lrange(key, 0, -1),
        "set": redis.smembers,
        "zset": lambda key: redis.zrange(key, 0, -1, withscores=True),
        "stream": redis.xrange,
    }
    for key in redis.scan_iter("*"):
        kind = str(redis.type(key))
        if kind in readers:
            yield key, json.dumps(readers[kind](key), default=list)


__all__ = ["FAST", "GROUP", "Fleet", "Process", "dump", "ids_of", "signal"]
