"""The plan of a job's transfers, the same for the older bucket fields and for ``sync``.

Limits: it names directories and prefixes; it neither resolves a path nor touches a file.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Role = Literal["input", "checkpoint", "output"]
Stage = Literal["before", "during", "after"]
Plain = Literal["interval", "end", "never"]

INPUT_DIR, OUTPUT_DIR, CHECKPOINT_DIR = "$INPUT_DIR", "$OUTPUT_DIR", "$CHECKPOINT_DIR"
CONTROL_SUFFIX = ".kelpie"
QUIET = "quiet"


@dataclass(frozen=True)
class Transfer:
    """One directory and the prefix that it is filled from or stored under.

    Attributes:
        stage: When: before the command, while it runs, after it ended with 0.
        role: What it means that the prefix is empty or a file goes away: only a ``checkpoint`` may be
            missing, and only from a ``checkpoint`` is a deletion carried over.
        bucket: The bucket.
        prefix: Ends with ``/``.
        local_path: As written, or ``$INPUT_DIR``, ``$CHECKPOINT_DIR``, ``$OUTPUT_DIR`` for the older fields.
        pattern: ECMAScript regular expression that selects, or None for everything.
        index: Position within its stage, from 0.
        commit: When a checkpoint is taken: ``quiet``, ``report`` or ``marker:<glob>``; of a ``during`` transfer.
        plain: When the plain keys follow the checkpoint; of a ``during`` transfer.
        read_only: The job does not write to its files; of a ``before`` transfer that brings inputs.
    """

    stage: Stage
    role: Role
    bucket: str
    prefix: str
    local_path: str
    pattern: str | None
    index: int
    commit: str = QUIET
    plain: Plain = "interval"
    read_only: bool = False


@dataclass(frozen=True)
class Transfers:
    """All transfers of a job, in the order of the definition."""

    before: tuple[Transfer, ...] = ()
    during: tuple[Transfer, ...] = ()
    after: tuple[Transfer, ...] = ()


class Block(Protocol):
    """What a transfer is made of; a sync block of a definition is one."""

    @property
    def bucket(self) -> str:
        """The bucket."""

    @property
    def prefix(self) -> str:
        """Ends with ``/``."""

    @property
    def local_path(self) -> str:
        """A directory."""

    @property
    def pattern(self) -> str | None:
        """Which files, or None for all."""


class BeforeBlock(Block, Protocol):
    """A block of downloads."""

    @property
    def read_only(self) -> bool:
        """Whether the job leaves its files alone."""


class DuringBlock(Block, Protocol):
    """A block of checkpoints."""

    @property
    def commit(self) -> str:
        """When a checkpoint is taken."""

    @property
    def plain(self) -> Plain:
        """When the plain keys follow."""


@dataclass(frozen=True)
class Place:
    """A bucket, a prefix and a directory."""

    bucket: str
    prefix: str
    local_path: str
    pattern: str | None = None


def plan_sync(before: Sequence[BeforeBlock], during: Sequence[DuringBlock], after: Sequence[Block]) -> Transfers:
    """The plan of ``sync`` blocks.

    A ``before`` block brings down a checkpoint when a ``during`` block stores to the same prefix or from the
    same directory; else it brings inputs, which must exist.
    """
    return Transfers(
        before=tuple(
            _transfer("before", "checkpoint" if checkpoint_of(block, during) is not None else "input", block, index,
                      read_only=block.read_only)
            for index, block in enumerate(before)
        ),
        during=tuple(
            _transfer("during", "checkpoint", block, index, commit=block.commit, plain=block.plain)
            for index, block in enumerate(during)
        ),
        after=tuple(_transfer("after", "output", block, index) for index, block in enumerate(after)),
    )  # fmt: skip


def plan_buckets(inputs: tuple[str, str], checkpoint: tuple[str, str], outputs: tuple[str, str]) -> Transfers:
    """The plan of the older fields; each argument is a bucket and a prefix.

    New output files go up as they appear, and the whole output directory after exit 0.
    """
    source = Place(*inputs, INPUT_DIR)
    state = Place(*checkpoint, CHECKPOINT_DIR)
    result = Place(*outputs, OUTPUT_DIR)
    return Transfers(
        before=(_transfer("before", "input", source, 0), _transfer("before", "checkpoint", state, 1)),
        during=(_transfer("during", "checkpoint", state, 0), _transfer("during", "output", result, 1)),
        after=(_transfer("after", "output", result, 0),),
    )


def checkpoint_of(block: Block, during: Sequence[Block]) -> int | None:
    """The index of the first ``during`` block whose checkpoint a ``before`` block brings down; None for inputs."""
    for index, other in enumerate(during):
        if (block.bucket, block.prefix) == (other.bucket, other.prefix) or directory(block) == directory(other):
            return index
    return None


def directory(block: Block) -> str:
    """A block's ``local_path``, in the one way to write it: without ``.``, double or last slashes."""
    path = posixpath.normpath(block.local_path)
    return path[1:] if path.startswith("//") else path


def control_prefix(prefix: str) -> str:
    """Where our own records about a prefix live: beside it, never below it, except for the whole bucket's.

    ``a/b/`` gives ``a/b.kelpie/`` and the empty prefix ``.kelpie/``.
    """
    return f"{prefix.rstrip('/')}{CONTROL_SUFFIX}/"


def _transfer(
    stage: Stage, role: Role, block: Block, index: int, *, commit: str = QUIET, plain: Plain = "interval",
    read_only: bool = False,
) -> Transfer:  # fmt: skip
    return Transfer(
        stage, role, block.bucket, block.prefix, block.local_path, block.pattern, index, commit, plain, read_only
    )
