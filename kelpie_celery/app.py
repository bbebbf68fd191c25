"""The Celery app: its configuration, its ledger, and what makes messages safe to send twice.

Nothing is read from the environment and no connection is opened before something is asked of the app. Limits: one
Redis database serves as broker, result backend and ledger.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from celery import Celery, current_task
from celery.utils import uuid
from kombu.utils.imports import symbol_by_name
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from kelpie_celery._transport import tls_options, without_tls_options
from kelpie_celery.canvas import JOB_TASK, Detacher
from kelpie_celery.celery_cli import tells_settings
from kelpie_celery.errors import KelpieError, LedgerRefused
from kelpie_celery.hearing import Hearing
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.types import Timings
from kelpie_celery.messages import Capture, encode
from kelpie_celery.meters import Meters
from kelpie_celery.patience import until_the_ledger_answers
from kelpie_celery.redaction import Redactor
from kelpie_celery.running import RunningJobs
from kelpie_celery.settings import Settings, load_settings, tell_unknown_settings
from kelpie_celery.slots import slot_count
from kelpie_celery.sockets import broker_timeout_s, client_options, health_check_s, transport_options

if TYPE_CHECKING:
    from kelpie_celery.runner import AttemptRunner

# A name, not an import: the library never imports a deployable, and a client never needs this one.
RUNNER = "kelpie_worker.runner:Runner"
CONTROL_TASKS = "kelpie_scaler.tasks"
BEAT_SCHEDULER = "kelpie_scaler.beat:Scheduler"
BACKEND = "kelpie_celery.backend:Backend"


def celery_config(settings: Settings) -> dict[str, Any]:
    """The app's configuration. The record, its lease and its attempt own a job's durability; a message is a hint."""
    named = settings.redis_url.get_secret_value()
    url, tls = _celery_url(without_tls_options(named)), tls_options(named) or None
    timeout_s = settings.redis_timeout_s
    return {
        "broker_url": f"redis+{url}" if url.startswith("socket:") else url,
        "result_backend": f"{BACKEND}+{url}",
        "broker_use_ssl": tls,
        "redis_backend_use_ssl": tls,
        "broker_transport_options": {
            **transport_options(timeout_s),
            "priority_steps": list(keys.PRIORITIES),
            "sep": keys.PRIORITY_SEPARATOR,
            **unacked_keys(settings.container_group_id),
        },
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "redis_socket_timeout": broker_timeout_s(timeout_s),
        "redis_socket_connect_timeout": broker_timeout_s(timeout_s),
        "redis_socket_keepalive": not _is_local(url),
        "redis_backend_health_check_interval": health_check_s(timeout_s),
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
            name.replace(".", "-"): {
                "task": name,
                "schedule": settings.maintain_s,
                "options": {
                    "queue": keys.CONTROL_QUEUE,
                    "expires": 5 * settings.maintain_s,
                    "ignore_result": True,
                },
            }
            for name in ("kelpie.maintain", "kelpie.webhooks")
        }
        | {
            "kelpie-scale": {
                "task": "kelpie.scale",
                "schedule": settings.scale_interval_s,
                "options": {
                    "queue": keys.CONTROL_QUEUE,
                    "expires": settings.scale_interval_s,
                    "ignore_result": True,
                },
            },
        },
    }


def unacked_keys(group: str | None) -> dict[str, str]:
    """Keys of kombu for messages that a consumer holds: each group has its own, as its workers may see no other's."""
    prefix = keys.group_prefix(group) if group else "kelpie:"
    return {
        option: prefix + option.removesuffix("_key")
        for option in ("unacked_key", "unacked_index_key", "unacked_mutex_key")
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
        retry_max_s=settings.retry_max_s,
        tick_interval_s=settings.pulse_s,
        # A machine gives a sign of life every fifth pulse (kelpie_celery.pulse).
        machine_alive_s=max(5.0, 15 * settings.pulse_s),
        drain_holds_s=max(300.0, 5 * settings.scale_interval_s),
    )


def connect(url: str, timeout_s: float = 5.0) -> Redis:
    """A client of the ledger. Repeats are the caller's: it knows which calls may be made twice."""
    options = client_options(timeout_s, tcp=not _is_local(url))
    return Redis.from_url(
        without_tls_options(url), **tls_options(url), decode_responses=True, retry=Retry(NoBackoff(), 0), **options
    )


class KelpieApp(Celery):
    """A Celery app whose messages carry ids only, and whose follow-up messages go out once."""

    def __init__(self, *args: Any, settings: Settings | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = settings
        self.running = RunningJobs()
        self.hearing = Hearing()
        self.redactor = Redactor()
        self.meters = Meters()
        self.add_defaults(lambda: celery_config(self.settings))

    @cached_property
    def settings(self) -> Settings:
        """The settings, read once when they are first needed."""
        if self._settings is not None:
            return self._settings
        settings = load_settings()
        if tells_settings():
            tell_unknown_settings()
        return settings

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger on this app's Redis."""
        s = self.settings
        return Ledger(connect(s.redis_url.get_secret_value(), s.redis_timeout_s), ledger_timings(s))

    @cached_property
    def worker_id(self) -> str:
        """What the ledger calls this process as a worker: a name of its own, whatever ran on this machine before."""
        return f"{self.settings.machine_id}.{uuid()[:8]}"

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
        with self.handing_over():
            return until_the_ledger_answers(lambda: self._send_once(name, args, kwargs, options), take_no=True)

    @contextmanager
    def handing_over(self) -> Iterator[None]:
        """Inside a job's bookkeeping: what Redis refuses to this worker's user is left to the control worker."""
        try:
            yield
        except LedgerRefused:
            self.ledger.hand_over(str(current_task.request.id))
            raise

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
