"""What a trial saw, for judging: plain values, no clock, no process.

Limits: times are seconds since the epoch by this machine's clock, on which the private Redis runs too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kelpie_celery.checkpoints.kept import Checkpoint
from kelpie_worker.preflight.listening import Heard


@dataclass(frozen=True)
class Ended:
    """How an attempt ended, by its record."""

    at: float
    outcome: str
    reason: str
    message: str
    exit_code: int | None = None
    signal: int | None = None
    tail: str = ""


@dataclass
class AttemptSeen:
    """One attempt: ``granted`` is when it was claimed, ``launched`` when its command began, ``ended`` how it ended."""

    n: int
    granted: float
    launched: float
    heard: Heard = field(default_factory=Heard)
    over: float | None = None
    ended: Ended | None = None


@dataclass(frozen=True)
class Asked:
    """What a job says of its checkpoints, and what was asked of the trial.

    Attributes:
        directories: Of its checkpoint, as the definition calls them; none: it has no checkpoint.
        commit: ``quiet``, ``report`` or ``marker:<glob>``.
        quiet_s: How long a directory has to be quiet.
        grace_s: Between SIGTERM and SIGKILL.
        timeout_s: How long a first checkpoint, and the end, might take.
        has_outputs: It stores outputs.
        reads_tell: Only the command can have read what was read; else reads prove nothing.
    """

    directories: Sequence[str]
    commit: str
    quiet_s: float
    grace_s: float
    timeout_s: float
    has_outputs: bool
    reads_tell: bool = True


@dataclass
class Seen:
    """The whole trial.

    Attributes:
        checkpoints: All that were seen, in the order in which they were made.
        killed: When the first machine was killed; None when it never came to that.
        given_up: The rest was not tried, as the job does not resume.
        termed: When the second worker got SIGTERM.
        status: The job's status at the end; ``message`` tells of its last failure.
        outputs: Digests of the outputs by key, once it has completed.
        reference: The same of the uninterrupted run, and how long that took.
        reference_failed: Why there is none, where one was asked for.
        held: Files that were open for writing before the first checkpoint: since when without a break, until when.
        elsewhere: Files that the first attempt wrote in its working directory, and that are in no checkpoint.
        waited_s: How long it all took.
    """

    attempts: list[AttemptSeen] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    killed: float | None = None
    given_up: bool = False
    termed: float | None = None
    status: str = ""
    message: str = ""
    outputs: Mapping[str, str] | None = None
    reference: Mapping[str, str] | None = None
    reference_s: float | None = None
    reference_failed: str = ""
    held: dict[str, tuple[float, float]] = field(default_factory=dict)
    elsewhere: list[str] = field(default_factory=list)
    waited_s: float = 0.0

    def attempt(self, n: int) -> AttemptSeen | None:
        """One of them."""
        return next((one for one in self.attempts if one.n == n), None)

    def commits_of(self, n: int) -> list[Checkpoint]:
        """The checkpoints of one attempt, in order."""
        return [one for one in self.checkpoints if one.attempt == n]
