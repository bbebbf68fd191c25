"""What each reason of an end means: which kind of end it is, whether it counts, and what a user does about it.

``docs/lifecycle.md`` shows this table. Limits: one kind of end for each reason, but for failures that a retry rule of
the definition sets free (`kelpie_celery.retry_rules`); whoever ends an attempt holds to it, and tests compare the two.
"""

from __future__ import annotations

from dataclasses import dataclass

from kelpie_celery.lifecycle import Outcome, Reason


@dataclass(frozen=True)
class Meaning:
    """What there is to know of a reason.

    Attributes:
        outcome: The kind of end.
        what: What happened.
        advice: What a user does about it; empty where there is nothing to do.
        final: The job ends with it, whatever is left of ``max_failures``.
        ruled: Retry rules can be about it.
    """

    outcome: Outcome
    what: str
    advice: str = ""
    final: bool = False
    ruled: bool = False

    @property
    def counts(self) -> bool:
        """Whether it counts to ``max_failures``."""
        return self.outcome is Outcome.FAILURE and not self.final


def _failure(what: str, advice: str) -> Meaning:
    return Meaning(Outcome.FAILURE, what, advice, ruled=True)


def _interruption(what: str, advice: str = "nothing: the job goes on elsewhere from its last checkpoint") -> Meaning:
    return Meaning(Outcome.INTERRUPTION, what, advice)


REASONS: dict[Reason, Meaning] = {
    Reason.DONE: Meaning(Outcome.COMPLETED, "The command exited with 0, and all its outputs are stored.", final=True),
    Reason.ADOPTED: Meaning(
        Outcome.COMPLETED, "An earlier attempt had finished all but its report, which was made up for.", final=True
    ),
    Reason.EXIT_CODE: _failure("The command exited with another code than 0 and 75.", "read `output_tail` and the log"),
    Reason.SIGNAL: _failure(
        "A signal that kelpie did not send ended the command; a crash is `SIGSEGV`, `SIGABRT` or `SIGBUS`.",
        "look for the crash; after `SIGKILL`, for who killed it",
    ),
    Reason.OOM: _failure(
        "The kernel killed a process of the command for want of memory.",
        "give the container group more memory (the message tells the limit), or let the job use less",
    ),
    Reason.DISK_FULL: _failure(
        "A disk was full: while inputs were brought down, while the command wrote, or while its files were copied.",
        "larger disks for the container group, or fewer files; the message names path and free bytes",
    ),
    Reason.TIMEOUT: _failure("The attempt ran longer than `timeout`.", "raise it, or split the job"),
    Reason.STALLED: _failure(
        "No output line, report or checkpoint for `stall_timeout`.", "look for a deadlock; let the job say something"
    ),
    Reason.SETUP: _failure(
        "It could not begin or finish as it is set up: an input, bucket or permission is missing, a command cannot be"
        " run, or its working directory is not there.",
        "mend what the message names",
    ),
    Reason.WORKER_ERROR: _failure("An error of kelpie's own.", "report it with the worker's log"),
    Reason.NO_PROGRESS: Meaning(
        Outcome.FAILURE,
        "The command exited with 75 (run me again) and had stored no new checkpoint.",
        "store one before exiting with 75",
    ),
    Reason.TOTAL_TIMEOUT: Meaning(
        Outcome.FAILURE,
        "All attempts together ran longer than `total_timeout`.",
        "raise it, or split the job",
        final=True,
    ),
    Reason.POISONED: Meaning(
        Outcome.INTERRUPTION,
        "The last of several silent deaths in a row (`KELPIE_POISON_DEATHS`), each soon after the command's start and"
        " without a new checkpoint, on several machines where there are several. The job is `failed`.",
        "look for what the command does to its machine, such as all memory or a GPU that hangs",
        final=True,
    ),
    Reason.LEASE_EXPIRED: _interruption("The worker was not heard of any more: a silent death."),
    Reason.WORKER_SHUTDOWN: _interruption("The worker was told to end, and handed the job back."),
    Reason.PREEMPTED: _interruption("The machine ended the command together with its worker, or just before it."),
    Reason.STORAGE_UNAVAILABLE: _interruption(
        "The storage could not be reached, or answered with errors, for longer than it is waited for.",
        "nothing, if it comes back; the message names bucket and key",
    ),
    Reason.BROKER_UNAVAILABLE: _interruption(
        "Redis did not answer for `KELPIE_BLIND_S`, so that the attempt gave up.", "nothing, if it comes back"
    ),
    Reason.CHECKPOINTED: Meaning(Outcome.CONTINUE, "The command exited with 75 after a new checkpoint: it runs again."),
    Reason.ROLLED_BACK: Meaning(Outcome.CONTINUE, "The job was rolled back to an older checkpoint: it runs again."),
    Reason.CANCELED: Meaning(Outcome.CANCELED, "A user canceled the job.", final=True),
}
"""Every reason, in the order in which the documentation tells of them."""

RULED = tuple(reason.value for reason, meaning in REASONS.items() if meaning.ruled)
"""What ``on_reason`` of a retry rule may name."""
