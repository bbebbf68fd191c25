"""A job's record as users see it.

Limits: read-only pictures of one moment. ``repr`` hides the definition, since its environment is the user's secret.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from kelpie_celery.lifecycle import Phase, Status


class AttemptRecord(BaseModel):
    """One try of a job on one machine. Times are seconds since the epoch by Redis's clock.

    Attributes:
        restore_s: Seconds from the claim to the command's start; this and what follows once the attempt has ended.
        execute_s: How long the command ran.
        sync_s: From there to the end: the last checkpoint, the outputs, the report.
        lost_s: What of ``execute_s`` was after the last checkpoint, and is to be done again; 0 when it completed.
        silent_s: Of a silent death: from the last sign of life until the lease was over.
        commits: How many checkpoints it had stored when it ended; None: not recorded.
        committed: When the last one was; None for none.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    n: int
    machine: str
    worker: str = ""
    nonce: str = Field("", repr=False)
    started: float
    ended: float | None = None
    outcome: str | None = None
    reason: str | None = None
    message: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    restore_s: float | None = None
    execute_s: float | None = None
    sync_s: float | None = None
    lost_s: float | None = None
    silent_s: float | None = None
    commits: int | None = None
    committed: float | None = None


class Progress(BaseModel):
    """What the job last said of itself through ``KELPIE_REPORT``."""

    model_config = ConfigDict(frozen=True, extra="allow")

    progress: float | None = None
    message: str | None = None


class Transfer(BaseModel):
    """A transfer of a running attempt that is under way.

    Attributes:
        stage: ``restore``, ``commit``, ``plain`` or ``outputs``.
        total_bytes: To be moved in all; 0 when it is not known.
        left_s: How long it will take from now, in seconds, if it goes on as it does.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    stage: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    rate_bytes_s: float = 0.0
    left_s: float | None = None


class JobRecord(BaseModel):
    """A job's record. Times are seconds since the epoch by Redis's clock.

    ``reason`` and ``message`` tell of the last failure, also while another try is pending or running. ``committed`` is
    when the last checkpoint was stored, ``committed_in`` in which attempt if that is the last one.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    container_group_id: str
    status: Status
    phase: Phase | None = None
    name: str = ""
    definition: dict[str, Any] = Field(default_factory=dict, repr=False)
    priority: int = 0
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    heartbeat: float | None = None
    not_before: float | None = None
    attempt: int = 0
    machine_id: str | None = None
    worker: str | None = None
    num_failures: int = 0
    num_free: int = 0
    num_interruptions: int = 0
    num_heartbeats: int = 0
    num_commits: int = 0
    committed: float | None = None
    committed_in: int | None = None
    max_failures: int = 0
    completions: int = 0
    cancel_requested: bool = False
    reason: str | None = None
    message: str | None = None
    progress: Progress | None = None
    transfer: Transfer | None = None
    commit: dict[str, Any] | None = None
    result: Any = None
    celery_done: bool = False
    attempts: list[AttemptRecord] = Field(default_factory=list)


def _float(value: str | None) -> float | None:
    return float(value) if value else None


def _json(value: str | None) -> Any:
    return json.loads(value) if value else None


def parse_record(
    job_id: str,
    group: str,
    h: Mapping[str, str],
    attempts: Sequence[str] = (),
    not_before: float | None = None,
) -> JobRecord:
    """The record from its Redis hash, its history and its due time.

    Args:
        job_id: The job.
        group: Its container group.
        h: The hash's fields, decoded.
        attempts: JSON of each attempt, oldest first.
        not_before: When a delayed retry is due, in seconds since the epoch.
    """
    running = h["status"] == Status.RUNNING
    return JobRecord(
        id=job_id,
        container_group_id=group,
        status=Status(h["status"]),
        phase=Phase(h["phase"]) if running and h.get("phase") else None,
        name=h.get("name", ""),
        definition=_json(h.get("definition")) or {},
        priority=int(h.get("priority", 0)),
        created=float(h.get("created", 0)),
        started=_float(h.get("started")),
        ended=_float(h.get("ended_at")),
        heartbeat=_float(h.get("heartbeat_at")),
        not_before=not_before,
        attempt=int(h.get("attempt", 0)),
        machine_id=h.get("machine"),
        worker=h.get("worker"),
        num_failures=int(h.get("num_failures", 0)),
        num_free=int(h.get("num_free", 0)),
        num_interruptions=int(h.get("num_interruptions", 0)),
        num_heartbeats=int(h.get("num_heartbeats", 0)),
        num_commits=int(h.get("num_commits", 0)),
        committed=_float(h.get("committed_at")),
        committed_in=int(h["committed_in"]) if h.get("committed_in") else None,
        max_failures=int(h.get("max_failures", 0)),
        completions=int(h.get("completions", 0)),
        cancel_requested="cancel" in h,
        reason=h.get("reason") or None,
        message=h.get("message_text") or None,
        progress=_json(h.get("progress")),
        transfer=_json(h.get("transfer")) if running else None,
        commit=_json(h.get("commit")),
        result=_json(h.get("result")),
        celery_done=h.get("celery_done") == "1",
        attempts=[AttemptRecord.model_validate_json(entry) for entry in attempts],
    )
