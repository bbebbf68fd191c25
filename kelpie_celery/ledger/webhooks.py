"""The ledger's webhooks: which statuses of which jobs a URL is still to be told of.

The transition itself notes each (job, status), once; whoever takes it from here sends it. Limits: sending is
elsewhere (``kelpie_scaler.webhooks``); an entry goes with its job's record.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from kelpie_celery.errors import WebhookNotFound
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.calls import Calls, mapped_errors
from kelpie_celery.ledger.scripts import text
from kelpie_celery.lifecycle import Status

State = Literal["waiting", "sent", "dead", "dropped"]
TOLD = (Status.RUNNING, Status.COMPLETED, Status.FAILED, Status.CANCELED)
"""The statuses that a webhook tells of."""

# What a datetime can hold: a group's workers may write anything here, and a listing must not break by it.
Moment = Annotated[float, Field(ge=0, le=253_402_300_799, allow_inf_nan=False)]
_FIELDS = ("webhook", *(f"told:{status}" for status in TOLD))
_MOMENT = TypeAdapter[float](Moment)
_READ_PAGE = 200


class Told(BaseModel):
    """What the ledger keeps of one status that is told.

    Attributes:
        at: When the job got the status, in epoch seconds.
        attempt: The job's attempt then; 0 when there was none.
        reason: Why, in a word of ``lifecycle.Reason``; empty where there is nothing to say.
        tries: How often it was tried since it was noted, or since somebody asked for a retry.
        code: HTTP status of the last answer.
        error: What went wrong at the last try.
        tried: When that was, in epoch seconds.
    """

    model_config = ConfigDict(frozen=True)

    state: State
    at: Moment
    attempt: int = 0
    machine: str | None = None
    reason: str = Field("", max_length=64)
    tries: int = Field(0, ge=0)
    code: int | None = None
    error: str = ""
    tried: Moment | None = None


@dataclass(frozen=True)
class Webhook:
    """One status of one job, with the URL that is told of it; ``due`` is when it is tried next, in epoch seconds."""

    job_id: str
    group: str
    status: Status
    url: str = field(repr=False)
    told: Told
    due: float | None = None


class Webhooks(Calls):
    """Taking webhooks that are due, recording how it went, and what people may ask and order."""

    def take_webhooks(self, group: str, limit: int, lease_s: float) -> list[Webhook]:
        """Take webhooks that are due; nobody else gets them for ``lease_s`` seconds."""
        rows = self._call("take_webhooks", f"give the webhooks of {group}", group, limit, lease_s)
        found = (_webhook(group, *map(text, row)) for row in rows)
        return [webhook for webhook in found if webhook is not None]

    def settle_webhook(
        self, hook: Webhook, what: str, *, delay_s: float = 0.0, code: int | None = None, error: str = ""
    ) -> str:
        """Record how it went.

        Args:
            hook: As it was taken.
            what: ``sent``, ``again`` (after ``delay_s``), ``dead``, or ``unsent`` (it was not tried).
            delay_s: Before the next try, in seconds.
            code: HTTP status of the answer.
            error: What went wrong, in words that hold no secret.

        Returns:
            Its state now; empty when the record is gone.
        """
        args = (hook.group, hook.job_id, hook.status, hook.told.tries, what, delay_s, code or "", error)
        return text(self._call("settle_webhook", f"record a webhook of job {hook.job_id}", *args))

    def steer_webhook(self, job_id: str, status: Status, order: Literal["retry", "drop"]) -> str:
        """Have one tried again at once, or dropped; one that was sent stays so.

        Returns:
            Its state before.

        Raises:
            WebhookNotFound: The job has no webhook for this status.
        """
        before = text(self._call("steer_webhook", f"{order} a webhook of job {job_id}", job_id, status, order))
        if not before:
            raise WebhookNotFound(
                f"job {job_id!r} has no webhook for {status.value}: its definition names none, or it was never "
                f"{status.value}; 'kelpie webhooks list {job_id}' shows those that there are"
            )
        return before

    def webhook_ids(self, group: str, *, dead: bool, limit: int) -> list[str]:
        """Ids of the jobs of a group with webhooks that are waiting, or dead; those due, or dead, first come first."""
        with mapped_errors(f"list the webhooks of {group}"):
            rows = self.redis.zrange(keys.index(group, "webhooks_dead" if dead else "webhooks"), 0, limit - 1)
        return list(dict.fromkeys(text(row).rpartition(":")[0] for row in rows))

    def webhooks_of(self, job_ids: list[str]) -> list[Webhook]:
        """Every webhook of these jobs, sent ones too, by job and then in the order in which statuses follow."""
        found: list[Webhook] = []
        for at in range(0, len(job_ids), _READ_PAGE):
            found += self._read_webhooks(job_ids[at : at + _READ_PAGE])
        return found

    def _read_webhooks(self, job_ids: list[str]) -> list[Webhook]:
        with mapped_errors(f"read the webhooks of {len(job_ids)} jobs"):
            groups = self.redis.mget([keys.where(job_id) for job_id in job_ids])
            known = [(job_id, text(group)) for job_id, group in zip(job_ids, groups, strict=True) if group]
            with self.redis.pipeline(transaction=True) as pipe:
                for job_id, group in known:
                    pipe.hmget(keys.job(group, job_id), _FIELDS)
                    for status in TOLD:
                        pipe.zscore(keys.index(group, "webhooks"), f"{job_id}:{status}")
                rows = iter(pipe.execute())
        found = []
        for job_id, group in known:
            url, *told = next(rows)
            due = [next(rows) for _ in TOLD]
            for status, entry, when in zip(TOLD, told, due, strict=True):
                if url and entry and (hook := _webhook(group, job_id, status, text(url), text(entry), when)):
                    found.append(hook)
        return found


def _webhook(group: str, job_id: str, status: str, url: str, entry: str, due: Any = None) -> Webhook | None:
    """None for what no operation of ours has written: a group's workers may write its keys."""
    try:
        when = None if due is None else _MOMENT.validate_python(due)
        return Webhook(job_id, group, Status(status), url, Told.model_validate_json(entry), when)
    except (ValidationError, ValueError):
        return None
