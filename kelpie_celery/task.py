"""``kelpie.run_job``: an ordinary Celery task to its callers, a fenced attempt to the ledger.

``apply_async`` validates the definition, has Celery build the message without sending it, and hands both to the ledger,
which writes the record and publishes the hint at once. ``run`` claims, runs one attempt, reports, and tells Celery what
became of the job: SUCCESS, FAILURE (``JobFailed``), REVOKED, or RETRY for everything that goes on.

Limits: not for ``task_always_eager``; an id runs once, so an ended job is run again under a new id only.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn, cast

from celery import Task
from celery.app.task import Context
from celery.exceptions import Ignore, Retry
from celery.utils import uuid
from celery.utils.time import maybe_iso8601, maybe_make_aware

from kelpie_celery.announcing import Announcer
from kelpie_celery.app import in_a_job
from kelpie_celery.canvas import JOB_TASK, Detacher
from kelpie_celery.clock import Instant, SystemClock
from kelpie_celery.definition import JobDefinition, from_json, parse_definition
from kelpie_celery.errors import (
    IdempotencyConflict,
    JobExists,
    JobFailed,
    JobInterrupted,
    JobNotFound,
    KelpieError,
    LeaseLost,
    LedgerRefused,
    LedgerUnavailable,
)
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.types import (
    REFUSED_DRAINING,
    Banned,
    Claim,
    Ended,
    Ending,
    Granted,
    Refused,
    Submitted,
)
from kelpie_celery.lifecycle import Outcome, Reason, Status
from kelpie_celery.messages import Capture, published_at
from kelpie_celery.patience import until_the_ledger_answers
from kelpie_celery.request import JobRequest, current_request
from kelpie_celery.retry_rules import ruled
from kelpie_celery.running import DRAINING, RunningJob
from kelpie_celery.submission import description, new_job

if TYPE_CHECKING:
    from celery.result import AsyncResult

    from kelpie_celery.app import KelpieApp

log = logging.getLogger(__name__)

# Routing is by container group; a connection of the caller's would bypass the ledger's publish.
_OURS = (
    "connection",
    "router",
    "exchange",
    "routing_key",
    "queue",
    "producer",
    "argsrepr",
    "kwargsrepr",
    "retry",
)
# What makes Celery wait for this very id.
_WORKFLOW = ("group_id", "chord", "chain", "link", "link_error")


class JobTask(Task):  # type: ignore[type-arg]  # celery-types: generic in the body's parameters, which are the caller's
    """Runs one job; its arguments are earlier steps' results, then the definition (in a message: the job's id)."""

    name = JOB_TASK
    typing = False
    acks_late = False
    # STARTED is told after the claim: a duplicate that is refused must not show a wrong worker.
    track_started = False
    Request = "kelpie_celery.request:JobRequest"

    @property
    def kelpie(self) -> KelpieApp:
        """The app, with its ledger."""
        return cast("KelpieApp", self.app)

    # -- submit ---------------------------------------------------------------------------------------------------

    def apply_async(  # type: ignore[override]  # celery-types names each option
        self, args: Any = None, kwargs: Any = None, task_id: str | None = None, **options: Any
    ) -> AsyncResult[Any]:
        """Submit a job.

        Args:
            args: Earlier results, then the definition: a mapping, a ``JobDefinition`` or JSON.
            kwargs: Not used; the definition is one argument.
            task_id: The job's id; a fresh one without it.
            options: Celery's own. ``countdown`` and ``eta`` wait in the ledger, ``priority`` is 0 (highest) to 9.

        Raises:
            DefinitionError: The definition is refused.
            IdempotencyConflict: Its idempotency key is taken by another definition.
            JobExists: The id was submitted before.
            LedgerUnavailable: Redis cannot be reached. Unless its answer was lost, nothing was submitted.
        """
        if self.kelpie.conf.task_always_eager:
            raise KelpieError("task_always_eager cannot run jobs: they need a worker; 'kelpie up' starts one locally")
        args = tuple(args or ())
        if len(args) == 0 or kwargs:
            raise TypeError("run_job takes a job definition as its last positional argument, and no keywords")
        job_id = task_id or uuid()
        if in_a_job():
            try:
                # A repeat after a lost answer finds the record of this id, and publishes nothing.
                with self.kelpie.handing_over():
                    return until_the_ledger_answers(lambda: self._submit(args, job_id, options), take_no=True)
            except LedgerRefused:
                # A step of another group, which this worker's Redis user may not touch: no fault of the step.
                raise
            except KelpieError as e:
                return self._refused_step(job_id, options, e)
        return self._submit(args, job_id, options)

    def _submit(self, args: Sequence[Any], job_id: str, options: Mapping[str, Any]) -> AsyncResult[Any]:
        ledger = self.kelpie.ledger
        *parents, last = args
        stored = last == job_id
        definition = self._stored_definition(job_id) if stored else parse_definition(last)
        detacher = Detacher(ledger, str(options.get("group_id") or job_id))
        opts = detacher.options({k: v for k, v in options.items() if k not in _OURS})
        delay_s = self._delay_s(opts.pop("countdown", None), opts.pop("eta", None))
        priority = opts.pop("priority", None)
        capture = Capture()
        opts |= {
            "producer": capture,
            "retry": False,
            "queue": keys.queue_name(definition.container_group_id),
            "argsrepr": description(definition),
            "kwargsrepr": "{}",
        }
        result = super().apply_async((job_id,), {}, task_id=job_id, **opts)
        answer = ledger.submit(
            new_job(
                job_id, definition, capture.envelopes[0], stored=stored, parents=parents, priority=priority,
                delay_s=delay_s, drafts=detacher.drafts,
            )
        )  # fmt: skip
        in_workflow = any(opts.get(name) for name in _WORKFLOW)
        return self._judged(answer, result, definition, stored=stored, in_workflow=in_workflow)

    def _refused_step(self, job_id: str, options: Mapping[str, Any], error: KelpieError) -> AsyncResult[Any]:
        """A later step that cannot be submitted fails, and all that follow it; the job before it has succeeded."""
        log.error(
            "a later step of a workflow was refused",
            extra={"action": "step_refused", "job_id": job_id, "error": str(error)},
        )
        link_error = options.get("link_error")
        context = Context(
            id=job_id,
            task=self.name,
            args=(job_id,),
            kwargs={},
            chain=options.get("chain"),
            chord=options.get("chord"),
            group=options.get("group_id"),
            group_index=options.get("group_index"),
            errbacks=[link_error] if isinstance(link_error, Mapping) else link_error,
            root_id=options.get("root_id"),
            parent_id=options.get("parent_id"),
            delivery_info={},
        )
        self.backend.mark_as_failure(job_id, JobFailed(job_id, Reason.SETUP, str(error)), request=context)
        return self.AsyncResult(job_id)

    def _judged(
        self,
        answer: Submitted,
        result: AsyncResult[Any],
        definition: JobDefinition,
        *,
        stored: bool,
        in_workflow: bool,
    ) -> AsyncResult[Any]:
        if answer.what == "conflict":
            raise IdempotencyConflict(
                f"the idempotency key {definition.idempotency_key!r} belongs to job {answer.job_id}, whose definition "
                "differs; use a new key, or submit the same definition"
            )
        if answer.what == "exists" and answer.job_id != result.id:
            if in_workflow:
                raise JobExists(
                    f"the idempotency key {definition.idempotency_key!r} belongs to job {answer.job_id}, and a "
                    "workflow cannot wait for a job that it did not submit; leave the key out"
                )
            return self.AsyncResult(answer.job_id)
        if answer.what == "exists" and not stored and not in_a_job():
            raise JobExists(
                f"job {answer.job_id} was submitted before and is {answer.status}; "
                "call .clone() on a signature or canvas before each apply"
            )
        return result

    def _stored_definition(self, job_id: str) -> JobDefinition:
        raw = self.kelpie.ledger.definition_of(job_id)
        if raw is None:
            raise JobNotFound(
                f"no definition is stored for job {job_id}: its workflow ended longer ago than job_retention"
            )
        return from_json(raw)

    def _delay_s(self, countdown: float | None, eta: datetime | str | None) -> float:
        time = maybe_iso8601(eta)
        if time is not None:
            # Celery takes a time without a zone as one of the app's zone, not of this machine's.
            due = maybe_make_aware(time, self.kelpie.timezone)
            return max(0.0, due.timestamp() - self.kelpie.ledger.server_time())
        return max(0.0, float(countdown or 0))

    # -- run ------------------------------------------------------------------------------------------------------

    def execute(self, *_args: Any) -> Any:
        """Claim the job, run one attempt, and tell Celery what became of it."""
        job_id, request = str(self.request.id), current_request()
        claim, asked_at = self._claim(job_id, request)
        match claim:
            case Granted():
                if request is None:  # the claim was made without the right to run
                    raise Ignore
                return self._attempt(claim, asked_at, request)
            case Ended():
                return self._told(claim)
            case Banned():
                log.info(
                    "this machine failed the job before; it is offered to others first",
                    extra={"action": "job_banned", "job_id": job_id, "pause_s": claim.pause_s},
                )
            case Refused():
                if claim.why == REFUSED_DRAINING:
                    # The pulse would say so within a second; until then each message would come back at once.
                    self.kelpie.running.hold_back(DRAINING, on=True)
                log.debug("message dropped", extra={"action": "claim_refused", "job_id": job_id, "why": claim.why})
        raise Ignore

    def _claim(self, job_id: str, request: JobRequest | None) -> tuple[Claim, Instant]:
        app = self.kelpie
        nonce, clock = uuid(), SystemClock()
        received = published_at(request.message.delivery_tag) if request else None

        def ask() -> tuple[Claim, Instant]:
            asked_at = Instant.now(clock)
            # A message may have been on its way when the worker was to take no more: it goes back to the queue.
            may_run = request is not None and not app.running.takes_nothing
            machine, worker = app.settings.machine_id, str(self.request.hostname)
            holder = app.worker_id if request is not None else ""
            claim = app.ledger.claim(job_id, nonce, machine, worker, received, may_run=may_run, holder=holder)
            return claim, asked_at

        try:
            return until_the_ledger_answers(ask, give_up=lambda: app.running.shutting_down)
        except LedgerUnavailable:
            # The worker ends; the lease or the reconciler brings the job back, whichever holds it.
            raise Ignore from None

    def _attempt(self, granted: Granted, asked_at: Instant, request: JobRequest) -> Any:
        app = self.kelpie
        job = RunningJob(granted.token, asked_at, request.free_slot)
        request.job = job
        attempt = granted.token.attempt
        job.announcer = Announcer(
            lambda started, words: request.announce_started(started, words, attempt), attempt, SystemClock()
        )
        app.running.add(job)
        try:
            self._tell_started(request, job.announcer)
            ending = ruled(from_json(granted.definition).retry, self._run(granted, job))
            status, ending = self._report(job, ending)
        except LeaseLost as e:
            log.warning(
                "the attempt has no effect any more",
                extra={
                    "action": "lease_lost",
                    "job_id": job.token.job_id,
                    "attempt": job.token.attempt,
                    "why": str(e),
                },
            )
            raise Ignore from e
        finally:
            app.running.remove(job)
            job.announcer.close()
        return self._conclude(job.token.job_id, status, ending)

    def _run(self, granted: Granted, job: RunningJob) -> Ending:
        try:
            return self.kelpie.runner.run(granted, job)
        except LeaseLost:
            raise
        except Exception as e:
            # Celery would call the job failed for good, while the ledger waits for a lease to run out.
            log.exception("the runtime failed", extra={"action": "worker_error", "job_id": job.token.job_id})
            return Ending(Outcome.FAILURE, Reason.WORKER_ERROR, f"the worker failed: {type(e).__name__}; see its log")

    def _report(self, job: RunningJob, ending: Ending) -> tuple[str, Ending]:
        def report(what: Ending) -> str:
            return until_the_ledger_answers(lambda: self.kelpie.ledger.end_attempt(job.token, what))

        status = report(ending)
        if status == "cancel":
            # A cancel was accepted before the completion: the user was told so.
            ending = Ending(Outcome.CANCELED, Reason.CANCELED, facts=ending.facts, output=ending.output)
            status = report(ending)
        return status, ending

    def _conclude(self, job_id: str, status: str, ending: Ending) -> Any:
        if status == Status.COMPLETED:
            return ending.result
        if status == Status.FAILED:
            raise JobFailed(job_id, ending.reason, ending.message)
        if status == Status.CANCELED:
            self._tell_revoked()
        cause: Exception = (
            JobFailed(job_id, ending.reason, ending.message)
            if ending.outcome in {Outcome.FAILURE, Outcome.FREE}
            else JobInterrupted(f"{ending.reason}: {ending.message}")
        )
        raise Retry(str(cause), exc=cause)

    def _told(self, claim: Ended) -> Any:
        if claim.status is Status.COMPLETED:
            return claim.result
        if claim.status is Status.FAILED:
            raise JobFailed(str(self.request.id), claim.reason, claim.message)
        return self._tell_revoked()

    # -- what Celery is told --------------------------------------------------------------------------------------

    def _tell_started(self, request: JobRequest, announcer: Announcer) -> None:
        try:
            if not request.ignore_result:
                meta = {"hostname": request.hostname}
                self.backend.store_result(str(self.request.id), meta, "STARTED", request=self.request)
            announcer.tell()
        except Exception:
            log.warning(
                "Celery was not told of the start",
                extra={"action": "celery_untold", "job_id": self.request.id},
            )

    def _tell_revoked(self) -> NoReturn:
        job_id = str(self.request.id)
        try:
            self.backend.mark_as_revoked(job_id, "canceled", request=self.request)
        except Exception as e:
            log.info(
                "the outbox stays open and is replayed",
                extra={"action": "outbox_open", "job_id": job_id, "error": type(e).__name__},
            )
            raise Ignore from e
        request = current_request()
        if request is not None:
            request.announce_revoked()
        self._celery_done(job_id)
        raise Ignore

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:  # noqa: ARG002 - Celery's signature
        """Close the outbox: result, links, chain and chord are done."""
        self._celery_done(task_id)

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:  # noqa: ARG002
        """Close the outbox of a job that failed; a failure of Celery's own bookkeeping leaves it open for a replay."""
        try:
            status = self.kelpie.ledger.status_of(task_id)
        except LedgerUnavailable:
            return
        if status in (Status.FAILED, None):
            self._celery_done(task_id)

    def _celery_done(self, job_id: str) -> None:
        if self._chord_is_claimed_by_another():
            return
        try:
            self.kelpie.ledger.celery_done(job_id)
        except LedgerUnavailable:
            log.info("the outbox stays open and is replayed", extra={"action": "outbox_open", "job_id": job_id})

    def _chord_is_claimed_by_another(self) -> bool:
        """Whether somebody, dead perhaps, holds the claim to publish the chord's body: then it is not done yet.

        Celery 5.7 keeps the claim under ``<group>.c`` until it expires, and a replay meanwhile returns silently.
        """
        request = self.request
        if not (request.chord and request.group):
            return False
        backend: Any = self.backend
        claim = backend.client.get(backend.get_key_for_group(request.group, ".c"))
        return claim is not None and claim not in (b"done", "done")
