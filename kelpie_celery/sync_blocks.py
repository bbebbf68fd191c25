"""The ``sync`` form of a definition's storage: blocks of directories and prefixes.

Limits: what the blocks mean together (which of them hold a checkpoint) is in ``kelpie_celery.transfers``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from kelpie_celery import _fields as f

CONFIG = ConfigDict(
    strict=True,
    frozen=True,
    extra="forbid",
    # Pydantic's own messages would quote the input, and with it the environment.
    hide_input_in_errors=True,
)


class SyncBlock(BaseModel):
    """One directory and the prefix that it is filled from or stored under."""

    model_config = CONFIG

    bucket: f.Bucket = Field(description="The bucket.")
    prefix: f.Prefix = Field(description="Folder inside the bucket; a missing last `/` is added.")
    local_path: f.LocalPath = Field(
        description="Directory in the container; a relative one is relative to the working directory."
    )
    direction: Literal["download", "upload"] = Field(
        description="`download` in `before`, `upload` in `during` and `after`."
    )
    pattern: f.PatternText | None = Field(
        default=None,
        description="ECMAScript regular expression, found anywhere: in the whole key in `before`, in the path"
        " relative to `local_path` in `during` and `after`.",
    )


class DownloadBlock(SyncBlock):
    """A block of ``sync.before``."""

    direction: Literal["download"] = Field(description="Blocks of `before` are downloads.")
    read_only: bool = Field(
        default=False,
        description="In `before`, for inputs: the job does not write to these files, so they may be hard links into"
        " the machine's cache.",
    )


class UploadBlock(SyncBlock):
    """A block of ``sync.after``."""

    direction: Literal["upload"] = Field(description="Blocks of `during` and `after` are uploads.")


class CheckpointBlock(UploadBlock):
    """A block of ``sync.during``."""

    commit: f.CommitText = Field(
        default="quiet",
        description="In `during`: when a checkpoint is taken: `quiet`, `report` or `marker:` and a glob; the same in"
        " all blocks.",
    )
    plain: Literal["interval", "end", "never"] = Field(
        default="interval",
        description="In `during`: when the plain keys below `prefix` follow the checkpoint: from time to time and at"
        " the end, at the end only, or never.",
    )


def _written_as(model: type[SyncBlock]) -> BeforeValidator:
    """Let Python users write any kind of block in any list; what they set in it decides whether it fits there."""

    def fields(value: Any) -> Any:
        foreign = isinstance(value, SyncBlock) and type(value) is not model
        return value.model_dump(exclude_unset=True) if foreign else value

    return BeforeValidator(fields)


class Sync(BaseModel):
    """Which directories go down before the command, up while it runs, and up after it ended with 0."""

    model_config = CONFIG

    before: list[Annotated[DownloadBlock, _written_as(DownloadBlock)]] = Field(
        default_factory=list, max_length=100, description="Downloads, before the command starts."
    )
    during: list[Annotated[CheckpointBlock, _written_as(CheckpointBlock)]] = Field(
        default_factory=list,
        max_length=100,
        description="Uploads of what changes while the command runs: checkpoints.",
    )
    after: list[Annotated[UploadBlock, _written_as(UploadBlock)]] = Field(
        default_factory=list, max_length=100, description="Uploads after the command ended with 0: outputs."
    )
