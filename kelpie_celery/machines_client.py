"""What a client may ask about the machines of its container groups, and tell the ledger of them.

Limits: machines that were heard of in the last week.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from kelpie_celery._calls import Calls
from kelpie_celery.job import Job, JobId
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.machines import MachineEntry
from kelpie_celery.ledger.types import encodable


class MachinesClient:
    """The part of a client that is about machines; see `kelpie_celery.client.Kelpie`."""

    _calls: Calls
    _ledger: Ledger

    def machines(self, group: str) -> list[MachineEntry]:
        """The machines of a container group, the one that was heard of last first."""
        known = encodable(group)
        return self._calls.make(f"list the machines of {known}", lambda: self._ledger.machines(known))

    def unban(self, machine: str, *, group: str | None = None, job: JobId | None = None) -> int:
        """Let a machine have jobs again that failed on it; how many bans were lifted.

        Args:
            machine: The machine. Without a job its streak of failed jobs begins anew as well.
            group: Only in this container group; in all of them by default.
            job: Only this job.
        """
        known, job_id = encodable(machine), job.id if isinstance(job, Job) else encodable(job or "")
        doing = f"let {known} have jobs again"
        groups = self._calls.make(doing, lambda: self._groups_of(group, job_id))
        return sum(self._calls.make(doing, partial(self._ledger.unban, one, known, job_id)) for one in groups)

    def _groups_of(self, group: str | None, job_id: str) -> Sequence[str]:
        if group is not None:
            return [encodable(group)]
        if job_id:
            return [self._ledger.get(job_id).container_group_id]
        return self._ledger.groups()
