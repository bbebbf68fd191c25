"""Runs the command line in this process, against a Redis in memory."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fakeredis
import pytest

from kelpie_celery import app as app_module
from kelpie_celery.cli import run
from kelpie_celery.client import Kelpie
from kelpie_celery.ledger.types import Ending, FencingToken, Granted
from kelpie_celery.lifecycle import Outcome, Reason

URL = "rediss://:the-password@redis.example:6379/0"


@dataclass(frozen=True)
class Answer:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Stdout as one JSON document."""
        return json.loads(self.out)


class Cli:
    """The command line, and the client behind it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kelpie: Kelpie) -> None:
        self._monkeypatch, self._capsys, self.kelpie = monkeypatch, capsys, kelpie

    def __call__(self, *argv: str, stdin: str | bytes = "") -> Answer:
        """Run ``kelpie`` with these arguments."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        self._capsys.readouterr()
        code = run(argv)
        return Answer(code, *self._capsys.readouterr())

    def submit(self, **more: Any) -> str:
        """The id of a new job."""
        return self.kelpie.submit({"command": "true", "container_group_id": "g", "sync": {}, **more}).id

    def claim(self, job_id: str, machine: str = "m") -> FencingToken:
        """Take the job, as a worker does."""
        granted = self.kelpie.app.ledger.claim(job_id, f"nonce-{machine}", machine, "worker@m", None, may_run=True)
        assert isinstance(granted, Granted)
        return granted.token

    def end(self, job_id: str, outcome: Outcome = Outcome.COMPLETED, machine: str = "m", **more: Any) -> None:
        """Take the job and end the attempt."""
        ending = Ending(outcome, **{"reason": Reason.EXIT_CODE, "message": "exit code 1", "final": True, **more})
        self.kelpie.app.ledger.end_attempt(self.claim(job_id, machine), ending)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """The command line with an empty Redis; logging is put back afterwards."""
    server = fakeredis.FakeServer()
    monkeypatch.setattr(
        app_module,
        "connect",
        lambda _url, _timeout_s: fakeredis.FakeRedis(server=server, decode_responses=True, version=(7,)),
    )
    monkeypatch.setenv("KELPIE_REDIS_URL", URL)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with Kelpie() as kelpie:
        yield Cli(monkeypatch, capsys, kelpie)
    root.handlers[:] = handlers
    root.setLevel(level)  # not by its attribute: loggers remember which levels are on
