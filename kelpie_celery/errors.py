"""Every error that kelpie-celery raises, in one tree.

KelpieError
+-- DefinitionError          a job definition that is refused (field, value, rule)
+-- SettingsError            a setting that is missing or wrong
+-- JobError
|   +-- JobFailed            the job ended ``failed`` (raised by ``AsyncResult.get`` too)
|   +-- JobCanceled          the job ended ``canceled``
|   +-- JobInterrupted       an attempt ended through no fault of the job; it goes on elsewhere
|   +-- JobNotFound          no record has this id
|   +-- JobExists            the id is taken: the same signature or canvas was applied twice
|   +-- IdempotencyConflict  the key is taken by another definition
|   +-- WaitTimeout          the job did not end within the time given to ``wait``
+-- LeaseLost                this attempt may not act for its job any more
+-- LedgerUnavailable        Redis cannot be reached or answers with an error
+-- StorageError             (bucket, key)
|   +-- StorageSetupError    a user must mend it: no such bucket or object, access denied
|   |   +-- UnsafeKey        an object key that would be written outside its directory
|   +-- StorageUnavailable   it may pass: 5xx, time-outs, DNS, connection refused
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


class IdempotencyConflict(JobError):
    """The idempotency key is taken by a job with another definition."""


class WaitTimeout(JobError, TimeoutError):
    """The job did not end in time."""


class LeaseLost(KelpieError):
    """This attempt does not own its job any more; whatever it does from now on has no effect."""


class LedgerUnavailable(KelpieError):
    """Redis cannot be reached, or answers with an error; the message says which and what to do."""


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


class UnsafeKey(StorageSetupError):
    """An object key that would be written outside its ``local_path``."""


class CommandError(KelpieError):
    """The command cannot be started; ``reason`` is ``not_found``, ``not_executable`` or ``no_workdir``."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_command_error, (str(self), self.reason)


def _rebuild_command_error(message: str, reason: str) -> CommandError:
    return CommandError(message, reason=reason)
