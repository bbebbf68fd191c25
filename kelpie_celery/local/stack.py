"""All of kelpie-celery on one machine: Redis, S3, a control worker, beat and N workers, each one process.

Every worker plays one node of a container group: it has its own machine id and its own directories. Workers
can be killed, paused and replaced one by one; ``kelpie up``, the demo and the tests are made of it.

Limits: one stack a directory. A process that ends is not restarted here; ``kelpie_celery.local.up`` does it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kelpie_celery.clock import Clock, SystemClock
from kelpie_celery.local import binaries, envfile
from kelpie_celery.local.errors import LocalStackError
from kelpie_celery.local.flower import FlowerServer
from kelpie_celery.local.machine import Machine, for_the_scaler, inherited, made
from kelpie_celery.local.processes import POLL_S, ManagedProcess
from kelpie_celery.local.server import Server
from kelpie_celery.local.servers import Fsync, SeaweedServer, ValkeyServer

if TYPE_CHECKING:
    from rich.console import Console

BUCKET = "kelpie"
CONTROL_QUEUE = "kelpie.control"
READY_S = 90.0  # five Python processes that start at once on two busy cores
WORKER_STOP_S = 45.0  # a job's grace period is 30 s by default, and its last checkpoint goes up after it
HELPER_STOP_S = 10.0
QUIET = ("--without-gossip", "--without-mingle")


class LocalStack:
    """The processes, started in order and stopped in the opposite one.

    Attributes:
        directory: Where everything is kept: data, logs, the ``env`` file.
        redis: The Redis server; ``None`` when the user named one.
        s3: The S3 server; ``None`` when the user has a storage.
        bucket: The bucket that is made on ``s3``.
        flower: Flower; ``None`` when it is not wanted.
        group: The container group that the workers belong to.
    """

    def __init__(
        self,
        directory: Path,
        *,
        workers: int = 3,
        group: str = "local",
        slots: int = 1,
        redis_url: str | None = None,
        appendfsync: Fsync = "always",
        s3: SeaweedServer | bool = True,
        bucket: str = BUCKET,
        control: bool = True,
        beat: bool = True,
        flower: bool = False,
        env: Mapping[str, str] | None = None,
        worker_command: Sequence[str] = (),
        clock: Clock | None = None,
        on_step: Callable[[str, float], None] = lambda _what, _seconds: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """A stack that is not started yet.

        Args:
            directory: Where to keep everything.
            workers: How many workers ``start`` starts.
            group: Their container group.
            slots: How many commands each of them runs at once.
            redis_url: A Redis of the user's; by default one is started.
            appendfsync: When that one writes its file to the disk.
            s3: ``True`` for an own server, ``False`` for the storage that the environment names, or a server
                that runs already and is left alone.
            bucket: The bucket to make on the S3 server.
            control: Whether ``start`` starts a control worker.
            beat: Whether ``start`` starts beat.
            flower: Whether ``start`` starts Flower.
            env: More environment for every process; wins over the surrounding one.
            worker_command: What a worker is started with; ``kelpie-worker`` by default.
            clock: Where time comes from.
            on_step: Told what became ready, and after how many seconds.
            cancelled: Asked while waiting: whether to give up.
        """
        self.directory, self.group, self.bucket = directory.resolve(), group, bucket
        self._count, self._slots, self._env = workers, slots, dict(env or {})
        self._helpers = [name for name, wanted in (("control", control), ("beat", beat)) if wanted]
        self._clock, self._on_step, self._cancelled = clock or SystemClock(), on_step, cancelled
        self._worker_command = list(worker_command) or [str(binaries.script("kelpie-worker", "kelpie-celery"))]
        self._redis_url = redis_url
        self.redis = None if redis_url else self._own_redis(appendfsync)
        self._owns_s3 = s3 is True
        self.s3 = self._own_s3() if s3 is True else s3 or None
        self.flower = self._own_flower() if flower else None
        self.machines: dict[int, Machine] = {}
        self.processes: dict[str, ManagedProcess] = {}

    def _own_redis(self, appendfsync: Fsync) -> ValkeyServer:
        return ValkeyServer(self.directory / "redis", appendfsync=appendfsync, clock=self._clock)

    def _own_flower(self) -> FlowerServer:
        return FlowerServer(self.directory / "flower", self._process_env, self._clock)

    def _own_s3(self) -> SeaweedServer:
        return SeaweedServer(self.directory / "s3", bucket=self.bucket, clock=self._clock)

    @property
    def servers(self) -> list[Server]:
        """The servers that this stack starts and stops."""
        own_s3 = self.s3 if self._owns_s3 else None
        return [server for server in (self.redis, own_s3, self.flower) if server is not None]

    def start(self) -> None:
        """Start everything and wait until it is ready.

        Raises:
            LocalStackError: Something did not become ready; then nothing is left running.
        """
        try:
            self.start_servers()
            for name in self._helpers:
                self.start_helper(name)
            for _ in range(self._count):
                self.start_worker()
            # After the others were started: it takes as long as they do, and nobody waits for it.
            if self.flower is not None:
                self._start_server(self.flower)
            self.wait_ready()
        except BaseException:
            self.kill()
            raise

    def start_servers(self) -> None:
        """Start Redis and S3 and wait until they serve."""
        for server in self.servers:
            if server is not self.flower:
                self._start_server(server)
        if self.s3 is not None and not self._owns_s3:
            self.s3.create_bucket(self.bucket)

    def _start_server(self, server: Server) -> None:
        server.start(self._cancelled)
        self._on_step(server.name, server.ready_s)

    def start_helper(self, name: str, *, env: Mapping[str, str] | None = None) -> ManagedProcess:
        """Start ``control`` or ``beat``; does not wait until it is ready.

        Args:
            name: Which.
            env: More environment for it: which SaladCloud it scales on, say. By default the surrounding one tells.
        """
        celery = [sys.executable, "-m", "celery", "-A", "kelpie_celery"]
        command = {
            "control": [*celery, "worker", "-Q", CONTROL_QUEUE, "-n", "control@%h", *QUIET],
            # No pid file: it would outlive a SIGKILL and keep the next beat from starting.
            "beat": [*celery, "beat", "--pidfile="],
        }[name]
        # Only a worker tells when it is ready.
        own = for_the_scaler(os.environ) if name == "control" else {}
        full = {**own, **(env or {})}
        return self._launch(name, command, full, self.directory / name, ready_file=name == "control")

    def start_worker(
        self,
        number: int | None = None,
        *,
        machine_id: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> int:
        """Start one worker; does not wait until it is ready.

        Args:
            number: Which; the next free number by default. A number that was used before is the same
                machine again, unless ``machine_id`` says otherwise.
            machine_id: Its machine id; ``local-machine-NUMBER`` by default.
            env: More environment for this worker.

        Returns:
            Its number.
        """
        number = number or max(self.machines, default=0) + 1
        machine = self._machine(number, machine_id)
        places = {**machine.env(self.group, self._slots), **(env or {})}
        self._launch(worker_name(number), self._worker_command, places, machine.directory, ready_file=True)
        return number

    def _machine(self, number: int, machine_id: str | None) -> Machine:
        known = self.machines.get(number)
        if known is not None and machine_id in (None, known.machine_id):
            return known
        name = machine_id or f"local-machine-{number}"
        self.machines[number] = Machine(number, name, self.directory / "machines" / name)
        return self.machines[number]

    def _launch(
        self, name: str, argv: list[str], env: Mapping[str, str], cwd: Path, *, ready_file: bool
    ) -> ManagedProcess:
        running = self.processes.get(name)
        if running is not None and running.running:
            raise LocalStackError(f"{name} runs already (pid {running.pid})")
        ready = made(self.directory / "ready") / name if ready_file else None
        full = {**self._process_env(), **env}
        if ready is not None:
            full["KELPIE_READY_FILE"] = str(ready)
        log = self.directory / "logs" / f"{name}.log"
        process = ManagedProcess(name, argv, env=full, cwd=cwd, log=log, ready_file=ready, clock=self._clock)
        process.start()
        self.processes[name] = process
        return process

    def _process_env(self) -> dict[str, str]:
        return {
            **inherited(os.environ, own_storage=self.s3 is not None),
            **self._connections(),
            **self._env,
            "PYTHONUNBUFFERED": "1",
        }

    def _connections(self) -> dict[str, str]:
        url = self._redis_url or (self.redis.url if self.redis else "")
        return {"KELPIE_REDIS_URL": url, **(self.s3.env() if self.s3 else {})}

    def env(self) -> dict[str, str]:
        """What a client of this stack needs in its environment; it holds secrets."""
        flower = self.flower.env() if self.flower else {}
        return {**self._connections(), **flower, "SALAD_CONTAINER_GROUP_ID": self.group}

    def write_env(self, path: Path) -> None:
        """Write ``env`` as a file for other shells to source, readable by its owner only."""
        envfile.write(path, self.env())

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Wait until every worker that was started consumes.

        Raises:
            LocalStackError: One ended, or is not ready in time; the message holds the end of its log.
        """
        deadline = self._clock.boottime() + timeout_s
        for name, process in self.processes.items():
            left_s = max(0.0, deadline - self._clock.boottime())
            waited_s = process.wait_ready(left_s, cancelled=self._cancelled)
            self._on_step(name, waited_s)

    def worker(self, number: int) -> ManagedProcess:
        """The process of one worker, the last one when it ended.

        Raises:
            LocalStackError: No worker has this number.
        """
        process = self.processes.get(worker_name(number))
        if process is None:
            raise LocalStackError(f"no worker {number}; there are {sorted(self.machines)}")
        return process

    @property
    def workers(self) -> dict[int, ManagedProcess]:
        """The workers that run, by number."""
        return {number: self.worker(number) for number in self.machines if self.worker(number).running}

    def kill_worker(self, number: int, signum: int = signal.SIGKILL) -> None:
        """Signal one worker; with SIGKILL, wait until it is gone."""
        if signum == signal.SIGKILL:
            self.worker(number).kill()
        else:
            self.worker(number).send_signal(signum)

    def stop_worker(self, number: int, grace_s: float = WORKER_STOP_S) -> bool:
        """SIGTERM to one worker, then SIGKILL after ``grace_s``; whether it went by itself."""
        return self.worker(number).stop(grace_s)

    def stop(
        self,
        grace_s: float = WORKER_STOP_S,
        *,
        hurry: Callable[[], bool] = lambda: False,
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        """Stop everything: workers first, which hand their jobs back, then the helpers, then the servers.

        Args:
            grace_s: How long the workers may take before they are killed.
            hurry: Asked while waiting: whether to kill what is left.
            idle: Called while waiting.
        """
        workers = list(self.workers.values())
        helpers = [process for process in self.processes.values() if process not in workers]
        for processes, limit_s in ((workers, grace_s), (helpers, HELPER_STOP_S)):
            self._stop_all(processes, limit_s, hurry, idle)
        for server in reversed(self.servers):
            if hurry() and server.running:
                server.kill()
            server.close()

    def _stop_all(
        self,
        processes: list[ManagedProcess],
        grace_s: float,
        hurry: Callable[[], bool],
        idle: Callable[[], None],
    ) -> None:
        for process in processes:
            process.terminate()
        deadline = self._clock.boottime() + grace_s
        while any(process.running for process in processes):
            if hurry() or self._clock.boottime() > deadline:
                break
            idle()
            self._clock.sleep(POLL_S)
        for process in processes:
            process.end_within(0.0)

    def kill(self) -> None:
        """SIGKILL everything at once, as a power failure would."""
        for process in self.processes.values():
            process.send_signal(signal.SIGKILL)
        for process in self.processes.values():
            process.kill()
        for server in reversed(self.servers):
            if server.running:
                server.kill()
            server.close()


def worker_name(number: int) -> str:
    """What the process of a worker is called."""
    return f"worker-{number}"


def run_up(
    *,
    directory: Path = Path(".kelpie"),
    workers: int = 1,
    group: str = "local",
    slots: int = 1,
    s3: bool = True,
    redis_url: str | None = None,
    flower: bool = False,
    console: Console | None = None,
) -> int:
    """Run the local stack in this terminal until SIGINT or SIGTERM: what ``kelpie up`` does.

    Args:
        directory: Where to keep data, logs and the ``env`` file.
        workers: How many workers.
        group: Their container group.
        slots: How many commands each of them runs at once.
        s3: Whether to start an S3 server; without it, jobs use the storage that the environment names.
        redis_url: A Redis of the user's; by default one is started.
        flower: Whether to start Flower.
        console: Where to print; stdout by default.

    Returns:
        0 after an orderly stop, 1 when it was killed by a second signal.

    Raises:
        LocalStackError: It did not come up, or another one runs in this directory.
    """
    from rich.console import Console as RichConsole  # noqa: PLC0415 - only a terminal needs it

    from kelpie_celery.local import up  # noqa: PLC0415 - it is built on this module

    make = partial(
        LocalStack,
        directory,
        workers=workers,
        group=group,
        slots=slots,
        redis_url=redis_url,
        s3=s3,
        flower=flower,
    )
    return up.run(make, directory.resolve(), console or RichConsole())
