"""What a client may do with webhooks: look at them, have one tried again, drop one.

Limits: they are sent elsewhere, by a task on the control worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from kelpie_celery._calls import Calls
from kelpie_celery.errors import WebhookSent
from kelpie_celery.job import JobId
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.types import encodable
from kelpie_celery.ledger.webhooks import Webhook
from kelpie_celery.lifecycle import Status

OPEN = ("waiting", "dead")
"""The states in which a webhook has not been sent, and may be."""


class WebhookClient:
    """The part of a client that is about webhooks; see `kelpie_celery.client.Kelpie`."""

    _calls: Calls
    _ledger: Ledger

    def webhooks(self, jobs: Iterable[JobId]) -> list[Webhook]:
        """Every webhook of these jobs, in the order of the jobs; those that were sent too."""
        ids = [encodable(job if isinstance(job, str) else job.id) for job in jobs]
        return self._calls.make("read the webhooks", lambda: self._ledger.webhooks_of(ids))

    def open_webhooks(self, group: str | None = None, *, dead_only: bool = False, limit: int = 100) -> list[Webhook]:
        """Webhooks that are waiting to be sent, or dead: given up after their last try.

        Args:
            group: A container group; all of them by default.
            dead_only: Without those that are waiting.
            limit: At most this many.
        """
        states = ("dead",) if dead_only else OPEN
        return self._calls.make("list the webhooks", lambda: self._open(group, states, limit))

    def _open(self, group: str | None, states: Sequence[str], limit: int) -> list[Webhook]:
        groups = [encodable(group)] if group is not None else self._ledger.groups()
        found: list[Webhook] = []
        for name in groups:
            lists = [self._ledger.webhook_ids(name, dead=state == "dead", limit=limit) for state in states]
            ids = list(dict.fromkeys(job_id for one in lists for job_id in one))
            found += [hook for hook in self._ledger.webhooks_of(ids) if hook.told.state in states]
            if len(found) >= limit:
                break
        return found[:limit]

    def retry_webhook(self, job: JobId, status: Status | str) -> None:
        """Have a webhook tried at once, with all its tries, also one that was dropped.

        Raises:
            WebhookNotFound: The job has none for this status.
            WebhookSent: It was sent already.
        """
        self._steer(job, status, "retry")

    def drop_webhook(self, job: JobId, status: Status | str) -> None:
        """Have a webhook not sent any more.

        Raises:
            WebhookNotFound: The job has none for this status.
            WebhookSent: It was sent already.
        """
        self._steer(job, status, "drop")

    def _steer(self, job: JobId, status: Status | str, order: Literal["retry", "drop"]) -> None:
        job_id, wanted = encodable(job if isinstance(job, str) else job.id), Status(status)
        doing = f"{order} the webhook of job {job_id}"
        if self._calls.make(doing, lambda: self._ledger.steer_webhook(job_id, wanted, order)) == "sent":
            raise WebhookSent(f"the webhook of job {job_id} for {wanted.value} was sent: there is nothing to {order}")
