"""The ledger's last lines of each job's output.

They ride along with heartbeats and with the end of an attempt (``lua/_output.lua``). Limits: at most 200 lines and
16 KiB a job, of one attempt: the last one that wrote anything. Of a job that completed 50 lines stay.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kelpie_celery.ledger import keys
from kelpie_celery.ledger.calls import Calls, mapped_errors, no_such_job
from kelpie_celery.ledger.scripts import text
from kelpie_celery.ledger.types import NewOutput, encodable
from kelpie_celery.lifecycle import Phase, Status

_LOOKED_AT = ("status", "phase", "attempt", "machine", "output")


@dataclass(frozen=True)
class OutputNow:
    """A job's last lines of output at one moment.

    Attributes:
        status: Of the job.
        phase: Of the job, while it runs.
        attempt: Its last one, which need not be that of the lines; 0 before the first.
        machine: Where that runs or ran.
        of_attempt: Which attempt wrote the lines; 0 when none ever wrote any.
        last: How many lines that attempt had written; the last one of ``lines`` has this number.
        lines: Oldest first.
    """

    status: Status
    phase: Phase | None = None
    attempt: int = 0
    machine: str = ""
    of_attempt: int = 0
    last: int = 0
    lines: tuple[str, ...] = field(default=(), repr=False)

    @property
    def first(self) -> int:
        """The number of the first of the lines."""
        return self.last - len(self.lines) + 1


class Output(Calls):
    """Reads it."""

    def output(self, job_id: str) -> OutputNow:
        """The last lines of a job.

        Raises:
            JobNotFound: No record has this id.
        """
        with mapped_errors(f"read the output of job {job_id}"):
            found = self.redis.get(keys.where(job_id))
            if not found:
                raise no_such_job(job_id)
            group = text(found)
            with self.redis.pipeline(transaction=True) as pipe:
                pipe.hmget(keys.job(group, job_id), _LOOKED_AT)
                pipe.lrange(keys.output(group, job_id), 0, -1)
                row, lines = pipe.execute()
        status, phase, attempt, machine, mark = ("" if value is None else text(value) for value in row)
        if status not in set(Status):
            raise no_such_job(job_id)  # a later step of a workflow, which is no job yet
        of_attempt, _, last = mark.partition(":")
        running = status == Status.RUNNING
        return OutputNow(
            Status(status), Phase(phase) if running and phase else None, int(attempt or 0), machine,
            int(of_attempt or 0), int(last or 0), tuple(map(text, lines)),
        )  # fmt: skip


def output_args(output: NewOutput | None) -> list[Any]:
    """What ``lua/_output.lua`` takes."""
    return [output.kept, output.last, *map(encodable, output.lines)] if output else []
