from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from kelpie_celery.announcing import Announcer
from kelpie_celery.clock import Instant, ManualClock
from kelpie_celery.errors import LedgerUnavailable
from kelpie_celery.ledger.types import FencingToken, Pulsed, WorkerSign
from kelpie_celery.pulse import SIGN_OF_LIFE_EVERY, Pulse
from kelpie_celery.running import RunningJob, RunningJobs, Stop


class PulsedLedger:
    """Notes pulses and ticks; raises what it is given."""

    def __init__(self) -> None:
        self.pulses: list[tuple[str, str, list[str], bool]] = []
        self.signs: list[WorkerSign] = []
        self.goodbyes: list[str] = []
        self.draining = False
        self.ticks: list[str] = []
        self.wanted: list[str] = []
        self.errors: list[Exception] = []
        self.after_pulse: Any = lambda: None

    def pulse(
        self, group: str, machine: str, job_ids: Sequence[str], *, alive: bool, sign: WorkerSign | None = None
    ) -> Pulsed:
        self.pulses.append((group, machine, list(job_ids), alive))
        assert sign is not None
        self.signs.append(sign)
        self.after_pulse()
        if self.errors:
            raise self.errors.pop(0)
        return Pulsed(tuple(self.wanted), self.draining)

    def goodbye(self, group: str, machine: str, sign: WorkerSign) -> None:
        self.goodbyes.append(f"{group} {machine} {sign.id}")

    def uptime_s(self) -> float:
        return 1.0

    def server_time(self) -> float:
        return 1.0

    def tick(self, group: str, **_: Any) -> None:
        self.ticks.append(group)


@pytest.fixture
def ledger() -> PulsedLedger:
    return PulsedLedger()


class Platform:
    """A runner that tells the platform, once it is let."""

    slots = 2

    def __init__(self) -> None:
        self.tended: list[tuple[str, bool, int]] = []
        self.settled, self.untold = True, False

    def tend(self, group: str, *, draining: bool, streak: int) -> bool:
        self.tended.append((group, draining, streak))
        return self.settled


@pytest.fixture
def pulse(ledger: PulsedLedger) -> Pulse:
    settings = SimpleNamespace(pulse_s=0, machine_id="m1", instance_id="i1")
    app: Any = SimpleNamespace(
        ledger=ledger, running=RunningJobs(), settings=settings, worker_id="m1.x", runner=Platform()
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


def test_a_pulse_says_which_worker_it_is(pulse: Pulse, ledger: PulsedLedger) -> None:
    pulse.beat("a")
    assert ledger.signs == [WorkerSign("m1.x", "worker@host", "i1", 2)]
    assert pulse._app.runner.tended == [("a", False, 0)]  # type: ignore[attr-defined]  # the test's own


def test_a_worker_that_drains_fetches_nothing_until_it_is_taken_back(pulse: Pulse, ledger: PulsedLedger) -> None:
    for draining in (True, False):
        ledger.draining = draining
        pulse.beat("a")
        assert pulse._app.running.held_back is draining


def test_a_worker_that_was_drained_by_hand_stays_so_whatever_the_scaler_takes_back(
    pulse: Pulse, ledger: PulsedLedger
) -> None:
    pulse._count = 1
    pulse.beat("a")
    assert pulse._app.running.drain_by_hand()
    assert not pulse._app.running.drain_by_hand()
    for ledger.draining in (True, False):
        pulse.beat("a")
        assert pulse._app.running.held_back
    assert pulse._app.running.reasons == ["drained by hand"]
    # It is said at once, and the platform may take it first.
    assert [(alive, sign.by_hand) for (*_, alive), sign in zip(ledger.pulses, ledger.signs, strict=True)] == [
        (False, False), (True, True), (True, True),
    ]  # fmt: skip
    assert [draining for _, draining, _ in pulse._app.runner.tended] == [False, True, True]  # type: ignore[attr-defined]


def test_a_worker_of_two_groups_drains_while_one_of_them_says_so(pulse: Pulse, ledger: PulsedLedger) -> None:
    ledger.draining = True
    pulse.beat("a")
    ledger.draining = False
    pulse.beat("b")
    assert pulse._app.running.held_back


def test_that_the_platform_knows_of_a_drain_is_told_with_the_very_next_pulse(
    pulse: Pulse, ledger: PulsedLedger
) -> None:
    pulse._app.runner.settled = False  # type: ignore[attr-defined]
    ledger.draining = True
    pulse._count = 1
    pulse.beat("a")
    pulse._app.runner.settled = True  # type: ignore[attr-defined]
    pulse.beat("a")
    pulse.beat("a")
    pulse.beat("a")
    assert [alive for *_, alive in ledger.pulses] == [False, False, True, False]
    assert [sign.settled for sign in ledger.signs] == [False, False, True, True]


def test_a_worker_that_ends_says_goodbye_to_each_group(pulse: Pulse, ledger: PulsedLedger) -> None:
    run(pulse, ledger, 2)
    assert ledger.goodbyes == ["a m1 m1.x", "b m1 m1.x"]


def test_that_the_platform_may_mistake_the_worker_is_told_with_the_very_next_pulse_and_so_is_the_end_of_it(
    pulse: Pulse, ledger: PulsedLedger
) -> None:
    runner: Any = pulse._app.runner
    told = []
    for runner.untold in (False, True, True, False, False):
        pulse.beat("a")
        pulse._count += 1
        told.append((ledger.pulses[-1][-1], ledger.signs[-1].untold))
    assert told == [(True, False), (False, False), (True, True), (False, True), (True, False)]


def test_nothing_is_announced_while_redis_is_away_nor_of_an_attempt_that_may_have_lost_its_job(
    pulse: Pulse, ledger: PulsedLedger
) -> None:
    told: list[str] = []
    job = RunningJob(FencingToken("job", 1, "n"), Instant(0, 0), lambda: None)
    job.announcer = Announcer(lambda _, words: told.append(words), 1, ManualClock())
    pulse._app.running.add(job)
    ledger.errors = [LedgerUnavailable("away")]
    run(pulse, ledger, 2)
    assert told == []  # one of both groups' pulses was missed
    ledger.pulses.clear()
    pulse._stopped.clear()
    job.trusted = lambda: False
    run(pulse, ledger, 2)
    assert told == []
    ledger.pulses.clear()
    pulse._stopped.clear()
    job.trusted = lambda: True
    run(pulse, ledger, 2)
    assert told == ["attempt 1, starting"]
