"""Whom the demo strikes, what it counts as redone, what it accepts as success, its second act, and what it shows."""

from __future__ import annotations

import io
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from kelpie_celery.clock import ManualClock
from kelpie_celery.definition import parse_definition
from kelpie_celery.demo import plan, verify
from kelpie_celery.demo.chaos import LEAST_GAP_S, Chaos, Struck, by_signal, choose, missed, ripe
from kelpie_celery.demo.cloud import Ended, over, told
from kelpie_celery.demo.cloud import line as line_of_cloud
from kelpie_celery.demo.plan import Sizes, Strike
from kelpie_celery.demo.table import LINE_EVERY_S, Display, line, table
from kelpie_celery.demo.watch import Steps, Watch
from kelpie_celery.ledger.records import AttemptRecord, JobRecord, Progress
from kelpie_celery.ledger.types import GroupCounts
from kelpie_celery.lifecycle import Phase, Status
from kelpie_celery.local.errors import LocalStackError
from kelpie_celery.local.machine import Machine
from kelpie_celery.local.salad.snapshot import GroupView, InstanceView
from kelpie_celery.local.salad.states import GroupStatus, InstanceState
from kelpie_celery.local.stack import LocalStack

KILL, TERM = signal.SIGKILL, signal.SIGTERM
PLAN = plan.make(Sizes(sweeps=1000, epochs=10, resamples=100))


def running(progress: float | None = 0.3, commits: int = 1, **fields: Any) -> JobRecord:
    """A record of a job that executes."""
    said = None if progress is None else Progress(progress=progress, message=f"{progress * 100:.0f}/100 sweeps, from 0")
    base = {"id": "j", "container_group_id": plan.GROUP, "status": Status.RUNNING, "phase": Phase.EXECUTING}
    more = {"attempt": 1, "machine_id": "machine-1", "num_commits": commits, "progress": said}
    return JobRecord.model_validate({**base, **more, **fields})


def attempt(n: int, outcome: str | None, reason: str | None = None) -> AttemptRecord:
    return AttemptRecord(n=n, machine="machine-1", started=0.0, outcome=outcome, reason=reason)


def completed(*attempts: AttemptRecord, **fields: Any) -> JobRecord:
    """A record of a job that was completed once."""
    history = [*attempts, attempt(len(attempts) + 1, "completed", "done")]
    ended = {"status": Status.COMPLETED, "phase": None, "completions": 1, "attempts": history}
    return running(**{**ended, **fields})


# -- the plan --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", PLAN.jobs, ids=lambda job: job.name)
def test_each_planned_job_is_a_valid_definition(job: plan.PlannedJob) -> None:
    definition = parse_definition(job.definition())
    assert [definition.command, *definition.arguments] == job.argv
    assert (plan.PROGRAMS / job.program).is_file()


def test_the_strikes_name_jobs_of_the_plan_and_are_as_many_as_promised() -> None:
    assert {strike.victim for strike in plan.STRIKES} <= {job.name for job in PLAN.jobs}
    signals = [strike.signum for strike in plan.STRIKES if strike.required]
    assert signals.count(KILL) >= 4
    assert signals.count(TERM) >= 2


def test_the_blocks_write_where_the_gathering_reads() -> None:
    assert all(block.outputs.startswith(PLAN.gather.inputs) for block in PLAN.blocks)
    assert PLAN.gather.parents == len(PLAN.blocks)
    prefixes = [job.outputs for job in PLAN.jobs]
    assert len(set(prefixes)) == len(prefixes)


# -- whom to strike --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        running(commits=0),
        running(progress=None),
        running(progress=0.9),
        running(phase=Phase.RESTORING),
        running(phase=Phase.UPLOADING),
        running(status=Status.PENDING, phase=None),
        completed(),
    ],
    ids=["no commit", "no report", "nearly done", "restoring", "uploading", "pending", "completed"],
)
def test_a_job_that_has_nothing_to_lose_or_is_about_to_end_is_not_ripe(record: JobRecord) -> None:
    assert ripe(running())
    assert not ripe(record)


def test_the_first_strike_with_a_ripe_victim_is_made() -> None:
    strikes = [Strike("a", KILL), Strike("b", TERM)]
    assert choose(strikes, {"a": running(commits=0), "b": running()}) == (strikes[1], "b")
    assert choose(strikes, {"a": running(), "b": running()}) == (strikes[0], "a")


def test_a_strike_that_waits_for_its_victim_is_not_made_on_another() -> None:
    assert choose([Strike("a", KILL)], {"a": running(commits=0), "b": running()}) == (None, "")


def test_a_strike_whose_victim_is_done_goes_to_the_ripe_job_that_was_struck_least() -> None:
    strike = Strike("a", KILL)
    jobs = {"a": completed(), "b": running(num_interruptions=2), "c": running(num_interruptions=1)}
    assert choose([strike], jobs) == (strike, "c")
    assert choose([strike], {"a": completed(), "b": completed()}) == (None, "")


def test_a_strike_missed_when_the_attempt_had_ended_by_itself() -> None:
    struck = Struck(Strike("a", KILL), "a", 1, "machine-1")
    assert missed(struck, [attempt(1, "completed", "done")])
    assert not missed(struck, [attempt(1, None)])
    assert not missed(struck, [attempt(1, "interruption", "lease_expired"), attempt(2, "completed", "done")])


class StackOfOne:
    """A local stack with one machine, whose worker ends when it is told to."""

    def __init__(self) -> None:
        self.machines = {1: Machine(1, "machine-1", Path())}
        self.ended: set[int] = set()

    @property
    def workers(self) -> dict[int, object]:
        return {number: self.worker(number) for number in self.machines.keys() - self.ended}

    def worker(self, number: int) -> SimpleNamespace:
        running = number not in self.ended
        return SimpleNamespace(name=f"worker-{number}", running=running, ending="exit code 0", tail=lambda _lines: [])

    def kill_worker(self, number: int, signum: int) -> None:
        self.ended.add(number)

    def start_worker(self, number: int, *, machine_id: str) -> None:
        self.machines[number] = Machine(number, machine_id, Path())


def test_a_worker_that_was_told_to_end_may_end_though_its_strike_was_missed() -> None:
    stack, clock = StackOfOne(), ManualClock()
    chaos = Chaos([Strike("a", TERM)], cast("LocalStack", stack), clock)
    clock.advance(LEAST_GAP_S)
    assert chaos.act({"a": running()}) is not None
    chaos.repeat_misses({"a": completed()})
    assert chaos.made == []
    chaos.check_machines()
    stack.ended.add(2)
    with pytest.raises(LocalStackError, match="worker-2 ended by itself"):
        chaos.check_machines()


def test_strikes_are_counted_by_signal() -> None:
    strikes = [Struck(Strike("a", s), "a", 1, "m") for s in (KILL, TERM, KILL)]
    assert by_signal(strikes) == {"SIGKILL": 2, "SIGTERM": 1}


# -- what was redone -------------------------------------------------------------------------------------------------


def test_work_between_the_last_report_and_the_next_resumption_was_redone() -> None:
    steps = Steps()
    for number, message in [(1, "10/100 sweeps, from 0"), (1, "40/100 sweeps, from 0"), (2, "35/100 sweeps, from 30")]:
        steps.take(number, message)
    assert (steps.redone, steps.redone_share) == (10, 0.1)
    steps.take(3, "35/100 sweeps, from 35")
    assert steps.redone == 10


def test_reports_of_another_form_are_left_out() -> None:
    steps = Steps()
    steps.take(1, "loading")
    assert (steps.redone, steps.redone_share) == (0, 0.0)


def test_redone_seconds_are_at_the_pace_of_the_uninterrupted_run() -> None:
    watch = Watch()
    watch.look({"a": running(0.5), "b": running(0.9, status=Status.PENDING, phase=None)})
    resumed = Progress(progress=0.4, message="40/100 sweeps, from 40")
    watch.look({"a": running(attempt=2).model_copy(update={"progress": resumed})})
    assert watch.redone_s({"a": 20.0}) == pytest.approx(2.0)
    assert watch.redone_s({}) == 0


# -- what counts as success ------------------------------------------------------------------------------------------


def test_jobs_completed_once_without_a_failure_are_accepted() -> None:
    assert verify.of_jobs({"a": completed(attempt(1, "interruption", "lease_expired"))}) == []


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (running(), "a is running"),
        (completed(completions=2), "completed 2 times"),
        (completed(attempt(1, "completed", "done")), "by 2 attempts"),
        (
            completed(attempt(1, "failure", "exit_code"), num_failures=1),
            "1 failures: attempt 1 on machine-1: exit_code",
        ),
    ],
)
def test_a_job_that_did_not_complete_cleanly_is_a_problem(record: JobRecord, words: str) -> None:
    (problem,) = verify.of_jobs({"a": record})
    assert words in problem


def test_a_body_that_ran_beside_the_plan_is_a_problem() -> None:
    assert verify.of_group(GroupCounts(completed=7), 7) == []
    assert verify.of_group(GroupCounts(completed=8), 7) != []
    assert verify.of_group(GroupCounts(completed=7, pending=1), 7) != []


def test_each_planned_signal_must_have_been_sent_and_each_strike_be_in_the_history() -> None:
    strike = Strike("a", KILL)
    records = {"a": completed(attempt(1, "interruption", "lease_expired"))}
    assert verify.of_strikes([Struck(strike, "a", 1, "m")], [strike], records) == []
    (missing,) = verify.of_strikes([], [strike], records)
    assert missing == "none of 1 planned SIGKILL was made"
    assert verify.of_strikes([], [Strike("a", KILL, required=False)], records) == []
    gone = {"a": completed(attempt(1, "interruption", "worker_shutdown"))}
    (wrong,) = verify.of_strikes([Struck(strike, "a", 1, "m")], [strike], gone)
    assert "'worker_shutdown'" in wrong


def test_outputs_must_be_the_same_files_with_the_same_bytes() -> None:
    assert verify.of_outputs("a", {"x": b"1"}, {"x": b"1"}) == []
    problems = verify.of_outputs("a", {"x": b"1", "y": b""}, {"x": b"2", "z": b""})
    assert problems == [
        "a: z is missing on the storage",
        "a: y is on the storage, but not expected",
        "a: x differs from that of the uninterrupted run",
    ]


# -- the second act --------------------------------------------------------------------------------------------------


def group(status: str = "stopped", interruptions: int = 2, **instances: int) -> GroupView:
    """The container group of the second act with so many instances in each state."""
    shown = [
        InstanceView(f"{state}-{n}", f"m-{n}", InstanceState(state), 0, 1, alive=True, pid=None)
        for state, count in instances.items()
        for n in range(count)
    ]
    return GroupView(
        plan.CLOUD_GROUP, plan.CLOUD_NAME, GroupStatus(status), 3, 1, tuple(shown), 36.0, interruptions, 0, ()
    )


def ended(*deeds: str, of: GroupView | None = None, **fields: Any) -> Ended:
    record = completed(attempt(1, "interruption", "lease_expired"), **fields)
    return Ended([record], of or group(), deeds)


def test_the_jobs_of_the_second_act_are_valid_and_their_rule_starts_from_nothing() -> None:
    definition = parse_definition(plan.cloud_job(0))
    assert definition.container_group_id == plan.CLOUD_GROUP == plan.CLOUD_RULE.container_group_id
    assert (plan.CLOUD_RULE.min_replicas, plan.CLOUD_RULE.max_replicas) == (0, plan.CLOUD_NODES)
    assert plan.CLOUD_JOBS > plan.CLOUD_NODES


def test_a_second_act_that_went_up_and_down_is_accepted_and_its_numbers_are_told() -> None:
    good = ended("start", "drain", "undrain", "drain", "stop")
    assert verify.of_cloud(good) == []
    assert good.summary == (
        "then 1 more on a simulated SaladCloud, from 0 to 3 nodes and back to 0 by the scaler: 1 start, 1 stop, "
        "2 nodes vanished, 0.010 GPU hours billed"
    )


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (ended("start", "drain"), "the scaler did start, drain, and no stop"),
        (ended("start", "stop"), "and no drain"),
        (ended("start", "drain", "stop", of=group("running", running=1)), "is running, with 1 instances left"),
        (ended("start", "drain", "stop", of=group(stopping=2)), "is stopped, with 2 instances left"),
        (ended("start", "drain", "stop", of=group(interruptions=0)), "no node vanished"),
        (ended("start", "drain", "stop", num_failures=1), "1 failures"),
    ],
)
def test_a_second_act_that_did_not_is_a_problem(end: Ended, words: str) -> None:
    (problem,) = verify.of_cloud(end)
    assert words in problem


def test_the_second_act_is_over_when_all_jobs_have_ended_and_no_node_is_left() -> None:
    done = GroupCounts(completed=2)
    assert over(group(), done, 2)
    assert not over(group(), GroupCounts(completed=1, running=1), 2)
    assert not over(group(stopping=1), done, 2)
    assert not over(group("running"), done, 2)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"action": "start", "replicas": 3}, "starts the group, with 3 nodes, because: work [a]"),
        ({"action": "set_replicas", "replicas": 1}, "asks for 1 node, because: work [a]"),
        ({"action": "drain", "replicas": 3}, "tells idle workers to take no more jobs, because: work [a]"),
        ({"kind": "error"}, "error, because: work [a]"),
    ],
)
def test_what_the_scaler_did_is_told_in_plain_words(entry: dict[str, Any], words: str) -> None:
    console = Console(file=io.StringIO(), width=160, record=True)
    console.print(told({"kind": "decision", "reasons": ["work [a]; so that", "more"], **entry}))
    assert console.export_text().strip() == words


def test_a_line_tells_of_jobs_nodes_and_what_they_cost() -> None:
    counts = GroupCounts(pending=4, running=3, completed=17)
    assert line_of_cloud(group("running", allocating=1, creating=1, running=2), counts) == (
        "jobs: 4 pending, 3 running, 17 completed | nodes: 2 on their way, 2 running | 0.010 GPU hours billed"
    )


# -- what is shown ---------------------------------------------------------------------------------------------------

SHOWN = {
    "ising-0": running(0.42, num_interruptions=1, attempt=2),
    "train-40": completed(num_interruptions=2),
    "gather": running(None, status=Status.DRAFT, phase=None, attempt=0, machine_id=None),
}


def test_the_table_shows_status_machine_progress_and_the_last_kills() -> None:
    console = Console(file=io.StringIO(), width=160, record=True)
    console.print(table(SHOWN, [Struck(Strike("ising-0", KILL), "ising-0", 1, "machine-3")]))
    text = console.export_text()
    for words in ("running, executing", "machine-1", "42/100 sweeps", "draft", "SIGKILL machine-3"):
        assert words in text


def test_without_a_terminal_there_is_a_line_every_few_seconds() -> None:
    clock, console = ManualClock(), Console(file=io.StringIO(), width=200, record=True)
    display = Display(console, clock)
    with display.live():
        display.show(SHOWN, [])
        clock.advance(LINE_EVERY_S)
        display.show(SHOWN, [])
        display.show(SHOWN, [])
    lines = console.export_text().splitlines()
    assert [text.strip() for text in lines] == [f"{LINE_EVERY_S:.1f} s  {line(SHOWN)}"]
    assert line(SHOWN) == "ising-0 42% #2 | train-40 completed | gather draft | interruptions 3"
