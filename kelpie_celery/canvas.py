"""Takes job definitions out of workflows, so that no message carries one.

The later steps of a chain, links and chord bodies travel inside an earlier step's message, arguments and all. Here each
such signature is copied, its definition becomes a draft in the ledger, and its last argument becomes its own task id.
Plain tasks get a fixed id, so that what is published again has the same one.

Celery freezes the ids of a canvas when it is applied, all but the first one's: applied again, its later steps would be
those of the first time. That is refused.

Limits: signatures as Celery 5 builds them (chain, group, chord, link, link_error, nested); ``chunks`` and ``map`` of
jobs are not understood.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery.utils import uuid

from kelpie_celery.definition import parse_definition
from kelpie_celery.errors import DefinitionError, JobExists
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.ledger import Ledger

JOB_TASK = "kelpie.run_job"

_LISTS = ("link", "link_error", "chain")


class Detacher:
    """Detaches the definitions of one message's workflow.

    Attributes:
        drafts: The keys that the message refers to then.
    """

    def __init__(self, ledger: Ledger, workflow: str) -> None:
        """A detacher for one message.

        Args:
            ledger: Takes the drafts.
            workflow: The same for all messages of one application of a canvas that embed the same step: the group of a
                chord's parts, else the task that the message is for.
        """
        self._ledger, self._workflow = ledger, workflow
        self.drafts: list[str] = []

    def options(self, options: dict[str, Any]) -> dict[str, Any]:
        """A copy of ``apply_async`` options with every embedded signature detached."""
        detached = dict(options)
        for name in _LISTS:
            if detached.get(name):
                value = detached[name]
                detached[name] = [self.signature(s) for s in ([value] if isinstance(value, Mapping) else value)]
        if isinstance(detached.get("chord"), Mapping):
            # The parts of one chord share its body, also where a part is the end of a chain: their group tells.
            outer, self._workflow = self._workflow, str(detached.get("group_id") or self._workflow)
            try:
                detached["chord"] = self.signature(detached["chord"])
            finally:
                self._workflow = outer
        return detached

    def signature(self, signature: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of one signature, detached, and of all that it holds."""
        copy = dict(signature)
        copy["kwargs"] = self._kwargs(dict(copy.get("kwargs") or {}))
        copy["options"] = self.options(dict(copy.get("options") or {}))
        if copy.get("task") == JOB_TASK:
            self._job(copy)
        elif copy.get("subtask_type") in (None, "group", "chord"):
            # Of a group or chord it is the group's id: its parts must meet again when they are published twice.
            copy["options"].setdefault("task_id", uuid())
        return copy

    def _kwargs(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        for name in ("tasks", "header"):
            value = kwargs.get(name)
            if isinstance(value, Mapping):
                kwargs[name] = self.signature(value)
            elif value:
                kwargs[name] = [self.signature(s) for s in value]
        if isinstance(kwargs.get("body"), Mapping):
            kwargs["body"] = self.signature(kwargs["body"])
        return kwargs

    def _job(self, copy: dict[str, Any]) -> None:
        options, args = copy["options"], list(copy.get("args") or ())
        job_id = options.setdefault("task_id", uuid())
        if args and args[-1] != job_id:
            definition = parse_definition(args[-1])
            if definition.idempotency_key:
                # Celery waits for the id that it has given the step, not for the job that holds the key.
                rule = "must not be set on a later step of a workflow; submit that job by itself, or leave the key out"
                raise DefinitionError([("idempotency_key", repr(definition.idempotency_key), rule)])
            group, text = definition.container_group_id, definition.to_json()
            if not self._ledger.draft(job_id, group, text, self._workflow):
                raise JobExists(
                    f"step {job_id} belongs to a workflow that was submitted before; "
                    "call .clone() on a signature or canvas before each apply"
                )
            options["queue"] = keys.queue_name(definition.container_group_id)
            copy["args"] = [*args[:-1], job_id]
        held = keys.group_of_queue(options.get("queue") or "") or self._ledger.group_of(job_id)
        if held:
            self.drafts.append(keys.job(held, job_id))
