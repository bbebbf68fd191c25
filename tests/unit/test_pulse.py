from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from kelpie_celery.clock import Instant
from kelpie_celery.errors import LedgerUnavailable
from kelpie_celery.ledger.types import FencingToken
from kelpie_celery.pulse import SIGN_OF_LIFE_EVERY, Pulse
from kelpie_celery.running import RunningJob, RunningJobs, Stop


class PulsedLedger:
    """Notes pulses and ticks; raises what it is given."""

    def __init__(self) -> None:
        self.pulses: list[tuple[str, str, list[str], bool]] = []
        self.ticks: list[str] = []
        self.wanted: list[str] = []
        self.errors: list[Exception] = []
        self.after_pulse: Any = lambda: None

    def pulse(self, group: str, machine: str, job_ids: Sequence[str], *, alive: bool) -> list[str]:
        self.pulses.append((group, machine, list(job_ids), alive))
        self.after_pulse()
        if self.errors:
            raise self.errors.pop(0)
        return self.wanted

    def uptime_s(self) -> float:
        return 1.0

    def server_time(self) -> float:
        return 1.0

    def tick(self, group: str, **_: Any) -> None:
        self.ticks.append(group)


@pytest.fixture
def ledger() -> PulsedLedger:
    return PulsedLedger()


@pytest.fixture
def pulse(ledger: PulsedLedger) -> Pulse:
    app: Any = SimpleNamespace(
        ledger=ledger, running=RunningJobs(), settings=SimpleNamespace(pulse_s=0, machine_id="m1")
    )
    return Pulse(app, ["a", "b"], "worker@host")


def run(pulse: Pulse, ledger: PulsedLedger, pulses: int) -> None:
    """Beat in this thread, for so many pulses."""
    ledger.after_pulse = lambda: pulse.stop() if len(ledger.pulses) >= pulses else None
    pulse.run()


def test_a_pulse_asks_for_its_jobs_and_cancels_those_that_are_wanted(pulse: Pulse, ledger: PulsedLedger) -> None:
    jobs = [RunningJob(FencingToken(f"job{i}", 1, f"n{i}"), Instant(0, 0), lambda: None) for i in range(2)]
    for job in jobs:
        pulse._app.running.add(job)
    ledger.wanted = ["job1", "unknown"]
    pulse.beat("a")
    assert ledger.pulses == [("a", "m1", ["job0", "job1"], True)]
    assert [job.stop for job in jobs] == [None, Stop.CANCEL]
    assert ledger.ticks == ["a"]


def test_every_group_gets_its_pulse_and_its_share_of_maintenance(pulse: Pulse, ledger: PulsedLedger) -> None:
    run(pulse, ledger, 4)
    assert [group for group, *_ in ledger.pulses] == ["a", "b", "a", "b"]
    assert ledger.ticks == ["a", "b", "a", "b"]


def test_only_every_fifth_pulse_writes(pulse: Pulse, ledger: PulsedLedger) -> None:
    run(pulse, ledger, 2 * 11)
    written = [alive for group, _, _, alive in ledger.pulses if group == "a"]
    assert written == [i % SIGN_OF_LIFE_EVERY == 0 for i in range(11)]


@pytest.mark.parametrize("error", [LedgerUnavailable("away"), RuntimeError("broken")])
def test_whatever_goes_wrong_the_pulse_goes_on(pulse: Pulse, ledger: PulsedLedger, error: Exception) -> None:
    ledger.errors = [error]
    run(pulse, ledger, 4)
    assert [group for group, *_ in ledger.pulses] == ["a", "b", "a", "b"]
    assert ledger.ticks == ["b", "a", "b"]
