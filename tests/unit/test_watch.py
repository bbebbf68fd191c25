"""What a worker does about its own deafness, on a clock that the test holds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kelpie_celery.clock import Instant, ManualClock
from kelpie_celery.errors import LedgerUnavailable
from kelpie_celery.health import HealthFile, verdict
from kelpie_celery.hearing import Hearing
from kelpie_celery.ledger.types import FencingToken
from kelpie_celery.running import RunningJob, RunningJobs, Stop
from kelpie_celery.watch import EX_DEAF, Watch


class Worker:
    """As much of a worker as is watched; what is named in ``still`` stands still."""

    def __init__(self, file: Path, slots: int = 1) -> None:
        self.clock, self.running, self.hearing = ManualClock(), RunningJobs(), Hearing()
        self.hearing._channel = self.channel = SimpleNamespace(active_queues={"kelpie.g"})
        self.away = False
        self.pulses, self.reconnects, self.goodbyes = 0, 0, 0
        self.exits: list[int] = []
        self.still: set[str] = set()
        self.hearing.reconnect = self._reconnect  # type: ignore[method-assign]
        settings = SimpleNamespace(deaf_s=60.0, pulse_s=1.0, blind_s=900.0)
        app: Any = SimpleNamespace(
            settings=settings, running=self.running, hearing=self.hearing, runner=SimpleNamespace(slots=slots),
            ledger=SimpleNamespace(server_time=self._time),
        )  # fmt: skip
        self.file = HealthFile(file)
        self.watch = Watch(
            app, lambda: self.pulses, self._goodbye, self.file, clock=self.clock, leave=self.exits.append
        )

    def _time(self) -> float:
        if self.away:
            raise LedgerUnavailable("away")
        return self.clock.now()

    def _reconnect(self) -> None:
        self.reconnects += 1

    def _goodbye(self) -> None:
        self.goodbyes += 1

    def live(self, seconds: float) -> None:
        """Live on for so long, or until the process has ended."""
        for _ in range(round(seconds / self.watch.every_s)):
            self.hearing.beats += "loop" not in self.still
            self.hearing.answers += "consumer" not in self.still and not self.running.held_back
            self.pulses += "pulse" not in self.still
            self.clock.advance(self.watch.every_s)
            if not self.exits:
                self.watch.look()

    def job(self, job_id: str = "j") -> RunningJob:
        job = RunningJob(FencingToken(job_id, 1, job_id), Instant(0, 0), lambda: None)
        self.running.add(job)
        return job

    def well(self) -> tuple[bool, str]:
        return verdict(self.file.path, self.clock.boottime())


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.setattr("kelpie_celery.gate.state.reserved_requests", set())
    return Worker(tmp_path / "health")


def test_a_worker_that_hears_is_left_alone(worker: Worker) -> None:
    worker.live(3600)
    assert (worker.reconnects, worker.exits, worker.running.held_back) == (0, [], False)
    assert worker.well() == (True, "takes jobs; jobs at work: 0")


def test_a_consumer_that_gets_no_answer_connects_anew_and_is_well_again(worker: Worker) -> None:
    worker.still = {"consumer"}
    worker.live(55)
    assert worker.reconnects == 0
    worker.live(10)
    assert worker.reconnects == 1
    worker.still = set()
    worker.live(600)
    assert (worker.reconnects, worker.exits) == (1, [])
    worker.still = {"consumer"}
    worker.live(65)
    assert worker.reconnects == 2, "it is another time"


def test_a_consumer_that_hears_nothing_on_a_fresh_connection_either_ends_the_worker(worker: Worker) -> None:
    worker.still = {"consumer"}
    worker.live(140)
    assert (worker.reconnects, worker.exits, worker.goodbyes) == (1, [EX_DEAF], 1)
    assert not worker.file.path.exists()


@pytest.mark.parametrize("organ", ["loop", "pulse"])
def test_a_loop_or_a_pulse_that_is_stuck_ends_the_worker(worker: Worker, organ: str) -> None:
    worker.still = {organ}
    worker.live(55)
    assert worker.exits == []
    assert "stuck for" in worker.well()[1]
    worker.live(25)
    assert (worker.exits, worker.reconnects) == ([EX_DEAF], 0)


def test_jobs_at_work_are_finished_first_and_none_is_fetched_meanwhile(worker: Worker) -> None:
    job = worker.job()
    worker.still = {"loop"}
    worker.live(7200)
    assert (worker.exits, job.stop, worker.running.held_back) == ([], None, True)
    assert worker.well() == (True, "deaf: it finishes its jobs and ends; jobs at work: 1"), (
        "a restart would interrupt it"
    )
    worker.running.remove(job)
    worker.live(20)
    assert worker.exits == [EX_DEAF]


def test_where_slots_lie_idle_jobs_are_handed_over_after_a_while(tmp_path: Path) -> None:
    worker = Worker(tmp_path / "health", slots=2)
    one, other = worker.job("a"), worker.job("b")
    worker.still = {"pulse"}
    worker.live(3600)
    assert one.stop is None
    worker.running.remove(other)
    worker.live(890)
    assert one.stop is None
    worker.live(30)
    assert one.stop is Stop.SHUTDOWN
    assert worker.exits == []
    worker.running.remove(one)
    worker.live(20)
    assert worker.exits == [EX_DEAF]


def test_a_job_that_does_not_stop_does_not_keep_the_worker_for_ever(tmp_path: Path) -> None:
    worker = Worker(tmp_path / "health", slots=2)
    worker.job()
    worker.still = {"pulse"}
    worker.live(65 + 905 + 890)
    assert worker.exits == []
    worker.live(30)
    assert worker.exits == [EX_DEAF]


def test_bookkeeping_that_a_stuck_loop_keeps_from_its_end_is_not_waited_for_for_ever(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kelpie_celery.gate.state.reserved_requests", {"a request"})
    worker.still = {"loop"}
    worker.live(65)
    assert worker.exits == []
    worker.live(15)
    assert worker.exits == [EX_DEAF]


@pytest.mark.parametrize("organ", ["loop", "pulse"])
def test_who_hears_again_while_it_finishes_its_jobs_works_on(worker: Worker, organ: str) -> None:
    job = worker.job()
    worker.still = {organ}
    worker.live(120)
    assert worker.running.held_back
    worker.still = set()
    worker.live(10)
    assert not worker.running.held_back
    worker.running.remove(job)
    worker.live(600)
    assert worker.exits == []
    assert worker.well()[0]


def test_an_outage_of_redis_is_no_deafness_however_long(worker: Worker) -> None:
    job = worker.job()
    worker.still, worker.away = {"loop", "consumer", "pulse"}, True
    worker.live(600)
    assert worker.well() == (True, "Redis is away; jobs compute on; jobs at work: 1")
    worker.away = False
    worker.live(50)  # Celery's loop waits up to 30 s before it connects again
    worker.still = set()
    worker.live(600)
    assert (worker.exits, worker.reconnects, job.stop, worker.running.held_back) == ([], 0, None, False)


def test_a_worker_that_takes_no_job_for_a_reason_is_not_deaf(worker: Worker) -> None:
    worker.still = {"consumer"}
    worker.running.hold_back("draining", on=True)
    worker.live(600)
    worker.running.hold_back("draining", on=False)
    worker.channel.active_queues = set()  # celery control cancel_consumer
    worker.live(600)
    assert (worker.reconnects, worker.exits) == (0, [])
    assert worker.well() == (True, "takes no job for now; jobs at work: 0")
    worker.running.drain_by_hand()
    worker.live(worker.watch.every_s)
    assert worker.well() == (True, "takes no more jobs: it was drained by hand; jobs at work: 0")


def test_a_worker_that_ends_in_good_order_is_not_hurried(worker: Worker) -> None:
    """Its loop has ended, and the last upload goes on."""
    worker.job()
    worker.running.shut_down()
    worker.still = {"loop", "consumer"}
    worker.live(1200)
    assert worker.exits == []
    assert worker.well() == (True, "it ends; jobs at work: 1")


def test_a_pulse_that_is_slow_on_purpose_is_not_stuck(tmp_path: Path) -> None:
    worker = Worker(tmp_path / "health")
    worker.watch._app.settings.pulse_s = 50.0  # type: ignore[misc]
    watch = Watch(worker.watch._app, lambda: 0, lambda: None, worker.file, clock=worker.clock)
    assert watch._deaf_s == 250.0


def test_a_health_file_that_cannot_be_written_is_one_line_in_the_log(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    worker.file.path = Path("/proc/no/such/file")
    worker.live(60)
    assert [r.__dict__["action"] for r in caplog.records] == ["health_untold"]
    assert worker.exits == []


def test_the_thread_ends_when_it_is_told_and_takes_its_file_away(worker: Worker) -> None:
    worker.watch.begin()
    assert worker.well()[0]
    worker.watch.stop()
    worker.watch.join(20)
    assert not worker.watch.is_alive()
    assert not worker.file.path.exists()
