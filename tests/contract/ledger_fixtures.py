"""Fixtures of the ledger's tests: fakeredis and a Valkey of their own, one suite for both.

Imported by name into each test module: this folder's conftest belongs to other suites.
"""

from __future__ import annotations

from collections.abc import Iterator

import fakeredis
import pytest
from redis import Redis

from kelpie_celery.local.servers import ValkeyServer
from tests.contract.ledger_cases import Edge, World

SEEN: set[Edge] = set()
"""Every change of a status that the suites of this process caused."""


@pytest.fixture(scope="module")
def ledger_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    with ValkeyServer(tmp_path_factory.mktemp("ledger-valkey"), appendfsync="no") as server:
        yield server


@pytest.fixture(params=["fakeredis", "valkey"])
def any_redis(request: pytest.FixtureRequest) -> Iterator[Redis]:
    """An empty database."""
    if request.param == "fakeredis":
        # Replies as bytes here and as text below: the ledger takes both.
        yield fakeredis.FakeRedis(server=fakeredis.FakeServer())
        return
    yield from _emptied(request.getfixturevalue("ledger_valkey"))


@pytest.fixture
def real_redis(ledger_valkey: ValkeyServer) -> Iterator[Redis]:
    """An empty database of a real server."""
    yield from _emptied(ledger_valkey)


def _emptied(server: ValkeyServer) -> Iterator[Redis]:
    client = Redis.from_url(server.url, decode_responses=True)
    client.flushdb()
    yield client
    client.close()


@pytest.fixture
def w(any_redis: Redis) -> World:
    return World(any_redis, edges=SEEN)
