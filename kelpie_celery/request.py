"""Celery's view of one received job message, bent where a job differs from a task.

STARTED is announced after the claim, not on arrival; terminate and cancel reach the attempt; a job given back is
published only after Celery has recorded the RETRY. Limits: threads pool only (``kelpie_celery.pool``).
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Literal, cast

from celery.worker.request import Request

from kelpie_celery.announcing import end_text
from kelpie_celery.errors import JobFailed, JobInterrupted, LedgerUnavailable
from kelpie_celery.gate import wake
from kelpie_celery.running import RunningJob, Stop

if TYPE_CHECKING:
    from kelpie_celery.app import KelpieApp

log = logging.getLogger(__name__)

# on_accepted, the task's body and the callbacks of one request run in one pool thread, in this order.
_thread = threading.local()


def current_request() -> JobRequest | None:
    """The request that this thread works on; None where Celery's bookkeeping is replayed without a message."""
    return getattr(_thread, "request", None)


def _cause(exc_info: Any) -> BaseException:
    """What was raised in the first place: Celery wraps it in a Retry, and that in what carries a traceback."""
    error: Any = exc_info.exception
    while isinstance(getattr(error, "exc", None), BaseException):
        error = error.exc
    return cast("BaseException", error)


class JobRequest(Request):
    """A job's request.

    Attributes:
        job: The attempt, once the claim is granted.
        slot_is_free: The next job may start although this one still uploads.
    """

    job: RunningJob | None = None
    slot_is_free = False
    _ended_by: BaseException | None = None

    def on_accepted(self, pid: Any, time_accepted: float) -> None:
        """Note the request for this thread."""
        _thread.request = self
        super().on_accepted(pid, time_accepted)

    def leave_thread(self) -> None:
        """The pool's thread is done with this request."""
        _thread.request = None

    def free_slot(self) -> None:
        """Let the worker fetch its next job."""
        self.slot_is_free = True
        wake()

    def maybe_expire(self) -> Literal[True] | None:
        """``expires`` is about the first start: a job that was interrupted after it goes on."""
        if self.expires and self._has_started():
            return None
        return super().maybe_expire()

    def _has_started(self) -> bool:
        try:
            found = cast("KelpieApp", self.app).ledger.get_many([self.id])
        except LedgerUnavailable:
            # Canceled is for good: not on a guess.
            return True
        return bool(found) and found[0].started is not None

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's name
        """Drop Celery's own ``task-started``, which comes before the claim; say in words why a try ended.

        Celery's traceback of it leads through our own code only, as if that had failed.
        """
        if type == "task-started":
            return
        if "exception" in fields and isinstance(self._ended_by, JobFailed | JobInterrupted):
            why = end_text(self._ended_by)
            ended = f"attempt {self.job.token.attempt} ended: {why}" if self.job else why
            fields |= {"exception": why, "traceback": None, "result": ended}
        super().send_event(type, **fields)

    def announce_started(self, started: float, words: str, attempt: int) -> None:
        """Send ``task-started`` for an attempt that was granted; again when there is news of it.

        Args:
            started: When it started, in seconds since the epoch.
            words: What it does; a listener shows it as the result so far.
            attempt: Its number.
        """
        # With all that a listener needs that was started after the job.
        super().send_event(
            "task-started", started=started, result=words, retries=attempt - 1, name=self.name, args=self.argsrepr,
            kwargs=self.kwargsrepr, root_id=self.root_id, parent_id=self.parent_id,
        )  # fmt: skip

    def announce_revoked(self) -> None:
        """Send ``task-revoked`` for a job that was canceled."""
        super().send_event("task-revoked", terminated=True, signum=15, expired=False, result="canceled")

    def terminate(self, pool: Any, signal: Any = None) -> None:  # noqa: ARG002 - Celery's signature
        """Cancel the attempt. Before the claim there is nothing to stop, and the ledger's flag does the rest."""
        if self.job:
            self.job.ask_to_stop(Stop.CANCEL)

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:  # noqa: ARG002
        """Give the job back, as Celery asks for in a cold shutdown."""
        if self.job:
            self.job.ask_to_stop(Stop.SHUTDOWN)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """Note why, for those who listen."""
        self._ended_by = _cause(exc_info)
        return super().on_failure(exc_info, send_failed_event, return_ok)

    def on_retry(self, exc_info: Any) -> None:
        """Publish a job that was given back, after Celery's own words about it have gone out."""
        self._ended_by = _cause(exc_info)
        super().on_retry(exc_info)
        # The event waits in a buffer: without the flush Flower would hear of it after the next attempt's start.
        eventer = self.eventer
        try:
            if eventer:
                eventer.flush()
        except Exception:
            log.debug("events were not flushed", extra={"action": "events_unflushed"})
        if self.job is None:
            return
        try:
            cast("KelpieApp", self.app).ledger.publish(self.job.token)
        except LedgerUnavailable:
            # The reconciler finds it: pending, and in no list.
            log.info("the hint goes out later", extra={"action": "publish_later", "job_id": self.id})
