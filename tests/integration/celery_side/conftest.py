"""One set of workers for this folder: three that run jobs, one for ordinary tasks; no control worker and no beat.

Each has one slot, so that a kill hits the job at hand and no other.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kelpie_celery.local.servers import ValkeyServer
from tests.integration.celery_side.fleet import Fleet


@pytest.fixture(scope="session")
def everlasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    directory = tmp_path_factory.mktemp("celery-side")
    with ValkeyServer(directory / "redis", appendfsync="no") as server:
        fleet = Fleet(server, directory)
        try:
            started = [*(fleet.worker(name) for name in "abc"), fleet.worker("plain", "celery", slots=4)]
            for process in started:
                process.wait_ready()
                process.keep_alive()
            yield fleet
        finally:
            fleet.close()


@pytest.fixture
def fleet(everlasting: Fleet) -> Iterator[Fleet]:
    """The workers; whatever a test armed and nobody met is disarmed."""
    yield everlasting
    for key in everlasting.armed():
        everlasting.redis.delete(key)
