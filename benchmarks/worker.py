"""What a worker costs beside an idle command: a real ``kelpie-worker`` with a checkpoint to watch, and ``sleep``.

The worker process and the supervisor of its command are counted together; the command itself is not. Limits: default
settings; the processor time is the kernel's own account, over half a minute after a settling time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks import stage
from benchmarks.figures import Figure, Target
from kelpie_celery.client import Kelpie
from kelpie_celery.clock import Clock, SystemClock
from kelpie_celery.lifecycle import Phase
from kelpie_celery.local.servers import SeaweedServer
from kelpie_celery.local.stack import LocalStack
from kelpie_celery.settings import load_settings

SETTLE_S, MEASURE_S, START_S = 5.0, 30.0, 30.0
CPU_PERCENT, RSS_MB = 1.0, 120.0
BUCKET = "bench"
SLEEP = {
    "command": "sleep",
    "arguments": ["600"],
    "input_bucket": BUCKET, "input_prefix": "input/", "checkpoint_bucket": BUCKET, "checkpoint_prefix": "checkpoint/",
    "output_bucket": BUCKET, "output_prefix": "output/", "container_group_id": stage.GROUP,
}  # fmt: skip


def measure(directory: Path) -> Iterator[Figure]:
    """Run the part."""
    clock = SystemClock()
    server = SeaweedServer(directory / "s3", bucket=BUCKET)
    stack = LocalStack(directory, workers=1, group=stage.GROUP, s3=server, bucket=BUCKET, control=False, beat=False)
    try:
        server.start()
        server.client().put_object(Bucket=BUCKET, Key="input/parameters.json", Body=b"{}")
        stack.start()
        with Kelpie(settings=load_settings(stack.env())) as kelpie:
            _until_it_runs(kelpie, kelpie.submit(SLEEP).id, clock)
        clock.sleep(SETTLE_S)
        ours = processes(stack.worker(1).pid)
        before = _cpu_s(ours)
        clock.sleep(MEASURE_S)
        percent = 100 * (_cpu_s(ours) - before) / MEASURE_S
        rss = {process.pid: process.memory_info().rss / 1e6 for process in ours}
    finally:
        stack.kill()
        server.close()
    against = f"worker and supervisor beside an idle command, {MEASURE_S:.0f} s"
    yield Figure("worker.cpu", percent, "% of a core", Target(CPU_PERCENT), against)
    yield Figure(
        "worker.rss",
        sum(rss.values()),
        "MB",
        Target(RSS_MB),
        f"{len(rss)} processes, the largest {max(rss.values()):.0f} MB",
    )


def _until_it_runs(kelpie: Kelpie, job_id: str, clock: Clock) -> None:
    deadline = clock.boottime() + START_S
    while kelpie.get(job_id).phase is not Phase.EXECUTING:
        if clock.boottime() > deadline:
            raise TimeoutError(f"the job does not run after {START_S:.0f} s: {kelpie.get(job_id)!r}")
        clock.sleep(0.1)


def processes(worker_pid: int) -> list[psutil.Process]:
    """The worker and its descendants, without the user's command."""
    worker = psutil.Process(worker_pid)
    return [worker, *(child for child in worker.children(recursive=True) if child.name() != SLEEP["command"])]


def _cpu_s(ours: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in ours]
    return float(sum(spent.user + spent.system for spent in times))
