"""What the parts share: a Redis of their own, a client, typical jobs, and statistics.

The definition is one of about 700 bytes, as a user would write it: a command with a few arguments, some environment,
the six bucket fields. Limits: loopback, one machine; the client shares the cores with the server.
"""

from __future__ import annotations

import dataclasses
import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kelpie_celery.client import Kelpie
from kelpie_celery.clock import SystemClock
from kelpie_celery.definition import parse_definition
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.types import NewJob
from kelpie_celery.local.servers import ValkeyServer
from kelpie_celery.settings import load_settings
from kelpie_celery.submission import plain_job

GROUP = "bench"
BATCH = 2000
_clock = SystemClock()


def definition(group: str = GROUP) -> dict[str, Any]:
    """A typical job definition, of about 700 bytes as JSON."""
    return {
        "command": "/opt/gromacs/bin/gmx",
        "arguments": [
            "mdrun",
            "-deffnm",
            "production",
            "-cpi",
            "production.cpt",
            "-cpt",
            "5",
            "-nb",
            "gpu",
            "-maxh",
            "23",
        ],
        "environment": {"GMX_GPU_DD_COMMS": "true", "GMX_FORCE_UPDATE_DEFAULT_GPU": "true", "OMP_NUM_THREADS": "8"},
        "input_bucket": "molecular-dynamics",
        "input_prefix": "projects/kinase-binding/inputs/replica-0042/",
        "checkpoint_bucket": "molecular-dynamics",
        "checkpoint_prefix": "projects/kinase-binding/checkpoints/replica-0042/",
        "output_bucket": "molecular-dynamics",
        "output_prefix": "projects/kinase-binding/outputs/replica-0042/",
        "container_group_id": group,
        "tags": {"name": "replica-0042", "campaign": "kinase-binding", "owner": "structural-biology"},
        "webhook": "https://example.org/hooks/kelpie",
    }


@contextmanager
def redis(directory: Path) -> Iterator[ValkeyServer]:
    """A server with ``appendfsync always``, as it is to be run; gone at the end."""
    with ValkeyServer(directory / "redis", appendfsync="always") as server:
        yield server


@contextmanager
def client(server: ValkeyServer) -> Iterator[Kelpie]:
    """A client of that server, with the default settings."""
    with Kelpie(settings=load_settings({"KELPIE_REDIS_URL": server.url})) as kelpie:
        yield kelpie


@contextmanager
def without_fsync(ledger: Ledger) -> Iterator[None]:
    """While a stage is set, and not measured: no flush to the disk, no rewriting of the file behind our back."""
    ledger.redis.config_set("auto-aof-rewrite-percentage", 0)
    ledger.redis.config_set("appendfsync", "no")
    try:
        yield
    finally:
        ledger.redis.config_set("appendfsync", "always")


def fill(kelpie: Kelpie, group: str, count: int) -> list[str]:
    """Submit many jobs that differ in nothing but their ids; the ids, oldest first."""
    template = plain_job(kelpie.app, parse_definition(definition(group)))
    ids = [str(uuid.uuid4()) for _ in range(count)]
    for at in range(0, count, BATCH):
        kelpie.app.ledger.submit_many([renamed(template, job_id) for job_id in ids[at : at + BATCH]])
    return ids


def renamed(job: NewJob, job_id: str) -> NewJob:
    """The same job under another id."""
    # The body holds the id too, in base64; what is measured here never looks into it.
    return dataclasses.replace(job, job_id=job_id, message=job.message.replace(job.job_id, job_id), submission="")


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    began = _clock.boottime()
    work()
    return _clock.boottime() - began


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of them do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
