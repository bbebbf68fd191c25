"""Every error that kelpie-celery raises, in one tree.

KelpieError
+-- DefinitionError          a job definition that is refused (field, value, rule)
+-- SettingsError            a setting that is missing or wrong
+-- RuleError                a scaling rule, or a file of them, that is refused (field, value, rule)
+-- RuleNotFound             no scaling rule is kept for this container group
+-- TraceError               a trace for the simulation of scaling that cannot be read
+-- JobError
|   +-- JobFailed            the job ended ``failed`` (raised by ``AsyncResult.get`` too)
|   +-- JobCanceled          the job ended ``canceled``
|   +-- JobInterrupted       an attempt ended through no fault of the job; it goes on elsewhere
|   +-- JobNotFound          no record has this id
|   +-- WebhookNotFound      the job tells no webhook of this status
|   +-- WebhookSent          it was sent already: it is neither tried again nor dropped
|   +-- JobExists            the id is taken: the same signature or canvas was applied twice
|   +-- NoCheckpoint         the job keeps no checkpoint at all
|   +-- NoLog                the job has no such output, or none that was stored
|   +-- NoOutputs            the job has stored none, or not all of them yet
|   +-- CommitGone           a checkpoint that is not kept any more cannot be gone back to (commit)
|   +-- IdempotencyConflict  the key is taken by another definition
|   +-- WaitTimeout          the job did not end within the time given to ``wait``
+-- LeaseLost                this attempt may not act for its job any more
+-- LedgerUnavailable        Redis cannot be reached or answers with an error
|   +-- LedgerRefused        it answers with an error that does not pass by itself: no permission, a wrong type
+-- StorageError             (bucket, key)
|   +-- StorageSetupError    a user must mend it: no such bucket or object, access denied
|   |   +-- PrefixHeld       another job that is pending or running commits to this prefix (holder)
|   |   +-- LineMoved        another commit came to this prefix since it was read (holder)
|   |   +-- UnsafeKey        an object key that would be written outside its directory
|   +-- StorageUnavailable   it may pass: 5xx, time-outs, DNS, connection refused
+-- DirectoryError           a directory of this machine that cannot be filled, or sent
+-- SaladError               SaladCloud's API did not do what it was asked to (status, detail)
|   +-- SaladUnavailable     it may pass: 429, 5xx, time-outs, no connection, an answer that is no JSON
|   +-- SaladRefused         400: not in this state; look at the group again
|   +-- SaladDenied          401 or 403: the key, or the quota
|   +-- SaladNotFound        404: no such organization, project, container group or instance
+-- ImdsError                the metadata service of this node did not do what it was asked to
|   +-- ImdsAbsent           there is none: this is no SaladCloud node
+-- CommandError             the job's command cannot be started (reason)

Limits: messages never carry an environment value or a credential of the user's (P9).
"""

from __future__ import annotations

from typing import Any


class KelpieError(Exception):
    """Base of everything that this distribution raises on purpose."""


class DefinitionError(KelpieError):
    """A job definition is refused; ``problems`` holds one ``(field, value, rule)`` for each fault.

    The value is a short printable form; it is ``"***"`` for anything that may be secret.
    """

    def __init__(self, problems: list[tuple[str, str, str]]) -> None:
        self.problems = problems
        lines = [f"{field}: {rule} (got {value})" for field, value, rule in problems]
        super().__init__("the job definition is refused: " + "; ".join(lines))

    def __reduce__(self) -> tuple[type[DefinitionError], tuple[list[tuple[str, str, str]]]]:
        return type(self), (self.problems,)


class SettingsError(KelpieError):
    """A setting is missing or wrong; the message names the variable and the rule."""


class RuleError(KelpieError):
    """A scaling rule is refused; ``problems`` holds one ``(field, value, rule)`` for each fault.

    Attributes:
        source: Where the rule was read, such as a file; empty for one that was made by a call.
    """

    def __init__(self, problems: list[tuple[str, str, str]], source: str = "") -> None:
        self.problems, self.source = problems, source
        lines = [f"{field}: {rule} (got {value})" for field, value, rule in problems]
        what = f"the rules in {source} are refused" if source else "the scaling rule is refused"
        super().__init__(f"{what}: " + "; ".join(lines))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems, self.source)


class RuleNotFound(KelpieError):
    """No scaling rule is kept for this container group; the message names those that are near."""


class TraceError(KelpieError):
    """A trace of jobs cannot be read; the message names the file, the line and what a line has to be."""


class JobError(KelpieError):
    """Something about one job."""


class JobFailed(JobError):
    """The job ended ``failed``.

    Attributes:
        job_id: The job.
        reason: A reason of the documented list, such as ``exit_code``.
        message: What happened, in words.
    """

    def __init__(self, job_id: str, reason: str = "", message: str = "") -> None:
        # All three go to Exception.args: Celery's JSON result backend rebuilds an exception from its args.
        super().__init__(job_id, reason, message)
        self.job_id, self.reason, self.message = job_id, reason, message

    def __str__(self) -> str:
        return f"job {self.job_id} failed ({self.reason}): {self.message}"


class JobCanceled(JobError):
    """The job ended ``canceled``."""


class JobInterrupted(JobError):
    """An attempt ended through no fault of the job; Celery shows it as the reason of a RETRY."""


class JobExists(JobError):
    """A job with this id was submitted before; ``.clone()`` a signature or canvas before each apply."""


class JobNotFound(JobError):
    """No record has this id: never submitted, or ended longer ago than ``job_retention``."""


class WebhookNotFound(JobError):
    """The job has no webhook, or never had this status."""


class WebhookSent(JobError):
    """The webhook was sent already; it is neither tried again nor dropped."""


class NoCheckpoint(JobError):
    """The job keeps no checkpoint at all, or none where it was looked for; the message says why."""


class NoLog(JobError):
    """The job has no output of that attempt, or none that was stored; the message says why and what to do."""


class NoOutputs(JobError):
    """The job has no outputs, or not all of them yet; the message says what there is."""


class CommitGone(JobError):
    """A checkpoint that is not kept any more; its objects are deleted, or soon will be."""

    def __init__(self, job_id: str, commit: str = "", url: str = "") -> None:
        super().__init__(job_id, commit, url)
        self.job_id, self.commit, self.url = job_id, commit, url

    def __str__(self) -> str:
        return (
            f"job {self.job_id} keeps no checkpoint {self.commit} below {self.url}; choose one of those that are kept:"
            f" 'kelpie checkpoints list {self.job_id}' shows them"
        )


class IdempotencyConflict(JobError):
    """The idempotency key is taken by a job with another definition."""


class WaitTimeout(JobError, TimeoutError):
    """The job did not end in time."""


class LeaseLost(KelpieError):
    """This attempt does not own its job any more; whatever it does from now on has no effect."""


class LedgerUnavailable(KelpieError):
    """Redis cannot be reached, or answers with an error; the message says which and what to do."""


class LedgerRefused(LedgerUnavailable):
    """Redis answers with an error that waiting does not mend."""


class StorageError(KelpieError):
    """Something about one bucket or object."""

    def __init__(self, message: str, *, bucket: str, key: str = "") -> None:
        super().__init__(message)
        self.bucket, self.key = bucket, key

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_storage_error, (type(self), str(self), self.bucket, self.key)


def _rebuild_storage_error(kind: type[StorageError], message: str, bucket: str, key: str) -> StorageError:
    return kind(message, bucket=bucket, key=key)


class StorageSetupError(StorageError):
    """The user must mend it: the bucket or object does not exist, or access is denied."""


class StorageUnavailable(StorageError):
    """It may pass by itself: 5xx, time-out, DNS, connection refused. Never a failure of the job."""


class PrefixHeld(StorageSetupError):
    """Another job that is pending or running commits to this checkpoint prefix.

    Attributes:
        holder: That job.
    """

    def __init__(self, holder: str, bucket: str, prefix: str) -> None:
        super().__init__(
            f"job {holder} is pending or running and keeps its checkpoints below s3://{bucket}/{prefix}; "
            "wait for its end, cancel it, or give this job a checkpoint prefix of its own",
            bucket=bucket,
            key=prefix,
        )
        self.holder = holder

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.holder, self.bucket, self.key)


class LineMoved(StorageSetupError):
    """Another commit came to this checkpoint prefix since it was read; what builds on the older state is refused.

    Attributes:
        holder: The job that made it.
    """

    def __init__(self, holder: str, bucket: str, prefix: str) -> None:
        super().__init__(
            f"job {holder} stored a newer checkpoint below s3://{bucket}/{prefix} since this one was begun; "
            "go on from that one, and give each job a checkpoint prefix of its own",
            bucket=bucket,
            key=prefix,
        )
        self.holder = holder

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.holder, self.bucket, self.key)


class UnsafeKey(StorageSetupError):
    """An object key that would be written outside its ``local_path``."""


class DirectoryError(KelpieError):
    """A directory of this machine that cannot be filled, or sent; the message names it and says why."""


class SaladError(KelpieError):
    """SaladCloud's API did not do what it was asked to.

    Attributes:
        status: The HTTP status; 0 when there was no answer.
        detail: What it said, in one line; never a page of HTML.
    """

    def __init__(self, message: str, *, status: int = 0, detail: str = "") -> None:
        super().__init__(message)
        self.status, self.detail = status, detail

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_salad_error, (type(self), str(self), self.status, self.detail)


def _rebuild_salad_error(kind: type[SaladError], message: str, status: int, detail: str) -> SaladError:
    return kind(message, status=status, detail=detail)


class SaladUnavailable(SaladError):
    """It may pass by itself: 429, 5xx, a time-out, no connection, an answer that is no JSON."""


class SaladRefused(SaladError):
    """400: not possible in the state that the group is in; read it again before anything else."""


class SaladDenied(SaladError):
    """401 or 403: the key does not reach that far, or the organization's quota is used up."""


class SaladNotFound(SaladError):
    """404: no such organization, project, container group or instance."""


class ImdsError(KelpieError):
    """The metadata service of this node did not do what it was asked to."""


class ImdsAbsent(ImdsError):
    """There is no metadata service: this is no SaladCloud node."""


class CommandError(KelpieError):
    """The command cannot be started; ``reason`` is ``not_found``, ``not_executable`` or ``no_workdir``."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_command_error, (str(self), self.reason)


def _rebuild_command_error(message: str, reason: str) -> CommandError:
    return CommandError(message, reason=reason)
