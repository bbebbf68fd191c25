"""Celery's Redis result backend: of a job it tells what the ledger decided, or nothing.

Celery takes an error of its own bookkeeping (Redis was away when the result was to be stored, say) for a failure of the
task: it stores FAILURE, counts a failed chord part and calls the error callbacks, although the job completed. Here such
an error ends the bookkeeping; the outbox is still open, and a replay does all of it again.

Limits: ordinary tasks are left alone. It overrides two private methods of Celery 5.7 (``celery/backends/redis.py``).
"""

from __future__ import annotations

import sys
from typing import Any

from celery.backends.redis import RedisBackend

from kelpie_celery.canvas import JOB_TASK
from kelpie_celery.errors import JobFailed, KelpieError
from kelpie_celery.patience import TRANSIENT, until_the_ledger_answers
from kelpie_celery.sockets import kernel_options


class BookkeepingFailed(KelpieError):
    """Celery could not be told how a job ended; it will be told again."""


class Backend(RedisBackend):
    """Result backend of every kelpie app."""

    app: Any
    connparams: dict[str, Any]

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        if self.connparams.get("socket_keepalive"):  # not on a Unix socket
            self.connparams["socket_keepalive_options"] = kernel_options(self.app.settings.redis_timeout_s)

    def mark_as_failure(
        self, task_id: str, exc: Exception, traceback: Any = None, request: Any = None, *args: Any, **more: Any
    ) -> Any:
        """Store a failure; of a job, only the one that the ledger knows of.

        Raises:
            BookkeepingFailed: ``exc`` is no failure of the job.
        """
        if getattr(request, "task", None) == JOB_TASK and not isinstance(exc, JobFailed):
            raise BookkeepingFailed(
                f"Celery was not told of job {task_id}: {type(exc).__name__}; it will be told again"
            ) from exc
        return super().mark_as_failure(task_id, exc, traceback, request, *args, **more)

    def on_chord_part_return(self, request: Any, state: str, result: Any, propagate: Any = None, **more: Any) -> Any:
        """Count a part of a chord, and publish the chord's body after the last one.

        When Redis stalls in between, Celery forgets how many parts there are; then no replay would find the chord full.
        """
        if not request.group or getattr(request, "task", None) != JOB_TASK:
            return super().on_chord_part_return(request, state, result, propagate, **more)
        size_key = self.get_key_for_group(request.group, ".s")
        size = self.client.get(size_key)
        try:
            return super().on_chord_part_return(request, state, result, propagate, **more)
        except TRANSIENT:
            expires_s = int(self.app.conf.result_expires)
            if size is not None:
                until_the_ledger_answers(lambda: self.client.set(size_key, size, nx=True, ex=expires_s))
            raise

    def chord_error_from_stack(self, callback: Any, exc: Exception | None = None) -> Any:
        """Fail a chord's body, unless it is only Redis that is away: then a replay publishes the body."""
        cause = sys.exc_info()[1]
        if isinstance(cause, TRANSIENT):
            raise cause
        return super().chord_error_from_stack(callback, exc)

    def _chord_publish_claim_expires(self, initial_expires: float, callback: Any) -> float:  # noqa: ARG002
        # Celery adds what its publish retries may take, 22 s in all, for which a chord whose worker was killed stands
        # still. Ours is one call, and the body goes out once by its id even if two think that they hold the claim.
        return initial_expires
