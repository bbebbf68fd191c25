"""The Celery app: its configuration, its ledger, and what makes messages safe to send twice.

Nothing is read from the environment and no connection is opened before something is asked of the app. Limits: one
Redis database serves as broker, result backend and ledger.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from celery import Celery, current_task
from celery.utils import uuid
from kombu.utils.imports import symbol_by_name
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from kelpie_celery.canvas import JOB_TASK, Detacher
from kelpie_celery.errors import KelpieError
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.types import Timings
from kelpie_celery.messages import Capture, encode
from kelpie_celery.patience import until_the_ledger_answers
from kelpie_celery.redaction import Redactor
from kelpie_celery.running import RunningJobs
from kelpie_celery.settings import Settings, load_settings
from kelpie_celery.slots import slot_count

if TYPE_CHECKING:
    from kelpie_celery.runner import AttemptRunner

# A name, not an import: the library never imports a deployable, and a client never needs this one.
RUNNER = "kelpie_worker.runner:Runner"
CONTROL_TASKS = "kelpie_scaler.tasks"
BEAT_SCHEDULER = "kelpie_scaler.beat:Scheduler"
BACKEND = "kelpie_celery.backend:Backend"

BROKER_TRANSPORT_OPTIONS: dict[str, Any] = {
    # A half-open connection leaves a worker deaf for good without a time-out; BRPOP itself asks for 1 s at a time.
    "socket_timeout": 10,
    "socket_connect_timeout": 10,
    "socket_keepalive": True,
    "health_check_interval": 10,
    "priority_steps": list(keys.PRIORITIES),
    "sep": keys.PRIORITY_SEPARATOR,
}


def celery_config(settings: Settings) -> dict[str, Any]:
    """The app's configuration. The record, its lease and its attempt own a job's durability; a message is a hint."""
    url = _celery_url(settings.redis_url.get_secret_value())
    return {
        "broker_url": f"redis+{url}" if url.startswith("socket:") else url,
        "result_backend": f"{BACKEND}+{url}",
        "broker_transport_options": BROKER_TRANSPORT_OPTIONS,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "redis_socket_timeout": 10.0,
        "redis_socket_connect_timeout": 10.0,
        "redis_socket_keepalive": not _is_local(url),
        "redis_backend_health_check_interval": 10,
        # A chord counts its parts under the same expiry; its jobs may be days apart.
        "result_expires": 3 * settings.job_retention_s,
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "task_acks_late": False,
        "task_reject_on_worker_lost": False,
        "task_track_started": False,
        "task_send_sent_event": False,
        "worker_pool": "kelpie_celery.pool:TaskPool",
        # Twice the slots: while a job's outputs upload, the next one runs.
        "worker_concurrency": 2 * slot_count(settings.slots, os.environ),
        "worker_disable_prefetch": True,
        "worker_prefetch_multiplier": 1,
        "worker_send_task_events": True,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_hijack_root_logger": False,
        "imports": (CONTROL_TASKS,),
        "beat_scheduler": BEAT_SCHEDULER,
        "redbeat_key_prefix": "kelpie:beat:",
        # The default lock is five times the loop's interval; a second beat takes over within it.
        "redbeat_lock_timeout": 15,
        "beat_max_loop_interval": 3,
        "beat_schedule": {
            "kelpie-maintain": {
                "task": "kelpie.maintain",
                "schedule": settings.maintain_s,
                "options": {
                    "queue": keys.CONTROL_QUEUE,
                    "expires": 5 * settings.maintain_s,
                    "ignore_result": True,
                },
            }
        },
    }


def _is_local(url: str) -> bool:
    return url.startswith(("unix:", "socket:"))


def _celery_url(url: str) -> str:
    """redis-py's ``unix://`` as Celery spells it."""
    if not url.startswith("unix://"):
        return url
    parts = urlsplit(url)
    database = parse_qs(parts.query).get("db", ["0"])[0]
    return f"socket://{parts.netloc}{parts.path}?virtual_host={database}"


def ledger_timings(settings: Settings) -> Timings:
    """The ledger's durations from the settings."""
    return Timings(
        min_lease_s=settings.min_lease_s,
        outbox_lease_s=settings.outbox_lease_s,
        job_retention_s=settings.job_retention_s,
        ban_ttl_s=settings.ban_ttl_s,
        ban_yield_s=settings.ban_yield_s,
        poison_deaths=settings.poison_deaths,
        poison_window_s=settings.poison_window_s,
        tick_interval_s=settings.pulse_s,
        # A machine gives a sign of life every fifth pulse (kelpie_celery.pulse).
        machine_alive_s=max(5.0, 15 * settings.pulse_s),
    )


def connect(url: str) -> Redis:
    """A client of the ledger. Repeats are the caller's: it knows which calls may be made twice."""
    return Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=5,
        socket_connect_timeout=5,
        health_check_interval=10,
        # redis-py refuses the option for a Unix socket.
        **({} if _is_local(url) else {"socket_keepalive": True}),
        retry=Retry(NoBackoff(), 0),
    )


class KelpieApp(Celery):
    """A Celery app whose messages carry ids only, and whose follow-up messages go out once."""

    def __init__(self, *args: Any, settings: Settings | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = settings
        self.running = RunningJobs()
        self.redactor = Redactor()
        self.add_defaults(lambda: celery_config(self.settings))

    @cached_property
    def settings(self) -> Settings:
        """The settings, read once when they are first needed."""
        return self._settings or load_settings()

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger on this app's Redis."""
        return Ledger(connect(self.settings.redis_url.get_secret_value()), ledger_timings(self.settings))

    @cached_property
    def runner(self) -> AttemptRunner:
        """What runs attempts in this process; loaded by name in workers that serve a container group."""
        made: AttemptRunner = symbol_by_name(RUNNER)(self)
        return made

    def send_task(self, name: str, args: Any = None, kwargs: Any = None, **options: Any) -> Any:  # type: ignore[override]  # celery-types lists each option
        """Send a task; definitions inside its workflow stay in the ledger, and a follow-up of a job goes out once."""
        if isinstance(options.get("producer"), Capture):
            return super().send_task(name, args, kwargs, **options)
        if name == JOB_TASK and not isinstance(options.get("task_type"), self.tasks[JOB_TASK].__class__):
            return self.tasks[JOB_TASK].apply_async(args, kwargs, **options)
        refuse_jobs_in_bulk(name, args, kwargs)
        if not in_a_job():
            return super().send_task(name, args, kwargs, **self._detached(options))
        return until_the_ledger_answers(lambda: self._send_once(name, args, kwargs, options))

    def _detached(self, options: dict[str, Any]) -> dict[str, Any]:
        workflow = options.get("group_id") or options.get("task_id") or uuid()
        return Detacher(self.ledger, str(workflow)).options(options)

    def _send_once(self, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
        # A worker killed between this publish and its own bookkeeping publishes again, under the same id.
        options = self._detached(options)
        options["task_id"] = options.get("task_id") or uuid()
        options.pop("connection", None)
        capture = Capture()
        result = super().send_task(name, args, kwargs, **{**options, "producer": capture, "retry": False})
        envelope = capture.envelopes[0]
        # kombu's transport clamps as well; a list of another name would never be read.
        priority = max(0, min(9, int(envelope.properties.get("priority") or 0)))
        queue = envelope.queue + (f"{keys.PRIORITY_SEPARATOR}{priority}" if priority else "")
        task_id = options["task_id"]
        # As long as an outbox may wait for its replay.
        remember_s = self.settings.job_retention_s
        self.ledger.publish_once(task_id, queue, encode(envelope, priority=priority, tag=uuid()), remember_s)
        return result


def refuse_jobs_in_bulk(name: str, args: Any, kwargs: Any) -> None:
    """Refuse ``map``, ``starmap`` and ``chunks`` of jobs: one message would carry all their definitions."""
    if name in ("celery.map", "celery.starmap", "celery.chunks"):
        task = (kwargs or {}).get("task") or next(iter(args or ()), None)
        if (task.get("task") if isinstance(task, Mapping) else task) == JOB_TASK:
            raise KelpieError("jobs cannot be mapped or chunked; use a group, or Kelpie().submit_many(definitions)")


def in_a_job() -> bool:
    """Whether this thread is inside the Celery task of a job, its body or its bookkeeping."""
    task = current_task
    if not task:
        return False
    return task.name == JOB_TASK and bool(task.request.id) and not task.request.called_directly
