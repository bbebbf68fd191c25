"""What tests look at from outside: objects on the storage, processes of commands, lines of workers' logs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from tests.harness.stack import Stack

OWN_FOLDER = ".kelpie/"


@dataclass(frozen=True)
class Stored:
    """One object as the storage has it; a write of the same bytes shows in the time."""

    body: bytes
    etag: str
    modified: str


def stored_under(s3: S3Client, bucket: str, prefix: str) -> dict[str, Stored]:
    """Every object below a prefix, our own records included, by the rest of its key."""
    found = {}
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for entry in page.get("Contents", ()):
            try:
                answer = s3.get_object(Bucket=bucket, Key=entry["Key"])
            except s3.exceptions.NoSuchKey:
                continue  # deleted since it was listed
            body, modified = answer["Body"].read(), entry["LastModified"].isoformat()
            found[entry["Key"].removeprefix(prefix)] = Stored(body, entry["ETag"], modified)
    return found


def outputs_under(s3: S3Client, bucket: str, prefix: str) -> dict[str, bytes]:
    """The user's objects below a prefix, without our own records."""
    return {
        key: stored.body for key, stored in stored_under(s3, bucket, prefix).items() if not key.startswith(OWN_FOLDER)
    }


def put_objects(s3: S3Client, bucket: str, prefix: str, objects: dict[str, bytes]) -> None:
    """Store what a job needs."""
    for name, body in objects.items():
        s3.put_object(Bucket=bucket, Key=prefix + name, Body=body)


def stored_job_fields(stack: Stack, prefix: str, inputs: dict[str, bytes] | None = None) -> dict[str, Any]:
    """The six bucket fields of a job below ``prefix``: ``input/``, which is filled, ``checkpoint/`` and ``output/``."""
    put_objects(stack.s3, stack.bucket, f"{prefix}input/", inputs or {"input.txt": b"input"})
    roles = ("input", "checkpoint", "output")
    return {f"{role}_bucket": stack.bucket for role in roles} | {f"{role}_prefix": f"{prefix}{role}/" for role in roles}


def processes_of(job_id: str) -> list[psutil.Process]:
    """Every live process that has a job's id in its environment: the command's whole tree, wherever it went."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("KELPIE_JOB_ID") == job_id and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def is_gone(process: psutil.Process) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def log_lines(log: Path, action: str, job_id: str) -> list[str]:
    """The lines of a worker's log about an action on a job."""
    if not log.exists():
        return []
    wanted = (f"action={action} ", f"job_id={job_id}")
    lines = log.read_text(errors="replace").splitlines()
    return [line for line in lines if all(part in f"{line} " for part in wanted)]


def said(directory: Path, name: str) -> Callable[[], str]:
    """Reads a file that a command writes; empty while there is none."""
    file = directory / name

    def read() -> str:
        try:
            return file.read_text().strip()
        except FileNotFoundError:
            return ""

    return read


def worker_log(stack: Stack, number: int) -> Path:
    """The log of one worker."""
    return stack.local.worker(number).log
