"""Points at which a worker kills itself when the test has armed them, wrapped around the product's and Celery's code.

The key ``test:kill:<point>:<name of the job>`` arms a point once, for the job that the thread works on; its
value is the process to kill, or 0 for the worker itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from functools import wraps
from typing import Any

from celery import current_task
from celery.app.amqp import AMQP
from celery.backends.redis import RedisBackend
from redis import Redis
from redis.exceptions import RedisError

from kelpie_celery.canvas import JOB_TASK
from kelpie_celery.errors import KelpieError
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.task import JobTask
from tests.integration.celery_side.played import Notes

POINTS = {
    "run": "while the command runs",
    "after_complete": "the ledger says completed, Celery knows nothing",
    "after_fail": "the ledger says failed, Celery knows nothing",
    "pre_publish": "before what follows is published",
    "between": "the next message is built and its drafts are written, it is not sent",
    "post_publish": "what follows is published, the result is not stored",
    "post_store": "the result is stored, the chord's part is not counted",
    "pre_done": "Celery's bookkeeping is complete, the outbox is open",
}


class Faults:
    """Looks whether a point is armed for the job at hand."""

    def __init__(self, app: Any, redis: Redis, notes: Notes) -> None:
        self._app, self._redis, self._notes = app, redis, notes

    def pass_by(self, point: str) -> None:
        """Die here when the test says so."""
        task = current_task
        if not task or task.name != JOB_TASK or not task.request.id:
            return
        with contextlib.suppress(KelpieError, RedisError):
            name = self._app.ledger.get(task.request.id).name
            armed = self._redis.getdel(f"test:kill:{point}:{name}")
            if armed:
                self._notes.add("deaths", point=point, name=name)
                os.kill(int(armed) or os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """Wrap what has to be interrupted; only in the worker process of a test."""
        ended = {"completed": "after_complete", "failed": "after_fail"}
        _after(Ledger, "end_attempt", lambda status: self.pass_by(ended.get(status, "")))
        _after(Ledger, "renew", lambda _: self.pass_by("run"))
        _before(Ledger, "submit", lambda: self.pass_by("between"))
        _before(Ledger, "publish_once", lambda: self.pass_by("between"))
        _before(AMQP, "_retry_publish", lambda: self.pass_by("pre_publish"))
        _after(AMQP, "_retry_publish", lambda _: self.pass_by("post_publish"))
        _before(RedisBackend, "on_chord_part_return", lambda: self.pass_by("post_store"))
        _before(JobTask, "_celery_done", lambda: self.pass_by("pre_done"))


def _before(owner: type, name: str, act: Callable[[], None]) -> None:
    original = getattr(owner, name)

    @wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        act()
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def _after(owner: type, name: str, act: Callable[[Any], None]) -> None:
    original = getattr(owner, name)

    @wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        answer = original(*args, **kwargs)
        act(answer)
        return answer

    setattr(owner, name, wrapped)
