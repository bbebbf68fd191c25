"""The job definition: what a user submits.

The fields are Kelpie's, in both of its forms (six bucket fields, or ``sync``), plus priority, time limits,
grace period, idempotency key and tags. Whatever is wrong is refused here, at submit, all faults at once, each
with its field, its value and the rule: `DefinitionError` is the only exception that bad input can cause.

Limits: only the definition is looked at; whether buckets exist and may be read shows when the job runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import ErrorDetails

from kelpie_celery import _fields as f
from kelpie_celery._faults import Problem, describe, problem
from kelpie_celery._strict_json import strict_json
from kelpie_celery.errors import DefinitionError
from kelpie_celery.overlaps import log_in_the_way, overlap_problems
from kelpie_celery.retry_rules import MAX_RULES, RetryRule
from kelpie_celery.sync_blocks import CONFIG, CheckpointBlock, DownloadBlock, Sync, SyncBlock, UploadBlock
from kelpie_celery.transfers import (
    CHECKPOINT_DIR,
    INPUT_DIR,
    OUTPUT_DIR,
    Role,
    Transfer,
    Transfers,
    plan_buckets,
    plan_sync,
)

__all__ = [
    "MAX_DEFINITION_BYTES",
    "CheckpointBlock",
    "DownloadBlock",
    "JobDefinition",
    "RetryRule",
    "Role",
    "Sync",
    "SyncBlock",
    "Transfer",
    "Transfers",
    "UploadBlock",
    "from_json",
    "json_schema",
    "parse_definition",
]

MAX_DEFINITION_BYTES = 256 * 1024
_MAX_PROBLEMS = 50
_BUCKET_FIELDS = (
    "input_bucket",
    "input_prefix",
    "checkpoint_bucket",
    "checkpoint_prefix",
    "output_bucket",
    "output_prefix",
)
_LOG_FIELDS = ("log_bucket", "log_prefix")
_IN_A_BLOCK = 4  # parts of the path of a block's field: ("sync", "during", 0, "commit")
_BLOCKS: dict[str, type[SyncBlock]] = {"before": DownloadBlock, "during": CheckpointBlock, "after": UploadBlock}


class JobDefinition(BaseModel):
    """A validated job definition; build it with `parse_definition`, or by keyword.

    Raises:
        DefinitionError: For whatever is wrong, also when it is built by keyword.
    """

    model_config = CONFIG | ConfigDict(
        title="Job definition", json_schema_extra={"description": "A job for kelpie-celery."}
    )

    command: f.Command = Field(description="The program; run without a shell, in the container's working directory.")
    arguments: list[f.Argument] = Field(default_factory=list, description="Its arguments.")
    environment: f.Environment = Field(
        default_factory=dict,
        description="Added to the container's environment, which it overrides. Kept secret.",
    )
    input_bucket: f.Bucket | None = Field(default=None, description="Filled into `INPUT_DIR` before the start.")
    input_prefix: f.Prefix | None = Field(default=None, description="Folder of the inputs.")
    checkpoint_bucket: f.Bucket | None = Field(
        default=None, description="Filled into `CHECKPOINT_DIR` before the start, stored while the job runs."
    )
    checkpoint_prefix: f.Prefix | None = Field(default=None, description="Folder of the checkpoints.")
    output_bucket: f.Bucket | None = Field(default=None, description="`OUTPUT_DIR` is stored here.")
    output_prefix: f.Prefix | None = Field(default=None, description="Folder of the outputs.")
    sync: Sync | None = Field(
        default=None, description="Instead of the six bucket fields; `{}` for a job without storage."
    )
    log_bucket: f.Bucket | None = Field(
        default=None, description="What the command writes is stored here at the end of each attempt."
    )
    log_prefix: f.Prefix | None = Field(default=None, description="Folder of these logs.")
    max_failures: int = Field(
        default=3, ge=1, le=1_000_000, description="The job fails for good at this many failures."
    )
    retry: list[RetryRule] = Field(
        default_factory=list,
        max_length=MAX_RULES,
        description="Rules about failures, by exit code or reason; the first that matches counts.",
    )
    heartbeat_interval: int = Field(
        default=30,
        ge=1,
        le=3600,
        description="Seconds between heartbeats; a lease lasts at least twice that.",
    )
    webhook: f.Webhook | None = Field(default=None, description="URL that is told of changes of the status.")
    container_group_id: f.GroupId = Field(description="The queue: which container group runs the job.")
    compression: bool = Field(
        default=False, description="gzip what is stored; its keys get `.gz`, and are unpacked when fetched."
    )
    priority: int = Field(default=5, ge=0, le=9, description="0 goes first, 9 last.")
    timeout: f.Seconds | None = Field(default=None, description="Seconds that one attempt may run; more is a failure.")
    total_timeout: f.Seconds | None = Field(
        default=None, description="Seconds that all attempts together may run; more ends the job."
    )
    stall_timeout: f.Seconds | None = Field(
        default=None, description="Seconds without an output line, a report or a commit; more is a failure."
    )
    grace_period: float = Field(
        default=30.0,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="Seconds between SIGTERM and SIGKILL when a job is stopped.",
    )
    idempotency_key: f.IdempotencyKey | None = Field(
        default=None, description="Submitting the same key and definition again gives the same job."
    )
    tags: dict[f.TagName, f.TagValue] = Field(
        default_factory=dict, max_length=f.MAX_TAGS, description="Labels for your own use."
    )

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_all_at_once(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Gather the faults of fields and those between fields; raise them together.

        The error is raised outside of the ``except`` block: pydantic's error, which holds the input, must not
        be chained to ours.
        """
        if isinstance(data, cls):
            return data
        problems = [*_storage_problems(data), *_half_a_log(data)] if isinstance(data, Mapping) else []
        try:
            definition = handler(data)
        except ValidationError as error:
            found = [_problem(detail) for detail in error.errors(include_url=False)]
            problems = [*found, *problems]
        else:
            problems = problems or _problems_between(definition)
        if problems:
            raise DefinitionError(_at_most(problems))
        return definition

    def to_json(self) -> str:
        """Compact JSON without what is at its default: the form in the ledger, read by `from_json`."""
        return self.model_dump_json(exclude_defaults=True)

    def digest(self) -> str:
        """SHA-256 (hex) of the definition without its idempotency key.

        It depends neither on the order of names nor on whether a default is written out.
        """
        content = self.model_dump(exclude_defaults=True, exclude={"idempotency_key"})
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def transfers(self) -> Transfers:
        """What moves between the job's directories and the storage, in one form for both ways to say it."""
        if self.sync is not None:
            return plan_sync(self.sync.before, self.sync.during, self.sync.after)
        return plan_buckets(
            (self.input_bucket or "", self.input_prefix or ""),
            (self.checkpoint_bucket or "", self.checkpoint_prefix or ""),
            (self.output_bucket or "", self.output_prefix or ""),
        )

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """What is not at its default; of the environment the names alone, of the webhook the host alone."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value == field.get_default(call_default_factory=True):
                continue
            if name == "environment":
                value = f.mask_environment(value)
            elif name == "webhook":
                value = f.mask_url(value)
            yield name, value


def parse_definition(raw: Mapping[str, Any] | JobDefinition | str | bytes) -> JobDefinition:
    """Validate a definition.

    Args:
        raw: A mapping of fields, JSON text, or a definition that is already validated.

    Raises:
        DefinitionError: Names every fault.
    """
    if isinstance(raw, JobDefinition):
        return raw
    data = strict_json(raw, 4 * MAX_DEFINITION_BYTES) if isinstance(raw, str | bytes | bytearray) else raw
    if not isinstance(data, Mapping):
        raise DefinitionError([("definition", describe(data), "must be an object with the fields of a job")])
    return JobDefinition.model_validate(dict(data))


def from_json(text: str | bytes) -> JobDefinition:
    """Read what `JobDefinition.to_json` wrote, without validating it again.

    Fields that this version does not know are left out, so that a worker may be older than the client.
    """
    data: dict[str, Any] = json.loads(text)
    if (sync := data.get("sync")) is not None:
        data["sync"] = Sync.model_construct(
            before=[DownloadBlock.model_construct(**block) for block in sync.get("before", ())],
            during=[CheckpointBlock.model_construct(**block) for block in sync.get("during", ())],
            after=[UploadBlock.model_construct(**block) for block in sync.get("after", ())],
        )
    if "retry" in data:
        data["retry"] = [RetryRule.model_construct(**one) for one in data["retry"]]
    return JobDefinition.model_construct(**data)


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a job definition.

    It says less than `parse_definition` checks: not the look of patterns, nor sizes in bytes.
    """
    schema = JobDefinition.model_json_schema()
    set_ = {"not": {"type": "null"}}
    schema["oneOf"] = [
        {"required": ["sync"], "properties": {"sync": set_}, "not": _any_set(_BUCKET_FIELDS)},
        {
            "required": list(_BUCKET_FIELDS),
            "properties": dict.fromkeys(_BUCKET_FIELDS, set_),
            "not": _any_set(["sync"]),
        },
    ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _any_set(names: Sequence[str]) -> dict[str, Any]:
    return {"anyOf": [{"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in names]}


_SIZE_RULE = f"must have at most {MAX_DEFINITION_BYTES} bytes as JSON; put large inputs on the storage instead"


def _size_problems(definition: JobDefinition) -> list[Problem]:
    size = len(definition.to_json())
    return [("definition", f"{size} bytes", _SIZE_RULE)] if size > MAX_DEFINITION_BYTES else []


def _problems_between(definition: JobDefinition) -> list[Problem]:
    """What valid fields may not say together."""
    transfers = definition.transfers()
    return [*_size_problems(definition), *overlap_problems(transfers, _field), *_log_problems(definition, transfers)]


def _log_problems(definition: JobDefinition, transfers: Transfers) -> list[Problem]:
    if not definition.log_bucket or not definition.log_prefix:
        return []
    block = log_in_the_way(transfers, definition.log_bucket, definition.log_prefix)
    if block is None:
        return []
    rule = (
        f"must not lie among what belongs to {_field(block, '')} ({describe(block.prefix)}): logs would be taken for"
        " its files; use a prefix beside it"
    )
    return [("log_prefix", describe(definition.log_prefix), rule)]


def _half_a_log(data: Mapping[str, Any]) -> list[Problem]:
    """A bucket and a prefix for logs, or neither."""
    given = [name for name in _LOG_FIELDS if data.get(name) is not None]
    missing = [name for name in _LOG_FIELDS if name not in given] if given else []
    return [(name, "nothing", f"is required: `{given[0]}` is given, and both come together") for name in missing]


def _storage_problems(data: Mapping[str, Any]) -> list[Problem]:
    """All six bucket fields or ``sync``, never both, never neither."""
    given = [name for name in _BUCKET_FIELDS if data.get(name) is not None]
    if data.get("sync") is not None:
        rule = "must not be given together with `sync`; use either form, not both"
        return [(name, describe(data[name]), rule) for name in given]
    if not given:
        rule = 'is required when the six bucket fields are not given; add `"sync": {}` for a job without storage'
        return [("sync", "nothing", rule)]
    rule = "is required: the six bucket fields come together, or `sync` instead of them"
    return [(name, "nothing", rule) for name in _BUCKET_FIELDS if name not in given]


def _problem(detail: ErrorDetails) -> Problem:
    found = problem(detail, _known_fields)
    loc = detail["loc"]
    if detail["type"] == "extra_forbidden" and len(loc) == _IN_A_BLOCK:
        for stage, model in _BLOCKS.items():
            if loc[-1] in model.model_fields:
                return *found[:2], f"belongs to the blocks of `{stage}`, not to those of `{loc[1]}`"
    return found


def _known_fields(loc: Sequence[int | str]) -> Sequence[str]:
    """The names of the fields of the object at ``loc``."""
    if not loc:
        return list(JobDefinition.model_fields)
    if loc == ("sync",):
        return list(Sync.model_fields)
    if loc[0] == "retry":
        return list(RetryRule.model_fields)
    return list(_BLOCKS.get(str(loc[1]), SyncBlock).model_fields)


def _field(transfer: Transfer, field: str) -> str:
    """How a definition calls a field of one of its transfers; the transfer itself where ``field`` is empty."""
    if transfer.local_path in {INPUT_DIR, CHECKPOINT_DIR, OUTPUT_DIR}:
        return f"{transfer.role}_{field or 'prefix'}"
    return f"sync.{transfer.stage}[{transfer.index}]" + (f".{field}" if field else "")


def _at_most(problems: list[Problem]) -> list[Problem]:
    if len(problems) <= _MAX_PROBLEMS:
        return problems
    more = f"{len(problems) - _MAX_PROBLEMS} more faults"
    return [*problems[:_MAX_PROBLEMS], ("definition", more, "mend the ones above first")]
