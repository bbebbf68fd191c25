"""One set of workers for this folder: three that run jobs, one for ordinary tasks; no control worker and no beat.

Each has one slot, so that a kill hits the job at hand and no other.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from redis.exceptions import RedisError

from kelpie_celery.local.servers import ValkeyServer
from tests.harness.waiting import eventually
from tests.integration.celery_side.fleet import Fleet
from tests.integration.celery_side.played import definition


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
            fleet.get(fleet.run_job.delay(definition("first")))
            yield fleet
        finally:
            fleet.close()


@pytest.fixture
def fleet(everlasting: Fleet) -> Iterator[Fleet]:
    """The workers; whatever a test armed and nobody met is disarmed."""
    yield everlasting
    for key in everlasting.armed():
        everlasting.redis.delete(key)


class Listener:
    """Every event that the workers send, as Flower would see them."""

    def __init__(self, fleet: Fleet) -> None:
        self.seen: list[dict[str, Any]] = []
        self._fleet = fleet
        self._connection = fleet.app.connection_for_read()
        self._receiver = fleet.app.events.Receiver(self._connection, handlers={"*": self.seen.append})
        self._thread = threading.Thread(target=self._run, name="event-listener", daemon=True)
        self._thread.start()
        with fleet.app.events.default_dispatcher() as dispatcher:
            eventually("events arrive", lambda: self._hears(dispatcher))

    def _hears(self, dispatcher: Any) -> bool:
        dispatcher.send("test-hello")
        return bool(self.seen)

    def _run(self) -> None:
        while not self._receiver.should_stop:
            with contextlib.suppress(OSError, RedisError):  # Redis is away
                self._receiver.capture(limit=None, timeout=1, wakeup=False)

    def of(self, job_id: str) -> list[str]:
        """The kinds of events of one task, in order."""
        return [event["type"] for event in self.seen if event.get("uuid") == job_id]

    def close(self) -> None:
        self._receiver.should_stop = True
        self._thread.join(5)
        self._connection.release()


@pytest.fixture(scope="session")
def everything(everlasting: Fleet) -> Iterator[Listener]:
    listener = Listener(everlasting)
    yield listener
    listener.close()


@pytest.fixture
def listener(everything: Listener) -> Listener:
    """Events from this test on; those of earlier ones are forgotten."""
    everything.seen.clear()
    return everything
