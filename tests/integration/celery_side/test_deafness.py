"""Workers that are alive and deaf: each notices itself, finishes its job, and connects anew or ends to be restarted."""

from __future__ import annotations

import os
from pathlib import Path

from kelpie_celery.clock import SystemClock
from kelpie_celery.health import verdict
from kelpie_celery.watch import EX_DEAF
from tests.integration.celery_side.deafening import CHANNEL, CONSUMER, LOOP, PULSE
from tests.integration.celery_side.fleet import Fleet, Process
from tests.integration.celery_side.played import definition

# Production's is 60.
DEAF_S = "4"
JOB_S = 6.0


def worker(fleet: Fleet, name: str) -> Process:
    """A worker of a group of its own, with two slots."""
    health = str(health_file(fleet, name))
    return fleet.worker(name, f"kelpie.{name}", slots=2, KELPIE_DEAF_S=DEAF_S, KELPIE_HEALTH_FILE=health)


def health_file(fleet: Fleet, name: str) -> Path:
    return fleet.directory / f"{name}.health"


def well(fleet: Fleet, name: str) -> tuple[bool, str]:
    """What a probe would say."""
    return verdict(health_file(fleet, name), SystemClock().boottime())


def submit(fleet: Fleet, group: str, seconds: float = 0.05) -> str:
    return str(fleet.run_job.delay(definition(group, seconds, container_group_id=group)).id)


def test_each_kind_of_deafness_is_noticed_and_no_job_is_harmed_by_it(fleet: Fleet) -> None:
    signals = {"stuck-loop": LOOP, "deaf-for-good": CONSUMER, "stuck-pulse": PULSE, "deaf-channel": CHANNEL}
    started = {name: worker(fleet, name) for name in signals}
    with fleet.extra(*started.values()):
        for process in started.values():
            process.wait_ready()
        for name in signals:
            fleet.wait("the worker is well", lambda n=name: well(fleet, n)[1].startswith("takes jobs"))  # type: ignore[misc]
        at_work = {name: submit(fleet, name, JOB_S) for name in signals}
        for job in at_work.values():
            fleet.wait_started(job)
        for name, signum in signals.items():
            os.kill(started[name].managed.pid or 0, signum)
        late = submit(fleet, "deaf-channel")

        # The one whose connection alone was deaf has made it anew, beside the job that it has.
        fleet.wait_status(late, "completed", timeout_s=30)
        assert fleet.record(at_work["deaf-channel"]).attempt == 1
        for name in ("stuck-loop", "deaf-for-good", "stuck-pulse"):
            deaf = started[name].managed
            assert deaf.wait(40) == EX_DEAF, name
            record = fleet.record(at_work[name])
            assert (record.status, record.completions, record.attempt) == ("completed", 1, 1), (name, deaf.tail())
            assert not well(fleet, name)[0]
        record = fleet.wait_status(at_work["deaf-channel"], "completed")
        assert (record.attempt, record.num_interruptions) == (1, 0)
        assert started["deaf-channel"].managed.running
        log = started["deaf-channel"].log.read_text()
        assert "action=deaf_reconnects" in log
        assert "action=deaf " not in log
        fleet.wait("it is well", lambda: well(fleet, "deaf-channel") == (True, "takes jobs; jobs at work: 0"))
    # Whoever was deaf was asked for nothing more; what waits for it is another worker's.
    waits = submit(fleet, "stuck-loop")
    after = worker(fleet, "stuck-loop")
    with fleet.extra(after):
        fleet.wait_status(waits, "completed", timeout_s=30)
        # Before this worker is killed: no other serves its group.
        fleet.wait_outbox([late, waits, *at_work.values()])
