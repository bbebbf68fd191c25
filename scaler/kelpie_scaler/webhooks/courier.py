"""Sends the webhooks that are due: takes them from the ledger, tries them side by side, records how it went.

What is recorded is the ledger's: a control worker that is killed leaves a lease that runs out, and the next one tries
again. So a receiver may hear of a status twice (after a kill between its answer and our record), with one
``webhook-id``; recorded as sent it is once. Limits: a round takes `ROUND_S` and the tries under way; a host is sent at
most `PER_HOST` at a time, so that a slow one does not keep the others waiting. Statuses of one job may arrive in any
order.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from kelpie_celery.clock import Clock, SystemClock
from kelpie_celery.errors import LedgerRefused, LedgerUnavailable
from kelpie_celery.ledger.webhooks import Webhook
from kelpie_celery.patience import until_the_ledger_answers
from kelpie_scaler.webhooks.message import body, headers
from kelpie_scaler.webhooks.sending import Answer, post, target_of

if TYPE_CHECKING:
    from kelpie_celery.ledger.ledger import Ledger
    from kelpie_celery.settings import Settings

log = logging.getLogger(__name__)

THREADS = 8
PER_HOST = 2
ROUND_S = 20.0
BUSY_S = 1.0
"""A webhook whose host is busy is looked at again after this."""
LOOK_S = 1.0
"""How long a round waits for the tries under way before it looks for more that are due."""

_RECORD_S = 10.0  # what recording may take while Redis is slow; part of the lease


class Courier:
    """Sends webhooks; one for a process, whose rounds never overlap."""

    def __init__(
        self, ledger: Ledger, settings: Settings, clock: Clock | None = None, send: Sender | None = None
    ) -> None:
        self._ledger, self._settings, self._clock = ledger, settings, clock or SystemClock()
        self._send = send or self._post
        self._round = threading.Lock()
        self._in_flight: Counter[str] = Counter()

    def round(self) -> int:
        """Send what is due in any container group, for at most `ROUND_S`; the number of tries.

        Raises:
            LedgerUnavailable: Redis is away.
        """
        if not self._round.acquire(blocking=False):
            return 0
        try:
            return self._send_all()
        finally:
            self._round.release()

    def _send_all(self) -> int:
        began, tries = self._clock.boottime(), 0
        # No try outlives its round, whose places may have been left taken when Redis went away in the midst of it.
        self._in_flight.clear()
        with ThreadPoolExecutor(THREADS, thread_name_prefix="kelpie-webhook") as threads:
            under_way: set[Future[str]] = set()
            while self._clock.boottime() - began < ROUND_S:
                started = {
                    threads.submit(self._deliver, hook, host) for hook, host in self._take(THREADS - len(under_way))
                }
                tries, under_way = tries + len(started), under_way | started
                if not under_way:
                    break
                done, under_way = wait(under_way, timeout=LOOK_S, return_when=FIRST_COMPLETED)
                self._in_flight.subtract(future.result() for future in done)
            done, _ = wait(under_way)
            self._in_flight.subtract(future.result() for future in done)
        return tries

    def _take(self, limit: int) -> list[tuple[Webhook, str]]:
        """What may be sent now, each with its host, whose place is taken."""
        taken: list[tuple[Webhook, str]] = []
        for group in self._ledger.groups() if limit > 0 else ():
            try:
                found = self._ledger.take_webhooks(group, limit - len(taken), self._lease_s)
            except LedgerRefused as error:
                # A group's workers may write its keys: what they spoil must not stop the others'.
                log.warning(
                    "the webhooks of a group cannot be read",
                    extra={"action": "webhooks_refused", "container_group": group, "error": str(error)},
                )
                continue
            taken += [(hook, host) for hook in found if (host := self._place(hook)) is not None]
            if len(taken) >= limit:
                break
        return taken

    def _place(self, hook: Webhook) -> str | None:
        target = target_of(hook.url)
        host = target.host if target else ""
        if self._in_flight[host] >= PER_HOST:
            self._give_back(hook)
            return None
        self._in_flight[host] += 1
        return host

    def _give_back(self, hook: Webhook) -> None:
        try:
            self._ledger.settle_webhook(hook, "unsent", delay_s=BUSY_S)
        except LedgerUnavailable as error:
            # Those that were taken with it are sent all the same; this one is when its lease is over.
            log.warning(
                "a webhook was not given back; it is tried again",
                extra={"action": "webhook_unrecorded", "job_id": hook.job_id, "error": str(error)},
            )

    @property
    def _lease_s(self) -> float:
        # Three addresses are tried at most, each within the time-out.
        return 3 * self._settings.webhook_timeout_s + _RECORD_S

    def _deliver(self, hook: Webhook, host: str) -> str:
        """Send one and record it; its host, whose place is free again."""
        try:
            answer = self._send(hook)
        except Exception as error:
            log.exception("sending a webhook failed", extra={"action": "webhook_fault", "job_id": hook.job_id})
            answer = Answer(error=f"unexpected {type(error).__name__}; see the control worker's log")
        began = self._clock.boottime()
        try:
            state = until_the_ledger_answers(
                lambda: self._record(hook, answer), give_up=lambda: self._clock.boottime() - began > _RECORD_S
            )
        except LedgerUnavailable as error:
            log.warning(
                "a webhook was not recorded; it is tried again",
                extra={"action": "webhook_unrecorded", "job_id": hook.job_id, "error": str(error)},
            )
        else:
            self._say(hook, answer, state)
        return host

    def _post(self, hook: Webhook) -> Answer:
        settings, content = self._settings, body(hook)
        signed = headers(hook, content, settings.webhook_secret, self._clock.now())
        return post(
            hook.url, content, signed, timeout_s=settings.webhook_timeout_s,
            allow_private=settings.webhook_allow_private,
        )  # fmt: skip

    def _record(self, hook: Webhook, answer: Answer) -> str:
        if answer.sent:
            return self._ledger.settle_webhook(hook, "sent", code=answer.code)
        last = answer.final or hook.told.tries >= self._settings.webhook_tries
        pause_s = max(self.pause_s(hook.told.tries), answer.retry_after_s)
        what = "dead" if last else "again"
        return self._ledger.settle_webhook(hook, what, delay_s=pause_s, code=answer.code, error=answer.error)

    def pause_s(self, tries: int) -> float:
        """The pause after so many tries, in seconds: it doubles up to a bound, and half of it is up to chance."""
        longest_s, base_s = self._settings.webhook_retry_max_s, self._settings.webhook_retry_base_s
        full_s = min(longest_s, base_s * 2.0 ** min(tries - 1, 64))
        return full_s * (0.5 + 0.5 * random.random())  # noqa: S311 -- jitter, not a secret

    def _say(self, hook: Webhook, answer: Answer, state: str) -> None:
        extra = {
            "job_id": hook.job_id, "container_group": hook.group, "status": hook.status.value,
            "tries": hook.told.tries, "code": answer.code,
        }  # fmt: skip
        if answer.sent:
            log.info("webhook sent", extra={"action": "webhook_sent", **extra})
        elif state == "dead":
            log.warning(
                "webhook given up; 'kelpie webhooks retry' sends it again",
                extra={"action": "webhook_dead", "error": answer.error, **extra},
            )
        else:
            log.info("webhook not taken", extra={"action": "webhook_failed", "error": answer.error, **extra})


Sender = Callable[[Webhook], Answer]
