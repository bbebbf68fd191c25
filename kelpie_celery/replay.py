"""Replays Celery's bookkeeping for a job that ended while its worker died before telling Celery.

The job's stored message goes through Celery's own tracer; the task's body claims, learns that the job has ended, and
returns the stored result, so that result, links, chain and chord follow as they would have. Limits: runs in a worker
process; the body never runs a command here. The group's workers may have written the message, and a control worker may
do more than they: steps are followed that were taken into the ledger at submit, and tasks on other queues than ours.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from celery import states
from celery.app.trace import trace_task
from celery.utils.saferepr import saferepr

from kelpie_celery.announcing import end_text
from kelpie_celery.canvas import JOB_TASK
from kelpie_celery.errors import JobFailed, JobInterrupted, JobNotFound, KelpieError
from kelpie_celery.ledger import keys
from kelpie_celery.lifecycle import Status
from kelpie_celery.messages import decode

if TYPE_CHECKING:
    from kelpie_celery.app import KelpieApp

log = logging.getLogger(__name__)


def replay(app: KelpieApp, job_id: str, hostname: str) -> None:
    """Tell Celery how a job ended, unless somebody else does so at this moment."""
    message = app.ledger.message_of(job_id)
    if message is None:
        return
    headers, properties, (args, kwargs, embed) = decode(message)
    _check(job_id, app.ledger.group_of(job_id) or "", headers, embed or {})
    request: dict[str, Any] = {
        **headers,
        **(embed or {}),
        "args": args,
        "kwargs": kwargs,
        "properties": properties,
        "reply_to": properties.get("reply_to"),
        "correlation_id": properties.get("correlation_id"),
        "hostname": hostname,
        "delivery_info": {
            **properties["delivery_info"],
            "priority": properties.get("priority"),
            "redelivered": False,
        },
        "is_eager": False,
    }
    task = app.tasks[headers["task"]]
    outcome = trace_task(task, job_id, args, kwargs, request, hostname=hostname, loader=app.loader, app=app)
    event = _event(app, job_id, outcome)
    if event is None:
        return
    log.info("Celery was told how the job ended", extra={"action": "outbox_replayed", "job_id": job_id})
    kind, fields = event
    with app.events.default_dispatcher(hostname=hostname) as dispatcher:
        dispatcher.send(kind, uuid=job_id, **_described(headers), **fields)


def announce_lost(app: KelpieApp, job_id: str) -> None:
    """Tell Celery's listeners of an attempt that fell silent: its worker cannot, and its job waits again.

    Without it Flower would show the job as one that runs on a dead worker, until another one takes it. A job that ended
    with that attempt is told of by the replay of its bookkeeping.
    """
    try:
        record = app.ledger.get(job_id)
    except JobNotFound:
        return
    last = next((a for a in reversed(record.attempts) if a.outcome), None)
    if last is None or record.status is not Status.PENDING:
        return
    message = app.ledger.message_of(job_id)
    described = _described(decode(message)[0]) if message else {}
    why = end_text(JobInterrupted(f"{last.reason}: {last.message}"))
    told = {**described, "exception": why, "traceback": None, "result": f"attempt {last.n} ended: {why}"}
    with app.events.default_dispatcher(hostname=last.worker or None) as dispatcher:
        dispatcher.send("task-retried", uuid=job_id, **told)


def _described(headers: Mapping[str, Any]) -> dict[str, Any]:
    """What a listener shows of a job that it had not heard of before."""
    fields = {
        "name": "task",
        "args": "argsrepr",
        "kwargs": "kwargsrepr",
        "root_id": "root_id",
        "parent_id": "parent_id",
    }
    return {field: headers.get(header) for field, header in fields.items()}


class UntrustedStep(KelpieError):
    """A message names what no submit of ours has put there."""


def _check(job_id: str, group: str, headers: Mapping[str, Any], embed: Mapping[str, Any]) -> None:
    if headers["task"] != JOB_TASK:
        raise UntrustedStep(f"the message of job {job_id} is for the task {headers['task']!r}, and is not replayed")
    for step in _steps(embed):
        if not _is_ours(step, keys.queue_name(group)):
            raise UntrustedStep(
                f"the message of job {job_id} leads to a task {step.get('task')!r} that no submit has put there, or to "
                "the queue of another group; it is not replayed. Who may write the records of group "
                f"{group}? See docs/security.md"
            )


def _is_ours(step: Mapping[str, Any], own_queue: str) -> bool:
    """A job whose definition is in the ledger; or any task on a queue that is not kelpie's, or the group's own."""
    options = step.get("options") or {}
    if step.get("task") == JOB_TASK:
        args = list(step.get("args") or ())
        return bool(args) and args[-1] == options.get("task_id")
    ways = [options.get(name) for name in ("queue", "exchange", "routing_key")]
    return all(way is None or (isinstance(way, str) and _may_go(way, own_queue)) for way in ways)


def _may_go(way: str, own_queue: str) -> bool:
    return way == own_queue or not way.startswith(keys.QUEUE_PREFIX)


def _steps(holder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every signature that a message, or a signature's options or arguments, hold; also those within."""
    for name in ("callbacks", "errbacks", "chain", "chord", "link", "link_error", "tasks", "header", "body"):
        held = holder.get(name)
        for step in held if isinstance(held, list | tuple) else [held]:
            if isinstance(step, Mapping):
                yield step
                yield from _steps(step.get("options") or {})
                yield from _steps(step.get("kwargs") or {})


def _event(app: KelpieApp, job_id: str, outcome: Any) -> tuple[str, dict[str, Any]] | None:
    """What Flower is told; None when the bookkeeping failed, or somebody else did it at this moment."""
    if outcome.info is None:
        return "task-succeeded", {"result": saferepr(outcome.retval)}
    if outcome.info.state == states.IGNORED:
        record = app.ledger.get(job_id)
        canceled = record.status is Status.CANCELED and record.celery_done
        told = {"terminated": False, "signum": None, "expired": False, "result": "canceled"}
        return ("task-revoked", told) if canceled else None
    # Celery's tracer answers with a failure for its own errors too.
    error = outcome.info.retval
    if not isinstance(error, JobFailed):
        return None
    return "task-failed", {"exception": end_text(error), "result": end_text(error)}
