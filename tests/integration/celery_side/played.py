"""The test's own app: ordinary tasks beside the job's, and a runner that plays a job instead of running a command.

``arguments`` of a job say what to play: seconds, then what the command needs. Everything that happens is noted in
Redis under ``test:``.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from typing import Any

from celery import Celery
from redis import Redis
from redis.exceptions import RedisError

from kelpie_celery.app import KelpieApp
from kelpie_celery.errors import LedgerUnavailable
from kelpie_celery.ledger.types import Ending, Granted
from kelpie_celery.lifecycle import Outcome, Phase, Reason
from kelpie_celery.running import RunningJob, Stop

HEARTBEAT_S = 0.3
GROUP = "g1"


def definition(name: str, seconds: float = 0.05, *more: object, mode: str = "play", **fields: Any) -> dict[str, Any]:
    """A job that plays for some seconds.

    ``mode`` is ``play``, ``fail`` (always, or so many times), ``hold`` (until let go of) or ``upload`` (likewise, after
    the command).
    """
    base: dict[str, Any] = {"command": mode, "arguments": [str(a) for a in (seconds, *more)], "sync": {}}
    return {**base, "container_group_id": GROUP, "heartbeat_interval": 1, "tags": {"name": name}, **fields}


class Notes:
    """What workers write down for the test, and what they are told by it."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis

    def add(self, name: str, /, **facts: Any) -> None:
        with contextlib.suppress(Exception):
            self.redis.rpush(f"test:{name}", json.dumps({"t": time.time(), "pid": os.getpid(), **facts}))

    def all(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(row) for row in self.redis.lrange(f"test:{name}", 0, -1)]

    def count(self, name: str) -> int:
        return int(self.redis.llen(f"test:{name}"))

    def let_go(self, name: str) -> None:
        """Have the jobs of this name that hold, or upload, come to their end."""
        self.redis.set(f"test:let-go:{name}", 1)

    def is_let_go(self, name: str) -> bool:
        with contextlib.suppress(RedisError):
            return bool(self.redis.exists(f"test:let-go:{name}"))
        return False


class Player:
    """An ``AttemptRunner``: heartbeats, and stops when it is asked to, as the real one does."""

    untold = False

    def __init__(self, app: KelpieApp, notes: Notes) -> None:
        self._app, self._notes = app, notes
        self.slots = app.settings.slots or 1

    def tend(self, group: str, *, draining: bool, streak: int) -> bool:
        return True

    def run(self, granted: Granted, job: RunningJob) -> Ending:
        told = json.loads(granted.definition)
        mode, arguments, name = told["command"], told["arguments"], told["tags"]["name"]
        self._notes.add(f"runs:{granted.token.job_id}", attempt=granted.token.attempt)
        stopped = self._play(granted, job, float(arguments[0]), name if mode == "hold" else "")
        if stopped is Stop.CANCEL:
            return Ending(Outcome.CANCELED, Reason.CANCELED)
        if stopped is Stop.SHUTDOWN:
            return Ending(Outcome.INTERRUPTION, Reason.WORKER_SHUTDOWN)
        if mode == "fail" and (len(arguments) == 1 or granted.num_failures < int(arguments[1])):
            return Ending(Outcome.FAILURE, Reason.EXIT_CODE, "exit 1")
        if mode == "upload":
            job.free_slot()
            self._notes.add(f"uploads:{granted.token.job_id}")
            self._play(granted, job, float(arguments[1]), name)
        result = {
            "name": name,
            "attempt": granted.token.attempt,
            "parents": json.loads(granted.parents),
        }
        return Ending(Outcome.COMPLETED, Reason.DONE, result=result)

    def _play(self, granted: Granted, job: RunningJob, seconds: float, held: str = "") -> Stop | None:
        """Play for some seconds, or until the jobs ``held`` are let go of."""
        asked = threading.Event()
        job.listen(lambda _: asked.set())
        end = time.monotonic() + seconds
        while job.stop is None:
            # Muted while Redis is away: the job itself plays on.
            with contextlib.suppress(LedgerUnavailable):
                if self._app.ledger.renew(granted.token, Phase.EXECUTING).cancel:
                    job.ask_to_stop(Stop.CANCEL)
            left = end - time.monotonic()
            if left <= 0 or (held and self._notes.is_let_go(held)):
                break
            asked.wait(min(left, HEARTBEAT_S))
        return job.stop


def register(app: Celery, notes: Notes) -> None:
    """The ordinary tasks of a user's app."""

    @app.task(bind=True, name="plain")
    def plain(self: Any, *results: Any, tag: str = "plain") -> str:
        notes.add(f"plain:{tag}", id=self.request.id, results=results)
        return tag

    @app.task(bind=True, name="replaced")
    def replaced(self: Any, told: dict[str, Any]) -> Any:
        return self.replace(app.tasks["kelpie.run_job"].s(told))

    @app.task(bind=True, name="spawn")
    def spawn(self: Any, told: dict[str, Any]) -> str:
        return str(app.tasks["kelpie.run_job"].delay(told).id)

    @app.task(name="errback_new")
    def errback_new(request: Any, exc: Any, traceback: Any) -> None:
        notes.add("plain:errback_new", id=request.id, error=repr(exc))
