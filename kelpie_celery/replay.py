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

from kelpie_celery.messages import decode

if TYPE_CHECKING:
    from kelpie_celery.app import KelpieApp

log = logging.getLogger(__name__)

_EVENTS = {states.SUCCESS: "task-succeeded", states.FAILURE: "task-failed"}


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
    log.info("Celery was told how the job ended", extra={"action": "outbox_replayed", "job_id": job_id})
    _announce(app, job_id, hostname, outcome)


def _announce(app: KelpieApp, job_id: str, hostname: str, outcome: Any) -> None:
    state = outcome.info.state if outcome.info else states.SUCCESS
    event = _EVENTS.get(state)
    if event is None:
        return
    fields: dict[str, Any] = (
        {"result": saferepr(outcome.retval)} if state == states.SUCCESS else {"exception": "JobFailed"}
    )
    with app.events.default_dispatcher(hostname=hostname) as dispatcher:
        dispatcher.send(event, uuid=job_id, **fields)
