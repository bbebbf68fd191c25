"""A control worker that is ready keeps the rules of its file; no other worker does."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import fakeredis
import pytest
from celery import signals

from kelpie_celery.app import KelpieApp
from kelpie_celery.errors import LedgerUnavailable
from kelpie_celery.ledger.rules import Rules
from kelpie_celery.scaling.rule import ScalingRule
from kelpie_scaler import rules_at_start, tasks
from kelpie_scaler.rules_at_start import keep_rules

WANTED = ScalingRule(container_group_id="g", max_replicas=3)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rules.toml"
    path.write_text('[[rules]]\ncontainer_group_id = "g"\nmax_replicas = 3')
    return path


class App:
    """As much of an app as counts here."""

    def __init__(self, file: Path | None, queue: str = "kelpie.control", outages: int = 0) -> None:
        self.settings = SimpleNamespace(rules_file=file)
        self.amqp = SimpleNamespace(queues=SimpleNamespace(consume_from={queue: None}))
        self.ledger = SimpleNamespace(redis=fakeredis.FakeRedis(), groups=self._groups)
        self._outages = outages

    @property
    def rules(self) -> list[ScalingRule]:
        return Rules(self.ledger.redis).all()

    def as_app(self) -> KelpieApp:
        return cast("KelpieApp", self)

    def _groups(self) -> list[str]:
        self._outages -= 1
        if self._outages >= 0:
            raise LedgerUnavailable("Redis is away")
        return ["g"]


def ready(app: Any) -> None:
    """Tell of a worker that is ready, and wait for what it began."""
    assert "rules_at_start" in vars(tasks)  # loading the control tasks connects the hook
    before = set(threading.enumerate())
    for receiver in (function for _, function in signals.worker_ready.receivers or []):
        if getattr(receiver, "__module__", "") == rules_at_start.__name__:
            receiver(sender=SimpleNamespace(app=app))
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=30)


def test_a_control_worker_keeps_the_rules_of_its_file(file: Path) -> None:
    app = App(file)
    ready(app)

    assert app.rules == [WANTED]


def test_other_workers_and_control_workers_without_a_file_keep_none(file: Path) -> None:
    for app in (App(file, queue="kelpie.g"), App(None)):
        ready(app)
        assert app.rules == []
    ready(SimpleNamespace())  # somebody else's app


def test_an_outage_of_redis_is_waited_out(file: Path) -> None:
    app = App(file, outages=2)
    keep_rules(app.as_app())

    assert app.rules == [WANTED]


def test_a_file_that_is_refused_changes_nothing_and_is_told(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = App(file)
    keep_rules(app.as_app())
    file.write_text('[[rules]]\ncontainer_group_id = "g"\nmax_replicas = 501')
    with caplog.at_level(logging.ERROR):
        keep_rules(app.as_app())

    (record,) = caplog.records
    assert vars(record)["action"] == "rules_refused"
    assert "rules[0].max_replicas: must be at most 500 (got 501)" in vars(record)["error"]
    assert app.rules == [WANTED]
