"""Takes job definitions out of workflows, so that no message carries one.

The later steps of a chain, links and chord bodies travel inside an earlier step's message, arguments and all. Here each
such signature is copied, its definition becomes a draft in the ledger, and its last argument becomes its own task id.
Plain tasks get a fixed id, so that what is published again has the same one.

Limits: signatures as Celery 5 builds them (chain, group, chord, link, link_error, nested); ``chunks`` and ``map`` of
jobs are not understood.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery.utils import uuid

from kelpie_celery.definition import JobDefinition, parse_definition
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.ledger import Ledger

JOB_TASK = "kelpie.run_job"

_LISTS = ("link", "link_error", "chain")


class Detacher:
    """Detaches the definitions of one message's workflow; ``drafts`` are the keys that the message refers to then."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.drafts: list[str] = []

    def options(self, options: dict[str, Any]) -> dict[str, Any]:
        """A copy of ``apply_async`` options with every embedded signature detached."""
        detached = dict(options)
        for name in _LISTS:
            if detached.get(name):
                value = detached[name]
                detached[name] = [self.signature(s) for s in ([value] if isinstance(value, Mapping) else value)]
        if isinstance(detached.get("chord"), Mapping):
            detached["chord"] = self.signature(detached["chord"])
        return detached

    def signature(self, signature: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of one signature, detached, and of all that it holds."""
        copy = dict(signature)
        copy["kwargs"] = self._kwargs(dict(copy.get("kwargs") or {}))
        copy["options"] = self.options(dict(copy.get("options") or {}))
        if copy.get("task") == JOB_TASK:
            self._job(copy)
        elif not copy.get("subtask_type"):
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
        if args and isinstance(args[-1], Mapping | JobDefinition):
            definition = parse_definition(args[-1])
            self._ledger.draft(job_id, definition.container_group_id, definition.to_json())
            options["queue"] = keys.queue_name(definition.container_group_id)
            copy["args"] = [*args[:-1], job_id]
        group = keys.group_of_queue(options.get("queue") or "") or self._ledger.group_of(job_id)
        if group:
            self.drafts.append(keys.job(group, job_id))
