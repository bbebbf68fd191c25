"""From what was seen of a job to sentences: why it waits, or is not further, or how it ended.

The deciding sentence comes first; what is not known is said to be unknown, and a fact that may be old has its age.
Limits: English; `code` is for programs and stays, the words may change between versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kelpie_celery.cli._text import counted
from kelpie_celery.lifecycle import Status
from kelpie_celery.why.ended import ended
from kelpie_celery.why.facts import JobSeen
from kelpie_celery.why.pending import pending
from kelpie_celery.why.running import running
from kelpie_celery.why.words import Because, after


@dataclass(frozen=True)
class Explanation:
    """Why a job is where it is.

    Attributes:
        at: When it was looked at, seconds since the epoch by Redis's clock.
        because: Sentences, the deciding one first; never empty.
        seen: What they rest on.
    """

    job_id: str
    status: Status
    at: float
    because: tuple[Because, ...]
    seen: JobSeen

    def __str__(self) -> str:
        """All sentences, one a line."""
        return "\n".join(one.text for one in self.because)


def explain(seen: JobSeen) -> Explanation:
    """The sentences that follow from what was seen."""
    status = seen.record.status
    told: dict[Status, Callable[[JobSeen], Iterator[Because]]] = {
        Status.DRAFT: _draft, Status.PENDING: pending, Status.RUNNING: running,
    }  # fmt: skip
    because = tuple(told.get(status, ended)(seen))
    return Explanation(seen.record.id, status, seen.now, because, seen)


def _draft(seen: JobSeen) -> Iterator[Because]:
    step = seen.step
    if step is None or not step.waits_for:
        yield Because(
            "step_unreachable",
            "It is a later step of a workflow, and no job that is pending or running leads to it: an earlier step "
            "failed or was canceled, or Celery is just being told of an earlier step's end.",
        )
        if step and step.forgotten_in_s is not None:
            yield Because("step_forgotten", f"Should nothing lead to it, it is forgotten {after(step.forgotten_in_s)}.")
    else:
        verb = "has" if step.waits_for == 1 else "have"
        yield Because(
            "parents",
            f"It is a later step of a workflow, and {counted(step.waits_for, 'job')} before it {verb} not ended yet.",
        )
    if step and step.first and step.first_status:
        yield Because("first_step", f"Its workflow began with job {step.first}, which is {step.first_status.value}.")
