"""A job of two commits on a real storage and a real ledger, for tests that do something to each of its requests.

Sizes and limits are a sixteenth of production's, all of them: the large file has two segments.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from kelpie_celery.definition import JobDefinition, parse_definition
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.types import FencingToken, Granted, NewJob, Timings
from kelpie_celery.messages import TAG
from kelpie_celery.settings import load_settings
from kelpie_worker.journal import LedgerJournal
from kelpie_worker.sync import Dirs, SyncSession
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.object_store import ObjectStore
from tests.histories.small_sizes import make_small

GROUP = "gpus"
MIB = 1024 * 1024
SCALE = 16
LARGE_BYTES = 40 * MIB // SCALE
LEASE_S = 3.0
WHYS = ("sigterm", "exit")
"""Why the two commits are made, in their order."""

OpenStore = Callable[[], AbstractAsyncContextManager[ObjectStore]]


def prepare(
    patch: pytest.MonkeyPatch, window_bytes: int = 8 * MIB // SCALE, segment_bytes: int = 32 * MIB // SCALE
) -> None:
    """Small sizes, and quick retries."""
    make_small(patch, MIB // SCALE, window_bytes, segment_bytes)
    patch.setattr("kelpie_worker.sync.retry.FIRST_PAUSE_S", 0.05)
    patch.setattr("kelpie_worker.sync.retry.LONGEST_PAUSE_S", 0.3)
    patch.setattr("kelpie_worker.sync.segments._PAUSE_S", 0.05)


def states(large_bytes: int = LARGE_BYTES) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """What the first and the second commit hold: the second changes some of each."""
    rng = random.Random(1)
    first = {name: rng.randbytes(size) for name, size in (("a", 10), ("b", 3000), ("d/c", 700))}
    first["large"] = rng.randbytes(large_bytes)
    second = first | {"a": b"another", "new": rng.randbytes(50)}
    del second["d/c"]
    at = large_bytes // 5 + 1000
    second["large"] = first["large"][:at] + rng.randbytes(2000) + first["large"][at + 2000 :]
    return first, second


def write(directory: Path, state: dict[str, bytes]) -> None:
    """Bring a directory to a state; what is in it already is not touched."""
    for path in list(directory.rglob("*")):
        if path.is_file() and path.relative_to(directory).as_posix() not in state:
            path.unlink()
    for name, data in state.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)


def ledger_at(url: str) -> Ledger:
    """The ledger, with leases of seconds."""
    return Ledger(Redis.from_url(url), Timings(min_lease_s=LEASE_S, tick_interval_s=0.0))


def submit(ledger: Ledger, job_id: str) -> None:
    message = f'{{"properties": {{"delivery_tag": "{TAG}"}}}}'
    ledger.submit(NewJob(job_id, GROUP, "{}", message, 4, LEASE_S / 2, 100, digest="d"))


def claim(ledger: Ledger, job_id: str, nonce: str) -> FencingToken | None:
    """The next attempt; None while another one has the job."""
    ledger.tick(GROUP, uptime_s=1e9, saw_outage=False, fresh=False)
    answer = ledger.claim(job_id, nonce, f"m-{nonce}", f"w-{nonce}", None, may_run=True)
    return answer.token if isinstance(answer, Granted) else None


@dataclass(frozen=True)
class Place:
    """Where a job keeps what it stores.

    Attributes:
        endpoint_url: The storage's own address, which the ledger knows the line by.
        bucket: The bucket.
        prefix: Of the checkpoint.
        plain: When plain keys follow.
    """

    endpoint_url: str
    bucket: str
    prefix: str
    plain: str = "never"

    def definition(self) -> JobDefinition:
        def block(name: str, direction: str, **more: str) -> dict[str, Any]:
            prefix = f"{self.prefix}{name}"
            return {"bucket": self.bucket, "prefix": prefix, "local_path": name, "direction": direction, **more}

        return parse_definition({
            "command": "true", "container_group_id": GROUP,
            "sync": {
                "before": [block("ck", "download")],
                "during": [block("ck", "upload", plain=self.plain)],
                "after": [block("out", "upload")],
            },
        })  # fmt: skip


def session(
    place: Place, ledger: Ledger, token: FencingToken, fence: Fence, home: Path, store: OpenStore
) -> tuple[SyncSession, Path, Path]:
    """The session of an attempt on a machine of its own, its checkpoint directory, and that of its outputs."""
    work, scratch = home / "work", home / "scratch"
    for folder in (work, scratch):
        folder.mkdir(parents=True)
    settings = load_settings({
        "KELPIE_REDIS_URL": "redis://127.0.0.1:1/0", "AWS_ENDPOINT_URL": place.endpoint_url, "KELPIE_QUIET_S": "0.1",
        "KELPIE_STORAGE_RETRY_S": "20",
    })  # fmt: skip
    opened = SyncSession.open(
        settings, place.definition(), token=token, fence=fence, journal=LedgerJournal(ledger, token),
        dirs=Dirs(work, work / "in", work / "out", work / "ck"), scratch=scratch, store=store,
    )  # fmt: skip
    return opened, work / "ck", work / "out"


async def two_commits(sync: SyncSession, directory: Path, of: tuple[dict[str, bytes], dict[str, bytes]]) -> None:
    """The job: restore, and two states, each committed at once."""
    await sync.restore()
    for state, why in zip(of, WHYS, strict=True):
        write(directory, state)
        await sync.commit(why, plain=False)


def environment() -> dict[str, str]:
    """What a child process needs to import this."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in _paths() if path)}


def _paths() -> list[str]:
    root = Path(__file__).resolve().parents[2]
    return [str(root), os.environ.get("PYTHONPATH", "")]
