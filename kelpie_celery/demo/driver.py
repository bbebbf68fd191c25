"""The demo from start to end: servers, inputs, jobs, kills, comparison, a cloud that comes and goes, verdict.

Limits: one machine plays all of them; the processes, signals, servers and files are real.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import chord
from celery.result import AsyncResult

from kelpie_celery.canvas import JOB_TASK
from kelpie_celery.client import Kelpie
from kelpie_celery.clock import Clock, SystemClock
from kelpie_celery.demo import inputs, plan, verify
from kelpie_celery.demo.chaos import Chaos, by_signal
from kelpie_celery.demo.cloud import Cloud
from kelpie_celery.demo.plan import Plan
from kelpie_celery.demo.reference import References
from kelpie_celery.demo.table import Display
from kelpie_celery.demo.watch import Watch
from kelpie_celery.ledger.records import JobRecord
from kelpie_celery.local.errors import LocalStackError
from kelpie_celery.local.servers import SeaweedServer
from kelpie_celery.local.stack import LocalStack
from kelpie_celery.settings import load_settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

LOOK_EVERY_S = 0.2
CALLBACK_S = 20.0
STOP_S = 5.0

Records = Mapping[str, JobRecord]


@dataclass(frozen=True)
class Outcome:
    """What came of it: why it failed, if it did, and the numbers in one line."""

    problems: list[str]
    summary: str


class Demo:
    """One run; `close` ends whatever it started."""

    def __init__(self, directory: Path, display: Display, limit_s: float, clock: Clock | None = None) -> None:
        """A demo that is not started yet.

        Args:
            directory: Where to keep everything.
            display: Where to show it.
            limit_s: How long the jobs may take before the demo counts as failed.
            clock: Where time comes from.
        """
        self._directory, self._display, self._limit_s = directory, display, limit_s
        self._clock = clock or SystemClock()
        self._exits: list[Callable[[], None]] = []

    def run(self) -> Outcome:
        """Run it.

        Raises:
            KelpieError: Something could not be started, or ended by itself.
        """
        jobs, references = self._prepare()
        stack, s3, cloud = self._start_stack()
        kelpie = self._connect(stack)
        ids, gathered = self._submit(kelpie, jobs)
        chaos, watch = Chaos(plan.STRIKES, stack, self._clock), Watch()
        records = self._follow(kelpie, ids, chaos, watch)
        self._display.say("waiting for the last uninterrupted runs, then comparing the outputs")
        references.wait()
        stored = {job.name: inputs.download(s3, job.outputs) for job in jobs.jobs}
        problems = verify.of_jobs(records) + verify.of_strikes(chaos.made, plan.STRIKES, records)
        problems += verify.of_group(kelpie.counts(plan.GROUP), len(jobs.jobs))
        for job in jobs.jobs:
            problems += verify.of_outputs(job.name, stored[job.name], references.outputs(job))
        problems += self._callback(gathered)
        _unsubscribe(gathered)
        files = sum(len(found) for found in stored.values())
        first_act = self._summary(records, chaos, watch, references, files)
        self._send_home(stack)
        ended = cloud.play(kelpie, self._limit_s)
        problems += verify.of_cloud(ended)
        self._stop(stack)
        return Outcome(problems, f"{first_act}; {ended.summary}; in {self._display.elapsed_s:.0f} s")

    def close(self) -> None:
        """Kill whatever still runs; harmless when nothing does."""
        while self._exits:
            self._exits.pop()()

    # -- set the stage --------------------------------------------------------------------------------------------

    def _prepare(self) -> tuple[Plan, References]:
        folder = self._directory / "reference"
        inputs.make(folder)
        sizes = inputs.measure(self._clock)
        jobs = plan.make(sizes)
        references = References(jobs.jobs, folder, self._clock)
        self._exits.append(references.stop)
        references.start()
        self._display.say(
            f"uninterrupted runs of the same commands begin, to compare with: {sizes.sweeps:,} sweeps a block, "
            f"{sizes.epochs:,} epochs a training"
        )
        return jobs, references

    def _start_stack(self) -> tuple[LocalStack, S3Client, Cloud]:
        temporary = self._directory / "tmp"  # a worker that is killed leaves scratch files; they go with ours
        temporary.mkdir(parents=True)
        server = SeaweedServer(self._directory / "s3", bucket=plan.BUCKET, clock=self._clock)
        stack = LocalStack(
            self._directory, workers=0, group=plan.GROUP, bucket=plan.BUCKET, s3=server, clock=self._clock,
            env={**plan.LIVELY, "TMPDIR": str(temporary)},
        )  # fmt: skip
        self._exits += [server.close, lambda: _kill(server), stack.kill]
        server.start()
        s3 = server.client()
        number = inputs.upload(s3, self._directory / "reference")
        self._display.say(f"{number} input files are on the storage")
        stack.start_servers()
        cloud = self._start_cloud(stack)
        stack.start_helper("control", env=cloud.env())
        stack.start_helper("beat")
        for worker in range(1, plan.WORKERS + 1):
            stack.start_worker(worker, machine_id=f"machine-{worker}")
        stack.wait_ready()
        self._display.say(f"Redis, S3, control worker, beat and {plan.WORKERS} machines are up")
        return stack, s3, cloud

    def _start_cloud(self, stack: LocalStack) -> Cloud:
        """It is idle until its act comes; the control worker has to know of it from the start."""
        connections = {name: value for name, value in stack.env().items() if not name.startswith("SALAD_")}
        cloud = Cloud(self._directory / "salad", {**connections, **plan.LIVELY}, self._display, self._clock)
        self._exits.append(cloud.stop)
        cloud.start()
        return cloud

    def _connect(self, stack: LocalStack) -> Kelpie:
        kelpie = Kelpie(settings=load_settings({**stack.env(), **plan.LIVELY}))
        self._exits.append(kelpie.close)
        return kelpie

    def _submit(self, kelpie: Kelpie, jobs: Plan) -> tuple[dict[str, str], AsyncResult[Any]]:
        """The chord through Celery's own canvas, the trainings through the client; ids by name."""
        run_job = kelpie.app.tasks[JOB_TASK]
        header = [run_job.s(block.definition()) for block in jobs.blocks]
        gathered: Any = chord(header)(run_job.s(jobs.gather.definition()))
        self._exits.append(lambda: _unsubscribe(gathered))
        block_ids = [child.id for child in gathered.parent.results]
        trainings = kelpie.submit_many([training.definition() for training in jobs.trainings])
        names = [job.name for job in (*jobs.blocks, *jobs.trainings, jobs.gather)]
        ids = [*block_ids, *(job.id for job in trainings), gathered.id]
        self._display.say(f"{len(ids)} jobs are submitted: a chord over {len(block_ids)} blocks, and two trainings")
        return dict(zip(names, ids, strict=True)), gathered

    # -- the play -------------------------------------------------------------------------------------------------

    def _follow(self, kelpie: Kelpie, ids: Mapping[str, str], chaos: Chaos, watch: Watch) -> Records:
        """Watch, show and strike until every job has ended, or time is up; the last records."""
        deadline = self._clock.boottime() + self._limit_s
        with self._display.live():
            while True:
                records = {name: kelpie.get(job_id) for name, job_id in ids.items()}
                watch.look(records)
                self._display.show(records, chaos.made)
                if all(record.status.ended for record in records.values()):
                    return records
                if self._clock.boottime() > deadline:
                    self._display.say(f"giving up after {self._limit_s:.0f} s")
                    return records
                self._interrupt(chaos, records)
                self._clock.sleep(LOOK_EVERY_S)

    def _interrupt(self, chaos: Chaos, records: Records) -> None:
        chaos.check_machines()
        chaos.repeat_misses(records)
        struck = chaos.act(records)
        if struck is not None:
            signum, machine = struck.strike.signum.name, struck.machine
            self._display.say(f"[red]{signum}[/red] to {machine}, which runs {struck.job}; a new machine comes up")

    def _callback(self, gathered: AsyncResult[Any]) -> list[str]:
        """Celery knows of the chord's end as well as the ledger does."""
        try:
            answer = gathered.get(timeout=CALLBACK_S)
        except Exception as error:
            return [f"the chord's AsyncResult gives no result: {type(error).__name__}: {error}"]
        return [] if answer["exit_code"] == 0 else [f"the chord's AsyncResult gives {answer}"]

    # -- after ----------------------------------------------------------------------------------------------------

    def _send_home(self, stack: LocalStack) -> None:
        """The machines of the first act are not needed for the second."""
        for number in list(stack.workers):
            stack.kill_worker(number, signal.SIGTERM)
        for number in list(stack.workers):
            stack.stop_worker(number, STOP_S)

    def _stop(self, stack: LocalStack) -> None:
        self._display.say("stopping everything")
        stack.stop(STOP_S)

    def _summary(self, records: Records, chaos: Chaos, watch: Watch, references: References, files: int) -> str:
        survived = sum(record.num_interruptions for record in records.values())
        kinds = " and ".join(f"{number} {name}" for name, number in sorted(by_signal(chaos.made).items()))
        needed_s = sum(references.seconds.values())
        redone_s = watch.redone_s(references.seconds)
        return (
            f"{len(records)} jobs completed once each, {survived} interruptions survived ({kinds}), "
            f"{redone_s:.1f} s of work redone beside {needed_s:.0f} s needed, "
            f"{files} output files bit for bit those of uninterrupted runs"
        )


def _unsubscribe(gathered: Any) -> None:
    """Let go of a chord's results while Redis is there.

    Celery unsubscribes when they are collected; without a Redis it tries for 20 s then, and complains on stderr.
    """
    for result in (gathered, *gathered.parent.results):
        result.backend.result_consumer.cancel_for(result.id)


def _kill(server: SeaweedServer) -> None:
    """An orderly stop takes seconds, and what the storage acknowledged survives this too."""
    if server.running:
        server.kill()


def why(error: Exception) -> str:
    """Why a demo ended early, in one line or with the end of a log."""
    kind = "" if isinstance(error, LocalStackError) else f"{type(error).__name__}: "
    return f"{kind}{error}"
