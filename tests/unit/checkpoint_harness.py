"""A client with a Redis and a storage in memory, for everything that is done with checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import fakeredis
import pytest

from kelpie_celery import app as app_module
from kelpie_celery.checkpoints import client as client_module
from kelpie_celery.client import Kelpie
from kelpie_celery.clock import ManualClock
from tests.harness.commits import Attempt, during
from tests.unit.fake_s3 import FakeS3

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "the-key",
    "AWS_SECRET_ACCESS_KEY": "canary-the-secret",
    "AWS_ENDPOINT_URL": "https://s3.example:9000",
}


@dataclass
class Bench:
    """The client and what it talks to."""

    kelpie: Kelpie
    s3: FakeS3
    clock: ManualClock

    def attempt(self, *prefixes: str) -> Attempt:
        """A running attempt of a new job with these checkpoint prefixes."""
        return Attempt.of(self.kelpie, self.s3, during(*(prefixes or ("runs/a/",)), bucket="bkt"))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A client with an empty Redis and an empty storage."""
    server, s3, clock = fakeredis.FakeServer(), FakeS3(), ManualClock()
    monkeypatch.setattr(
        app_module, "connect", lambda *_: fakeredis.FakeRedis(server=server, decode_responses=True, version=(7,))
    )
    monkeypatch.setattr(client_module, "open_storage", lambda _settings: s3.storage)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with Kelpie("rediss://redis.example", clock=clock) as kelpie:
        # What is stored is as old as Redis's clock says, which no test moves.
        s3.now = kelpie.now()
        yield Bench(kelpie, s3, clock)
