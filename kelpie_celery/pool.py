"""Celery's threads pool, made safe for bookkeeping that fails.

In Celery 5.7 an exception outside a task's body (its result could not be stored, say, since Redis is away) never calls
the request back in the threads pool: the slot is lost for good. Here it ends as ``Ignore``; the ledger's outbox replays
the bookkeeping.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.exceptions import Ignore

from kelpie_celery.gate import wake
from kelpie_celery.request import current_request

log = logging.getLogger(__name__)


class TaskPool(ThreadPool):
    """The pool of every kelpie-celery worker."""

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Any = None,
        kwargs: Any = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        **options: Any,
    ) -> Any:
        """Run ``target`` in a thread; whatever happens, the request is called back and the gate looks again."""

        def called_back(*result: Any, **more: Any) -> None:
            try:
                if callback:
                    callback(*result, **more)
            finally:
                request = current_request()
                if request is not None:
                    request.leave_thread()
                wake()

        return super().on_apply(_contained(target), args, kwargs, called_back, accept_callback, **options)


def _contained(target: Callable[..., Any]) -> Callable[..., Any]:
    def contained(*args: Any, **kwargs: Any) -> Any:
        try:
            return target(*args, **kwargs)
        except Exception as e:
            log.warning(
                "Celery's bookkeeping failed; it will be replayed",
                exc_info=True,
                extra={"action": "bookkeeping_failed", "error": type(e).__name__},
            )
            try:
                raise Ignore(repr(e)) from e  # noqa: TRY301 - ExceptionInfo reads the exception that is being handled
            except Ignore:
                # What the tracer returns for a task that is ignored: (failed, info, runtime).
                return 1, ExceptionInfo(), 0.0

    return contained
