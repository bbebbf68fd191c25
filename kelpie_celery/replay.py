"""Replays Celery's bookkeeping for a job that ended while its worker died before telling Celery.

The job's stored message goes through Celery's own tracer; the task's body claims, learns that the job has ended, and
returns the stored result, so that result, links, chain and chord follow as they would have. Limits: runs in a worker
process; the body never runs a command here.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery import states
from celery.app.trace import trace_task
from celery.utils.saferepr import saferepr

from kelpie_celery.errors import JobFailed
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
        dispatcher.send(kind, uuid=job_id, **fields)


def _event(app: KelpieApp, job_id: str, outcome: Any) -> tuple[str, dict[str, Any]] | None:
    """What Flower is told; None when the bookkeeping failed, or somebody else did it at this moment."""
    if outcome.info is None:
        return "task-succeeded", {"result": saferepr(outcome.retval)}
    if outcome.info.state == states.IGNORED:
        record = app.ledger.get(job_id)
        canceled = record.status is Status.CANCELED and record.celery_done
        return ("task-revoked", {"terminated": False, "signum": None, "expired": False}) if canceled else None
    # Celery's tracer answers with a failure for its own errors too.
    return ("task-failed", {"exception": "JobFailed"}) if isinstance(outcome.info.retval, JobFailed) else None
