"""From facts to sentences: which one comes first, and what it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kelpie_celery.ledger.records import AttemptRecord, JobRecord, Progress, Transfer
from kelpie_celery.lifecycle import Outcome, Phase, Reason, Status
from kelpie_celery.reasons import REASONS
from kelpie_celery.why.explain import explain
from kelpie_celery.why.facts import DecisionSeen, GroupSeen, JobSeen, RuleSeen, StepSeen, WorkersSeen

NOW = 1_700_000_000.0
RULE = RuleSeen(paused=False, min_replicas=0, max_replicas=5)
CKPT = {"sync": {"during": [{}]}, "grace_period": 30}


def record(status: Status = Status.PENDING, **more: Any) -> JobRecord:
    facts = {
        "id": "j",
        "container_group_id": "gpus",
        "created": NOW - 500,
        "max_failures": 3,
        "definition": CKPT,
        **more,
    }
    return JobRecord(status=status, **facts)


def attempt(n: int = 1, **more: Any) -> AttemptRecord:
    facts = {"machine": "m1", "started": NOW - 300, "ended": NOW - 100, "outcome": "failure", "reason": "exit_code",
             "message": "exit code 3", **more}  # fmt: skip
    return AttemptRecord(n=n, **facts)


def group(workers: WorkersSeen | None = None, **more: Any) -> GroupSeen:
    return GroupSeen("gpus", workers=workers or WorkersSeen(), **more)


def workers(heard: int = 2, **more: Any) -> WorkersSeen:
    facts = {"idle": 0, "busy": 0, "draining": 0, "free_slots": 0, "machines": frozenset({"m1", "m2"}), **more}
    return WorkersSeen(heard=heard, looked_at=heard, last_heard=NOW - 1, **facts)


BUSY = workers(busy=2)
IDLE = workers(idle=2, free_slots=2)


def decision(**more: Any) -> DecisionSeen:
    facts = {"kind": "decision", "action": "nothing", "reasons": ("1 node is there",), "status": "running",
             "replicas": 3, "wanted": 3, "allocating": 0, "creating": 0, "running": 3, "at": NOW - 20,
             **more}  # fmt: skip
    return DecisionSeen(**facts)


def pending(where: GroupSeen | None = None, **more: Any) -> JobSeen:
    facts = {"ahead": 0, "pending_since": NOW - 120, "published": NOW - 5, "record": record(), **more}
    return JobSeen(now=NOW, group=where or group(), **facts)


def running(phase: Phase = Phase.EXECUTING, *, lease_s: float = 60.0, beat_s: float = 3.0, **more: Any) -> JobSeen:
    seen = {name: more.pop(name) for name in ("launched", "exited", "attempt_started") if name in more}
    base = {"heartbeat": NOW - beat_s, "attempt": 2, "machine_id": "m1", "started": NOW - 400, "phase": phase, **more}
    return JobSeen(
        now=NOW, record=record(Status.RUNNING, **base), group=group(BUSY), lease_until=NOW - beat_s + lease_s,
        lease_s=lease_s, **seen,
    )  # fmt: skip


def ended(status: Status, **more: Any) -> JobSeen:
    return JobSeen(now=NOW, group=group(), record=record(status, started=NOW - 400, ended=NOW - 100, **more))


def draft(**more: Any) -> JobSeen:
    return JobSeen(now=NOW, group=group(), record=record(Status.DRAFT), step=StepSeen(**more))


RETRY = record(not_before=NOW + 40, attempts=[attempt()], num_failures=1, reason="exit_code", message="exit code 3")
SUSPENDED = decision(
    kind="suspended", reasons=("not found 3 times in a row",), replicas=None, running=None, allocating=None
)

CASES: dict[str, tuple[JobSeen, str, list[str]]] = {
    # -- nobody is there
    "no worker, no rule": (
        pending(), "no_worker", ["No worker of the container group 'gpus'", "in the last week", "no scaling rule"]),
    "a typo of the group": (
        pending(group(nearest="gpu")), "no_worker", ["Did you mean the container group 'gpu'?"]),
    "rules that may not be read": (
        pending(group(rule_known=False)), "no_worker", ["this Redis user may not read"]),
    "workers that have gone": (
        pending(group(WorkersSeen(last_heard=NOW - 7200))), "no_worker", ["in the last 30 s", "last heard of 2 h ago"]),
    "a paused rule": (
        pending(group(rule=replace(RULE, paused=True))), "rule_paused", ["is paused", "kelpie rules resume gpus"]),
    "a suspended rule": (
        pending(group(rule=replace(RULE, paused=True), decision=SUSPENDED)), "rule_paused",
        ["was paused by the scaler 20 s ago", "not found 3 times"]),
    "a rule that allows nothing": (
        pending(group(rule=replace(RULE, max_replicas=0), decision=decision())), "max_replicas", ["allows 0 nodes"]),
    "no scaler ever looked": (
        pending(group(rule=RULE, beat=False)), "no_scaler",
        ["no scaler has looked at the group", "no beat is up", "here: never"]),
    "the scaler is silent": (
        pending(group(rule=RULE, decision=decision(at=NOW - 3600), beat=True, control=NOW - 3000)), "no_scaler",
        ["last looked at the group 1 h ago", "a beat is up", "50 min ago"]),
    "the scaler cannot act": (
        pending(group(rule=RULE, decision=decision(kind="error", reasons=("SaladCloud answered 500",)))),
        "scaler_error",
        ["could not act 20 s ago: SaladCloud answered 500"]),
    "nodes are on their way": (
        pending(group(rule=RULE, decision=decision(allocating=1, creating=1, running=0))), "nodes_coming",
        ["nodes are on their way", "1 look for a machine, 1 fetch the image", "from 20 s ago", "nothing is to change"]),
    "nodes run without a word": (
        pending(group(rule=RULE, decision=decision())), "silent_nodes", ["3 nodes ran at the scaler's last look"]),
    "the scaler wants none": (
        pending(group(rule=RULE, decision=decision(running=0, replicas=0, reasons=("the group is suspended there",)))),
        "no_worker", ["the group is suspended there"]),
    # -- it is in the queue
    "all are busy": (
        pending(group(BUSY), ahead=7, ahead_higher=2), "busy",
        ["Nobody is free: 2 workers were heard of", "2 busy",
         "7 jobs are ahead of it in its queue, 2 of a higher priority", "pending for 2 min"]),
    "all are draining": (
        pending(group(workers(draining=2))), "busy", ["2 told to take no more jobs", "the first in its queue"]),
    "others come first": (
        pending(group(IDLE), ahead=9), "queue", ["jobs before it come first", "9 jobs are ahead"]),
    "any moment now": (pending(group(IDLE)), "soon", ["should start in a moment"]),
    "nobody knows": (
        pending(group(IDLE), published=NOW - 300), "unknown", ["is not known", "in the queue for 5 min"]),
    "one worker of many slots is busy and has room": (
        pending(group(workers(1, busy=1, free_slots=3))), "soon", ["1 worker was heard of"]),
    "the group is being stopped": (
        pending(group(IDLE, closed_until=NOW + 300)), "closed", ["is being stopped"]),
    "the only machines failed it": (
        pending(group(IDLE), bans={"m1": NOW + 900, "m2": NOW + 900}), "bans",
        ["It failed on machines m1, m2", "yields in 3 min", "at once where no other machine", "kelpie machines unban"]),
    "one machine of two failed it": (
        pending(group(IDLE), bans={"m1": NOW + 900}), "soon", ["It failed on machine m1"]),
    "more nodes come": (
        pending(group(BUSY, rule=RULE, decision=decision(action="set_replicas", wanted=4, allocating=1))), "busy",
        ["1 look for a machine", "have 4 nodes"]),
    "a worker whose slots are not known": (
        pending(group(workers(1, idle=1))), "soon", ["the first in its queue"]),
    # -- it is not in the queue yet
    "a retry": (
        pending(group(BUSY), record=RETRY, ahead=None), "retry_delay",
        ["next try, which is due in 40 s", "attempt 1 ended with exit_code: exit code 3", "What to do about exit_code",
         "1 of at most 3 failures"]),
    "a retry that is due, and nobody promotes it": (
        pending(record=RETRY.model_copy(update={"not_before": NOW - 90}), ahead=None), "due",
        ["due for 1 min 30 s", "Nobody ever did maintenance"]),
    "a delayed submission": (
        pending(group(IDLE), record=record(not_before=NOW + 3600), ahead=None), "delay", ["submitted with a delay"]),
    "a machine that may not have it": (
        pending(group(IDLE), record=RETRY, ahead=None, bounces=3, bans={"m1": NOW + 900}), "banned_machine",
        ["offered to a machine that may not take it (3 times", "It failed on machine m1"]),
    "a rollback": (
        pending(group(IDLE), ahead=None, record=record(
            not_before=NOW + 20, attempts=[attempt(outcome="continue", reason="rolled_back", message="")])),
        "rolled_back", ["rolled back to an older checkpoint", "in 20 s"]),
    # -- it runs
    "it computes": (
        running(launched=NOW - 7200, committed=NOW - 240, committed_in=2,
                progress=Progress(progress=0.42, message="epoch 3")),
        "executing",
        ["Its command runs, for 2 h now (attempt 2 on machine m1)", "42 %: epoch 3", "stored 4 min ago",
         "told that 3.0 s ago"]),
    "it restores": (
        running(Phase.RESTORING, attempt_started=NOW - 30, transfer=Transfer(
            stage="restore", done_bytes=1 << 30, total_bytes=3 << 30, rate_bytes_s=5e7, left_s=42.0)),
        "restoring", ["not started yet", "1.0 GiB of 3.0 GiB, at 47.7 MiB/s, which takes 42 s more"]),
    "it uploads": (
        running(Phase.UPLOADING, launched=NOW - 90, exited=NOW - 9), "uploading", ["outputs go up, since 9.0 s"]),
    "it is canceled": (
        running(cancel_requested=True, launched=NOW - 9), "canceling", ["SIGTERM within 2 s", "after at most 30 s"]),
    "it is canceled and silent": (
        running(cancel_requested=True, beat_s=50, launched=NOW - 90), "canceling", ["ends when the lease does"]),
    "it is canceled and its lease is over": (
        running(cancel_requested=True, beat_s=70, launched=NOW - 90), "canceling",
        ["it ends as canceled with the next"]),
    "it is canceled before its command started": (
        running(Phase.RESTORING, cancel_requested=True), "canceling", ["has no command that runs"]),
    "it is muted": (
        running(beat_s=50, launched=NOW - 90), "muted",
        ["not been heard of for 50 s", "goes back to its queue", "in 10 s", "When last heard of, its"]),
    "its lease is over": (
        running(beat_s=70, launched=NOW - 90), "lease_lapsed", ["ran out 10 s ago", "Nobody ever did maintenance"]),
    "no checkpoint in this attempt": (
        running(launched=NOW - 9, committed=NOW - 900, committed_in=1), "executing",
        ["from an earlier attempt, 15 min ago"]),
    "no checkpoint at all": (
        running(launched=NOW - 9), "executing", ["has stored no checkpoint yet"]),
    "nowhere to store any": (
        running(launched=NOW - 9, definition={}), "executing", ["names no place for checkpoints"]),
    "attempts before": (
        running(launched=NOW - 9, num_interruptions=2, num_failures=1, reason="oom", message="7 GiB"), "executing",
        ["2 interrupted; 1 failed, of at most 3 (oom: 7 GiB)"]),
    # -- it has ended
    "completed": (
        ended(Status.COMPLETED, celery_done=True, attempts=[attempt(outcome="completed", reason="done", message="")]),
        "completed", ["completed 1 min 40 s ago, 5 min after its first start", "exited with 0"]),
    "failed by its command": (
        ended(Status.FAILED, celery_done=True, reason="exit_code", message="exit code 3", num_failures=3), "failed",
        ["exit_code: exit code 3", "last of 3 failures", "read `output_tail`"]),
    "failed for good": (
        ended(Status.FAILED, celery_done=True, reason="setup", message="no bucket", num_failures=1), "failed",
        ["Such an end is not retried", "mend what the message names"]),
    "poisoned": (
        ended(Status.FAILED, celery_done=True, reason="poisoned", message="it ended its worker", committed=NOW - 900),
        "failed", ["silent deaths", "Its checkpoints are kept"]),
    "canceled, and Celery was not told": (
        ended(Status.CANCELED, reason="canceled", message="canceled by the user"), "canceled",
        ["was canceled", "Celery has not been told"]),
    "a reason of another version": (
        ended(Status.FAILED, celery_done=True, reason="gravity", message="it fell"), "failed", ["gravity: it fell"]),
    # -- it is no job yet
    "a step with parents": (
        draft(waits_for=3, first="a", first_status=Status.RUNNING), "parents",
        ["3 jobs before it have not ended", "began with job a, which is running"]),
    "a step that nothing leads to": (
        draft(forgotten_in_s=86400.0), "step_unreachable", ["no job that is pending or running leads to it", "in 1 d"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_deciding_sentence_comes_first_and_the_facts_are_told(name: str) -> None:
    seen, code, words = CASES[name]
    found = explain(seen)
    assert found.because[0].code == code, found
    told = str(found)
    assert [one for one in words if one not in told] == [], told
    assert all(not one.text[0].islower() and one.text[-1] in ".?" for one in found.because), told
    assert "None" not in told


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_of_an_end_is_explained(reason: Reason) -> None:
    if REASONS[reason].outcome is not Outcome.FAILURE:
        return
    told = str(explain(ended(Status.FAILED, reason=reason, message="so it was", num_failures=3)))
    assert REASONS[reason].what in told
    assert REASONS[reason].advice in told


def test_of_silent_nodes_and_old_looks_the_age_is_told_in_each_sentence() -> None:
    seen = pending(group(rule=RULE, decision=decision(at=NOW - 150, running=2)))
    told = [one.text for one in explain(seen).because if "node" in one.text and one.code in ("nodes", "silent_nodes")]
    assert len(told) == 2
    assert all("2 min 30 s ago" in text for text in told)


def test_what_others_wrote_drives_no_terminal_and_has_an_end() -> None:
    bad = "\x1b[2J" + "x" * 5000
    seen = running(machine_id=bad, launched=NOW - 1, progress=Progress(message=bad))
    told = str(explain(seen))
    assert "\x1b" not in told
    assert "x" * 400 not in "".join(one.text for one in explain(seen).because if one.code == "progress")


def test_a_worker_that_is_heard_of_regularly_is_not_called_silent() -> None:
    for lease_s in (30.0, 60.0, 600.0):
        # A heartbeat each half of a lease, and a little late.
        codes = [
            one.code for one in explain(running(beat_s=lease_s / 2 + 1, lease_s=lease_s, launched=NOW - 900)).because
        ]
        assert "muted" not in codes
        assert "heartbeat" in codes
