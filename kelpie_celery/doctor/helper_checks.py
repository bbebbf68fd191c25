"""Whether somebody works: control worker, beat, and the workers of a container group.

A job starts, ends and is retried without control worker and beat; scaling and webhooks need them.

Limits: what the ledger and Celery's own ping tell within two seconds.
"""

from __future__ import annotations

from typing import Any

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from kelpie_celery._calls import Calls
from kelpie_celery.celery import create_app
from kelpie_celery.clock import Clock
from kelpie_celery.findings import Finding, info, ok, warning
from kelpie_celery.ledger import keys
from kelpie_celery.settings import Settings

PING_S = 2.0
_BEAT_LOCK = ":lock"


def check_helpers(settings: Settings, group: str | None, clock: Clock) -> list[Finding]:
    """Who is there.

    Raises:
        LedgerUnavailable: Redis cannot be asked.
    """
    app = create_app(settings)
    try:
        calls = Calls(settings.redis_url.get_secret_value(), clock, 0.0)
        now = calls.make("ask Redis for the time", app.ledger.server_time)
        found = [_control(app), _beat(app)]
        if group is None:
            return [*found, info("workers", "not looked at: no container group was named", "name one by --group")]
        return [*found, *_workers(app, group, now)]
    finally:
        app.close()
        app.ledger.redis.close()


def _control(app: Any) -> Finding:
    """Whether a worker consumes the control queue."""
    try:
        answers = app.control.inspect(timeout=PING_S).active_queues() or {}
    except (OSError, RedisError, OperationalError):
        answers = None
    if answers is None:
        return info("control worker", "not known: this user may not ask", "ask as the user of the control worker")
    serving = [name for name, queues in answers.items() if any(one.get("name") == keys.CONTROL_QUEUE for one in queues)]
    if serving:
        return ok("control worker", f"{len(serving)} alive: {', '.join(sorted(serving)[:3])}", count=len(serving))
    mend = "start one: celery -A kelpie_celery worker -Q kelpie.control -n control@%h (or the control image)"
    return warning("control worker", "none answers: jobs run, but nothing is scaled and no webhook is sent", mend)


def _beat(app: Any) -> Finding:
    """Whether a beat holds its lock."""
    try:
        left_s: Any = app.ledger.redis.pttl(app.conf.redbeat_key_prefix + _BEAT_LOCK)
    except RedisError:
        return info("beat", "not known: this user may not ask", "ask as the user of the control worker")
    if left_s > 0:
        return ok("beat", "alive")
    mend = "start one: celery -A kelpie_celery beat (it is in the control image)"
    return warning("beat", "none holds its lock: nothing is scaled, and maintenance is left to the workers", mend)


def _workers(app: Any, group: str, now: float) -> list[Finding]:
    ledger = app.ledger
    heard = [one for one in ledger.worker_entries(group) if now - one.heard_at <= ledger.timings.machine_alive_s]
    counts = ledger.counts(group)
    waiting = counts.pending - counts.delayed
    if heard:
        busy = sum(1 for one in heard if one.jobs)
        text = f"{len(heard)} of group {group} are heard of, {busy} with a job; {waiting} jobs wait"
        return [ok("workers", text, workers=len(heard), busy=busy, pending=waiting)]
    if waiting:
        mend = "start the container group, or see its containers' logs; kelpie scaler why GROUP tells of its scaling"
        return [
            warning("workers", f"none of group {group} is heard of, and {waiting} jobs wait", mend, pending=waiting)
        ]
    return [info("workers", f"none of group {group} is heard of, and no job waits", workers=0)]
