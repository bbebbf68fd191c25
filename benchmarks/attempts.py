"""The storage side of real attempts, without a worker around it: real Redis, real S3 server, real commits.

Limits: the lease is not kept (a fence that never closes), so nothing here may take longer than nobody claims the job.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from socket import SHUT_WR, create_connection, create_server, socket
from typing import Any
from urllib.parse import urlsplit

from benchmarks import stage
from kelpie_celery.client import Kelpie
from kelpie_celery.definition import parse_definition
from kelpie_celery.ledger.types import Ending, FencingToken, Granted
from kelpie_celery.lifecycle import Outcome, Reason
from kelpie_celery.local.servers import SeaweedServer
from kelpie_celery.settings import load_settings
from kelpie_worker.journal import LedgerJournal
from kelpie_worker.sync import Dirs, SyncSession
from kelpie_worker.sync.commit import OnCommit
from kelpie_worker.sync.fence import OpenFence

BUCKET = "bench"


class Site:
    """A Redis, an S3 server, and directories for one attempt after the other."""

    def __init__(self, directory: Path, kelpie: Kelpie, s3: SeaweedServer, redis_url: str) -> None:
        self.directory, self.s3 = directory, s3
        self._kelpie, self._redis_url = kelpie, redis_url
        self.checkpoint = directory / "work" / "state"

    def environment(self) -> dict[str, str]:
        """The variables of a worker here."""
        work = str(self.directory / "work")
        return {**self.s3.env(), "KELPIE_REDIS_URL": self._redis_url, "KELPIE_WORKDIR": work}

    def block(self, prefix: str, direction: str = "upload", **more: Any) -> dict[str, Any]:
        """A block of the job's directory ``state``."""
        return {"bucket": BUCKET, "prefix": prefix, "local_path": "state", "direction": direction, **more}

    @asynccontextmanager
    async def attempt(
        self, sync: dict[str, Any], on_commit: OnCommit | None = None, settings: Mapping[str, str] | None = None
    ) -> AsyncIterator[SyncSession]:
        """The storage side of a new job's first attempt."""
        definition = {"command": "true", "container_group_id": stage.GROUP, "sync": sync}
        job = self._kelpie.submit(definition)
        token = self._claim(job.id)
        loaded = load_settings(self.environment() | dict(settings or {}))
        work, scratch = self.directory / "work", self.directory / "scratch"
        for folder in (work, scratch):
            folder.mkdir(exist_ok=True)
        dirs = Dirs(work, work / "input", work / "output", work / "checkpoint")
        async with SyncSession.open(
            loaded, parse_definition(definition), token=token, fence=OpenFence(), dirs=dirs, scratch=scratch,
            journal=LedgerJournal(self._kelpie.app.ledger, token), on_commit=on_commit,
        ) as session:  # fmt: skip
            yield session
            await session.end_watch()
            session.clean()
        # The prefix is the next job's from here on.
        self._kelpie.app.ledger.end_attempt(token, Ending(Outcome.COMPLETED, Reason.DONE))

    def _claim(self, job_id: str) -> FencingToken:
        granted = self._kelpie.app.ledger.claim(job_id, uuid.uuid4().hex, "bench", "w@bench", None, may_run=True)
        if not isinstance(granted, Granted):
            raise RuntimeError(f"the job was not granted: {granted}")  # noqa: TRY004 -- a state, not a type
        return granted.token


@contextmanager
def site(directory: Path) -> Iterator[Site]:
    """Servers of our own; gone at the end."""
    s3 = SeaweedServer(directory / "s3", bucket=BUCKET)
    with stage.redis(directory) as redis, stage.client(redis) as kelpie:
        try:
            s3.start()
            yield Site(directory, kelpie, s3, redis.url)
        finally:
            s3.close()


class Counter:
    """Passes connections on to a server, and counts the bytes that go there; ``url`` is where it listens."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = parts.hostname or "", parts.port or 80
        self._server = create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.sent_bytes = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            server = create_connection(self._upstream)
            threading.Thread(target=self._pump, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()

    def _pump(self, source: socket, sink: socket, count: bool) -> None:
        try:
            while data := source.recv(1 << 18):
                if count:
                    with self._lock:
                        self.sent_bytes += len(data)
                sink.sendall(data)
            sink.shutdown(SHUT_WR)
        except OSError:
            source.close()
            sink.close()

    def close(self) -> None:
        """Take no more connections."""
        self._server.close()
