"""From a definition to what the ledger takes: message, routing, description.

Limits: builds values, sends nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from celery.utils import uuid

from kelpie_celery.canvas import JOB_TASK
from kelpie_celery.definition import JobDefinition
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.types import NewJob, compact
from kelpie_celery.messages import Capture, Envelope, encode

if TYPE_CHECKING:
    from kelpie_celery.app import KelpieApp


def job_name(definition: JobDefinition) -> str:
    """A short name that holds nothing secret: the tag ``name``, else the command without its arguments."""
    return definition.tags.get("name") or _program(definition.command)


def _program(command: str) -> str:
    # Whoever wrote arguments into the command gets an error; until then they may be anything.
    first = (command.split() or [command])[0]
    return first.rpartition("/")[2] or first


def description(definition: JobDefinition) -> str:
    """What Flower and logs show in place of the arguments: ``name 'md 7', command 'gmx', group 'gpu-a'``."""
    facts = {"command": _program(definition.command), "group": definition.container_group_id}
    named = {"name": definition.tags["name"]} if definition.tags.get("name") else {}
    return ", ".join(f"{what} {value!r}" for what, value in (named | facts).items())


def new_job(
    job_id: str,
    definition: JobDefinition,
    envelope: Envelope,
    *,
    stored: bool = False,
    parents: Sequence[Any] = (),
    priority: int | None = None,
    delay_s: float = 0.0,
    drafts: Sequence[str] = (),
) -> NewJob:
    """Everything that the ledger writes at submit.

    Args:
        job_id: The job.
        definition: Already validated.
        envelope: The message as Celery built it.
        stored: The ledger holds the definition already, as a draft.
        parents: Results of earlier steps of a workflow.
        priority: Overrides the definition's.
        delay_s: Not before this many seconds from now.
        drafts: Keys of drafts that the message refers to.
    """
    level = definition.priority if priority is None else max(0, min(9, int(priority)))
    return NewJob(
        job_id=job_id,
        group=definition.container_group_id,
        definition="" if stored else definition.to_json(),
        message=encode(envelope, priority=level),
        priority=level,
        heartbeat_s=definition.heartbeat_interval,
        max_failures=definition.max_failures,
        # Only the holder of an idempotency key is ever compared by it, and it costs as much as the rest.
        digest=definition.digest() if definition.idempotency_key else "",
        parents=compact(list(parents)),
        delay_s=delay_s,
        idempotency_key=definition.idempotency_key or "",
        drafts=tuple(drafts),
        name=job_name(definition),
        submission=secrets.token_hex(4),
        webhook=definition.webhook or "",
    )


def plain_job(app: KelpieApp, definition: JobDefinition) -> NewJob:
    """A job that is part of no workflow, without Celery's per-call overhead: no subscription to its result."""
    job_id = uuid()
    message = app.amqp.create_task_message(
        job_id, JOB_TASK, (job_id,), {}, argsrepr=description(definition), kwargsrepr="{}", root_id=job_id
    )
    capture = Capture()
    capture.publish(
        message.body, headers=message.headers, routing_key=keys.queue_name(definition.container_group_id),
        **message.properties,
    )  # fmt: skip
    return new_job(job_id, definition, capture.envelopes[0])
