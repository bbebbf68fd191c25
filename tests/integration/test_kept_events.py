"""Events of jobs outlive the connection that they were to be sent over; with Celery's own steps of a worker."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.events import EventReceiver
from celery.worker.consumer.events import Events

from kelpie_celery.celery import create_app
from kelpie_celery.kept_events import KeptEvents
from kelpie_celery.settings import load_settings


@pytest.fixture
def consumer() -> Any:
    """What the steps need of a worker's consumer, on a broker in memory."""
    app: Any = Celery(broker="memory://", set_as_current=False)
    connect = app.connection_for_write
    return SimpleNamespace(
        app=app, hostname="kelpie@a", hub=SimpleNamespace(), connection_for_write=lambda **_: connect(),
        amqheartbeat=None, on_send_event_buffered=lambda: None, event_dispatcher=None,
    )  # fmt: skip


def test_what_is_said_of_a_job_while_the_connection_is_made_anew_is_heard(consumer: Any) -> None:
    heard: list[str] = []
    steps: list[Any] = [Events(consumer), KeptEvents(consumer)]
    with consumer.app.connection() as connection:
        receiver: Any = EventReceiver(connection, handlers={"*": lambda e: heard.append(e["uuid"])}, app=consumer.app)
        with receiver.consumer_context() as (heard_on, _, _):
            for job in ("first", "second", "third"):
                for step in steps:
                    step.start(consumer)
                consumer.event_dispatcher.send("task-succeeded", uuid=job, result="done")
            consumer.event_dispatcher.flush()
            with contextlib.suppress(TimeoutError):
                while True:
                    heard_on.drain_events(timeout=0.2)
    assert heard == ["first", "second", "third"]


def test_a_worker_takes_that_step_after_celerys_own() -> None:
    app = create_app(load_settings({"KELPIE_REDIS_URL": "redis://127.0.0.1:1/0"}))
    assert KeptEvents in app.steps["consumer"]
    assert KeptEvents.requires == (f"{Events.__module__}:{Events.__name__}",)
