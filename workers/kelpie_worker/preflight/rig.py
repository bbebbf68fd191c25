"""What a job is tried on: a private Redis, a private S3 server, and pretended machines, one worker each.

Nothing of the user's is reached: the job's buckets are made on the private storage, its webhook is left out, and each
machine has a copy of the working directory. Where a job has directories with full paths, those must be free, as a
worker empties them.

Limits: the machines share this machine's processor, GPU and file system.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kelpie_celery.client import Kelpie
from kelpie_celery.clock import Clock
from kelpie_celery.definition import JobDefinition
from kelpie_celery.local.machine import made
from kelpie_celery.local.servers import SeaweedServer
from kelpie_celery.local.stack import READY_S, LocalStack
from kelpie_celery.patterns import compile_pattern
from kelpie_celery.settings import load_settings
from kelpie_celery.transfers import CHECKPOINT_DIR, INPUT_DIR, OUTPUT_DIR, Transfer
from kelpie_worker.preflight import folder, launch
from kelpie_worker.preflight.errors import CannotVerify
from kelpie_worker.preflight.listening import Root

GROUP = "verify"
# Seconds where production has half a minute: how long nobody notices a death is not what is tried here.
LIVELY = {
    "KELPIE_MIN_LEASE_S": "4",
    "KELPIE_PULSE_S": "0.25",
    "KELPIE_MAINTAIN_S": "1",
    "KELPIE_RETRY_BASE_S": "1",
    "KELPIE_COMMIT_INTERVAL_S": "1",
    "KELPIE_CACHE_BYTES": "0",
    # Nobody is there. In an image on SaladCloud the real one would be told what the pretended machines cost, and asked
    # to move the node.
    "SALAD_METADATA_URI": "http://127.0.0.1:1",
}
_REFERENCE = "kelpie-verify-reference-"
_NAMED = frozenset({INPUT_DIR, OUTPUT_DIR, CHECKPOINT_DIR})


@dataclass(frozen=True)
class Job:
    """A job as it is tried: its definition, and its own name for each bucket that it writes to."""

    definition: JobDefinition
    buckets: Mapping[str, str]


def prepared(definition: JobDefinition, handshake: Path | None, buckets: Mapping[str, str]) -> Job:
    """The definition as it is submitted here.

    Args:
        definition: The user's.
        handshake: Folder in which the command waits for its listener; None for a run that nobody listens to.
        buckets: Other names for the buckets of checkpoints and outputs.
    """
    data: dict[str, Any] = definition.model_dump(exclude_defaults=True)
    for name in ("webhook", "idempotency_key", "retry"):
        data.pop(name, None)
    data |= {"container_group_id": GROUP, "heartbeat_interval": 1, "max_failures": 1}
    if handshake is not None:
        waiting = ["-I", "-S", str(Path(launch.__file__)), str(handshake)]
        data["arguments"] = [*waiting, definition.command, *definition.arguments]
        data["command"] = sys.executable
    _rename(data, definition, buckets)
    return Job(JobDefinition.model_validate(data), buckets)


def _rename(data: dict[str, Any], definition: JobDefinition, buckets: Mapping[str, str]) -> None:
    for name in ("checkpoint_bucket", "output_bucket"):
        if name in data:
            data[name] = buckets.get(data[name], data[name])
    if "sync" not in data:
        return
    roles = {("before", one.index): one.role for one in definition.transfers().before}
    for stage, blocks in data["sync"].items():
        for index, block in enumerate(blocks):
            if roles.get((stage, index)) != "input":
                block["bucket"] = buckets.get(block["bucket"], block["bucket"])
            if stage == "during":
                # To see which plain keys an attempt finds, its worker reads files that the command may not read.
                block["plain"] = "never"


def reference_buckets(definition: JobDefinition) -> dict[str, str]:
    """Other buckets for the uninterrupted run, so that the two do not see each other's checkpoints."""
    plan = definition.transfers()
    written = [*plan.during, *plan.after]
    return {name: f"{_REFERENCE}{index}" for index, name in enumerate(dict.fromkeys(one.bucket for one in written))}


def shares_prefix(definition: JobDefinition) -> bool:
    """Whether, by the older fields, outputs lie below the checkpoint's prefix or the other way about."""
    plan = definition.transfers()
    of = {
        role: [(one.bucket, one.prefix) for one in plan.during if one.role == role] for role in ("checkpoint", "output")
    }
    return definition.sync is None and any(
        bucket == other and (prefix.startswith(mine) or mine.startswith(prefix))
        for bucket, prefix in of["output"]
        for other, mine in of["checkpoint"]
    )


def full_paths(definition: JobDefinition) -> list[Path]:
    """Directories of the job that are not relative to its working directory.

    Raises:
        CannotVerify: One of them holds something: a worker would delete that.
    """
    plan = definition.transfers()
    named = {one.local_path for one in (*plan.before, *plan.during, *plan.after)} - _NAMED
    found = [Path(name) for name in sorted(named) if Path(name).is_absolute()]
    for path in found:
        if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
            raise CannotVerify(
                f"{path}: is a directory of the job, which a worker empties, and holds something on this machine; run "
                "kelpie verify in the job's image, or use a relative local_path"
            )
    return found


def check_links(definition: JobDefinition, source: Path) -> None:
    """Make sure that no directory of the job leads out of the copy: a worker would empty what it leads to.

    Raises:
        CannotVerify: One of them does.
    """
    plan = definition.transfers()
    for name in sorted({one.local_path for one in (*plan.before, *plan.during, *plan.after)} - _NAMED):
        if not Path(name).is_absolute() and folder.is_linked(source, Path(name)):
            raise CannotVerify(
                f"{name}: is a directory of the job, which a worker empties, and a link on its path leads to "
                "another of yours; give a folder without that link by --directory"
            )


class Rig:
    """The stack, and what a trial does with it; close it."""

    def __init__(
        self, directory: Path, source: Path, clock: Clock, *, env: Mapping[str, str], s3: SeaweedServer | None = None
    ) -> None:
        """A rig that is not there yet.

        Args:
            directory: Where to keep everything.
            source: The working directory, which is copied.
            clock: Where time comes from.
            env: More environment for the workers.
            s3: A server that runs already; by default one is started.
        """
        self._directory, self._source, self._clock = directory, source, clock
        self._env = {**LIVELY, **env, "TMPDIR": str(made(directory / "tmp"))}
        self._own_s3 = s3 is None
        self.s3 = s3 or SeaweedServer(directory / "s3", clock=clock)
        self.stack = LocalStack(
            directory / "stack", workers=0, group=GROUP, appendfsync="everysec", s3=self.s3, bucket="kelpie-verify",
            control=False, beat=False, env=self._env, clock=clock,
        )  # fmt: skip
        self._kelpie: Kelpie | None = None

    def start(self) -> None:
        """Start the servers.

        Raises:
            LocalStackError: One of them does not come up.
        """
        if self._own_s3:
            self.s3.start()
        self.stack.start_servers()

    @property
    def kelpie(self) -> Kelpie:
        """A client of the private Redis."""
        if self._kelpie is None:
            self._kelpie = Kelpie(settings=load_settings({**self.stack.env(), **LIVELY}))
        return self._kelpie

    def make_buckets(self, definition: JobDefinition, more: Sequence[str] = ()) -> None:
        """Make every bucket of a job."""
        plan = definition.transfers()
        for name in {*(one.bucket for one in (*plan.before, *plan.during, *plan.after)), *more}:
            self.s3.create_bucket(name)

    def forget_plain_keys(self, definition: JobDefinition) -> None:
        """Delete the plain keys of the checkpoints, which no restore needs: a worker that finds them reads the files.

        Of the older fields alone, as blocks have ``plain: never`` here.
        """
        if definition.sync is not None or shares_prefix(definition):
            return
        s3 = self.s3.client()
        for one in definition.transfers().during:
            if one.role == "checkpoint":
                for page in s3.get_paginator("list_objects_v2").paginate(Bucket=one.bucket, Prefix=one.prefix):
                    for entry in page.get("Contents", ()):
                        s3.delete_object(Bucket=one.bucket, Key=entry["Key"])

    def workdir(self, number: int) -> Path:
        """The working directory of a machine."""
        return self._directory / "machines" / str(number)

    def begin_machine(self, number: int) -> None:
        """Have a fresh machine start; `await_machine` says when its worker takes jobs.

        Raises:
            DirectoryError: The working directory cannot be copied.
            LocalStackError: The worker cannot be started.
        """
        workdir = self.workdir(number)
        folder.copy(self._source, workdir)
        self.stack.start_worker(number, machine_id=f"verify-machine-{number}", env={"KELPIE_WORKDIR": str(workdir)})

    def await_machine(self, number: int) -> None:
        """Wait until a machine's worker takes jobs.

        Raises:
            LocalStackError: It does not come up.
        """
        self.stack.worker(number).wait_ready(READY_S)

    def kill_machine(self, number: int) -> None:
        """SIGKILL: the machine is gone, and with it the command."""
        self.stack.kill_worker(number, signal.SIGKILL)

    def tell_machine(self, number: int) -> None:
        """SIGTERM to the worker, which tells the command; does not wait."""
        self.stack.kill_worker(number, signal.SIGTERM)

    def log(self, number: int) -> list[str]:
        """The end of a worker's log."""
        return self.stack.worker(number).tail()

    def close(self) -> None:
        """Kill everything."""
        if self._kelpie is not None:
            self._kelpie.close()
        self.stack.kill()
        if self._own_s3:
            if self.s3.running:
                self.s3.kill()
            self.s3.close()


def roots_of(during: Sequence[Transfer], cwd: Path, checkpoint_dir: Path) -> list[Root]:
    """The directories of a job's checkpoint on one machine; those that several blocks share once."""
    by_path: dict[str, list[Transfer]] = {}
    for one in during:
        if one.role == "checkpoint":
            by_path.setdefault(one.local_path, []).append(one)
    found = []
    for shown, blocks in by_path.items():
        path = checkpoint_dir if shown == CHECKPOINT_DIR else cwd / shown
        patterns = [compile_pattern(one.pattern) if one.pattern else None for one in blocks]

        def selects(name: str, patterns: Sequence[Any] = tuple(patterns)) -> bool:
            return any(pattern is None or pattern.matches(name) for pattern in patterns)

        found.append(Root(path, shown, selects))
    return found
