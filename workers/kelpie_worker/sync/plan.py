"""A job's transfers with real directories, and which directories may be touched at all.

A job's directories are emptied before and after it, so one that holds more than the job's files is refused: the root,
the system's folders, anybody's home, the working directory, and whatever lies above one of them, above Python or above
kelpie's own scratch space. Of the folders that belong to programs, everything below is refused, too, unless it lies
below the working directory (images often have theirs in ``/usr/src/app``).

Limits: a ``local_path`` that is a symbolic link stands for the directory that it points to when the attempt starts.
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kelpie_celery.definition import JobDefinition
from kelpie_celery.patterns import Pattern, compile_pattern
from kelpie_celery.transfers import CHECKPOINT_DIR, INPUT_DIR, OUTPUT_DIR, QUIET, Plain, Role, Stage, Transfer
from kelpie_worker.sync.errors import LocalPathError

_SYSTEM = frozenset(
    Path("/", name)
    for name in (
        "", "bin", "boot", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "opt", "proc", "root", "run",
        "sbin", "sys", "tmp", "usr", "var",
    )
)  # fmt: skip
_PROGRAMS = tuple(
    Path("/", name)
    for name in (
        "bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "sys", "usr", "var/lib",
        "var/run",
    )
)  # fmt: skip
"""Folders below which nothing is a job's."""
_HOMES = Path("/home")


@dataclass(frozen=True)
class Dirs:
    """This worker's directories; relative ones are relative to ``workdir``."""

    workdir: Path
    input: Path
    output: Path
    checkpoint: Path


@dataclass(frozen=True)
class Placed:
    """A transfer with its directory.

    Attributes:
        stage: ``before``, ``during`` or ``after`` the command.
        role: ``input``, ``checkpoint`` or ``output``.
        bucket: The bucket.
        prefix: Ends in ``/``, or is empty for the whole bucket.
        path: The directory, absolute and resolved.
        pattern: Selects keys (``before``) or relative paths; None for all.
        index: Position within its stage.
        commit: When a checkpoint is taken: ``quiet``, ``report`` or ``marker:<glob>``; of a ``during`` block.
        plain: When the plain keys follow the checkpoint: ``interval``, ``end`` or ``never``; of a ``during`` block.
        read_only: The job does not write to its files; of a ``before`` block that brings inputs.
    """

    stage: Stage
    role: Role
    bucket: str
    prefix: str
    path: Path
    pattern: Pattern | None = None
    index: int = 0
    commit: str = QUIET
    plain: Plain = "interval"
    read_only: bool = False

    def selects(self, text: str) -> bool:
        """Whether the pattern lets a key or a relative path through."""
        return self.pattern is None or self.pattern.matches(text)

    def __str__(self) -> str:
        matching = f" matching {self.pattern.source!r}" if self.pattern else ""
        return f"{self.stage}[{self.index}] (bucket {self.bucket!r}, prefix {self.prefix!r}{matching})"


@dataclass(frozen=True)
class Plan:
    """All transfers of a job, placed."""

    before: tuple[Placed, ...] = ()
    during: tuple[Placed, ...] = ()
    after: tuple[Placed, ...] = ()

    @property
    def blocks(self) -> tuple[Placed, ...]:
        """All of them."""
        return self.before + self.during + self.after

    @property
    def commit(self) -> str:
        """When the job's checkpoints are taken; its ``during`` blocks agree on that."""
        return next((block.commit for block in self.during if block.role == "checkpoint"), QUIET)

    @property
    def paths(self) -> list[Path]:
        """Their directories, each once."""
        return list(dict.fromkeys(block.path for block in self.blocks))

    @property
    def roots(self) -> list[Path]:
        """Those directories that do not lie within another one."""
        paths = self.paths
        return [path for path in paths if not any(other in path.parents for other in paths)]


def place(definition: JobDefinition, dirs: Dirs, scratch: Path, kept: Sequence[Path] = ()) -> Plan:
    """Find the directory of each transfer.

    Args:
        definition: The job's.
        dirs: The worker's directories.
        scratch: Kelpie's own space.
        kept: Directories that outlive jobs; nothing below or above them is a job's.

    Raises:
        LocalPathError: A directory must not be touched; names the block and the rule.
    """
    transfers = definition.transfers()
    plan = Plan(
        before=tuple(_placed(transfer, dirs) for transfer in transfers.before),
        during=tuple(_placed(transfer, dirs) for transfer in transfers.during),
        after=tuple(_placed(transfer, dirs) for transfer in transfers.after),
    )
    workdir = dirs.workdir.resolve()
    precious, homes = _precious(workdir, scratch), _homes()
    for block in plan.blocks:
        _check(block, workdir, precious, homes)
        _check_kept(block, [path.resolve() for path in kept])
    return plan


def _placed(transfer: Transfer, dirs: Dirs) -> Placed:
    given = {INPUT_DIR: dirs.input, OUTPUT_DIR: dirs.output, CHECKPOINT_DIR: dirs.checkpoint}
    path = given.get(transfer.local_path, Path(transfer.local_path))
    return Placed(
        stage=transfer.stage, role=transfer.role, bucket=transfer.bucket, prefix=transfer.prefix, index=transfer.index,
        path=(dirs.workdir.absolute() / path).resolve(),
        pattern=compile_pattern(transfer.pattern) if transfer.pattern is not None else None,
        commit=transfer.commit, plain=transfer.plain, read_only=transfer.read_only,
    )  # fmt: skip


def _precious(workdir: Path, scratch: Path) -> list[Path]:
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 -- Path.home() raises where there is none
    return [path.resolve() for path in (workdir, scratch, home, *_pythons(), Path(__file__))]


def _pythons() -> tuple[Path, ...]:
    return Path(sys.prefix), Path(sys.base_prefix)


def _homes() -> set[Path]:
    return {Path(user.pw_dir) for user in pwd.getpwall()}


def _is_a_programs(path: Path, workdir: Path) -> bool:
    below_workdir = workdir in path.parents
    for folder in {*_PROGRAMS, *(folder.resolve() for folder in _PROGRAMS)}:
        if path.is_relative_to(folder) and not (below_workdir and folder in workdir.parents):
            return True
    for python in {folder.resolve() for folder in _pythons()} - {Path("/")}:
        # The working directory may be a virtual environment itself.
        if path.is_relative_to(python) and not (below_workdir and workdir.is_relative_to(python)):
            return True
    return False


def _check(block: Placed, workdir: Path, precious: list[Path], homes: set[Path]) -> None:
    path = block.path
    home = path in homes or path.parent == _HOMES
    held = next((kept for kept in precious if kept.is_relative_to(path)), None)
    if path in _SYSTEM or home or held is not None or _is_a_programs(path, workdir):
        holds = f"it holds {held}" if held not in {None, path} else "it is not the job's alone"
        raise LocalPathError(
            f"{block}: local_path {path} is cleared between jobs, and {holds}; name a directory of its own"
        )


def _check_kept(block: Placed, kept: Sequence[Path]) -> None:
    for path in kept:
        if block.path.is_relative_to(path) or path.is_relative_to(block.path):
            raise LocalPathError(
                f"{block}: local_path {block.path} is cleared between jobs, and {path} is kelpie's cache; name another"
            )
