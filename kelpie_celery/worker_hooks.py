"""What a Celery worker of this app does beside running tasks: hear revokes durably, pulse, hand over on SIGTERM.

Limits: hooks are Celery's signals; they act on kelpie apps only and leave other apps of the process alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from celery import current_app, signals

from kelpie_celery.canvas import JOB_TASK
from kelpie_celery.errors import JobNotFound, LedgerRefused, LedgerUnavailable
from kelpie_celery.gate import served_groups
from kelpie_celery.health import HealthFile
from kelpie_celery.logs import configure_logging
from kelpie_celery.metrics.exporter import start_metrics
from kelpie_celery.pulse import Pulse
from kelpie_celery.settings import tell_unknown_settings
from kelpie_celery.watch import Watch, health_path

if TYPE_CHECKING:
    from kelpie_celery.app import KelpieApp

log = logging.getLogger(__name__)

_worker: dict[str, Any] = {}


def connect() -> None:
    """Connect the hooks; calling it again changes nothing."""
    signals.setup_logging.connect(_on_setup_logging, weak=False, dispatch_uid="kelpie-logging")
    signals.worker_init.connect(_on_init, weak=False, dispatch_uid="kelpie-init")
    signals.worker_ready.connect(_on_ready, weak=False, dispatch_uid="kelpie-ready")
    signals.worker_shutting_down.connect(_on_shutting_down, weak=False, dispatch_uid="kelpie-shutting-down")
    signals.worker_shutdown.connect(_on_shutdown, weak=False, dispatch_uid="kelpie-shutdown")
    signals.task_revoked.connect(_on_revoked, weak=False, dispatch_uid="kelpie-revoked")


def cancel_everywhere(app: KelpieApp, job_id: str) -> None:
    """Cancel in the ledger, and at once in this process when the job runs here."""
    try:
        app.ledger.cancel(job_id, "revoked through Celery")
    except JobNotFound:
        return
    except LedgerRefused as e:
        # Every worker hears of every revoke; a job of a group that this one may not see is recorded by others.
        log.info("a revoke is left to others", extra={"action": "revoke_refused", "job_id": job_id, "error": str(e)})
    except LedgerUnavailable as e:
        log.warning("a revoke was not recorded", extra={"action": "revoke_lost", "job_id": job_id, "error": str(e)})
    app.running.cancel(job_id)


def _kelpie(app: Any) -> KelpieApp | None:
    return app if hasattr(app, "ledger") and hasattr(app, "running") else None


def _on_setup_logging(**_: Any) -> None:
    # Connected, Celery leaves logging alone; its own handlers would not mask secrets.
    app = _kelpie(current_app)
    if app is not None:
        app.redactor = configure_logging(app.settings.log_level, secrets=app.settings.secrets())
        if app.settings.log_level != "debug":
            # A line for each message and each beat would bury what a person looks for.
            for name in ("celery.worker.strategy", "celery.app.trace", "celery.beat"):
                logging.getLogger(name).setLevel(logging.WARNING)
        tell_unknown_settings()


def _on_init(sender: Any = None, **_: Any) -> None:
    app = _kelpie(sender.app)
    if app is not None:
        _worker["app"] = app
        _mind_control_commands(app)
        import kelpie_celery.remote_control  # noqa: F401, PLC0415 - heavy, and of use in workers only


def _mind_control_commands(app: KelpieApp) -> None:
    """Put the ledger in front of Celery's own revoke, which lives in each worker's memory only; shutdown hands over."""
    from celery.worker.control import Panel  # noqa: PLC0415 - heavy, and of use in workers only

    original = Panel.data["revoke"]
    if getattr(original, "is_durable", False):
        return

    def revoke(
        state: Any, task_id: str | Iterable[str], terminate: bool = False, signal: Any = None, **more: Any
    ) -> Any:
        ids = [task_id] if isinstance(task_id, str) else list(task_id or ())
        for job_id in ids:
            cancel_everywhere(app, job_id)
        return original(state, task_id, terminate, signal, **more)

    def terminate(state: Any, signal: Any, task_id: str | Iterable[str], **more: Any) -> Any:
        # Celery's own, which ``celery control terminate`` asks for, calls its revoke past the panel.
        return revoke(state, task_id, terminate=True, signal=signal, **more)

    end_worker = Panel.data["shutdown"]

    def shutdown(state: Any, **more: Any) -> Any:
        # Celery's own waits for what runs, which may take days, and sends none of the signals of a SIGTERM.
        app.running.shut_down()
        return end_worker(state, **more)

    revoke.is_durable = True  # type: ignore[attr-defined]  # marks our own wrapper
    Panel.data["revoke"] = revoke
    Panel.data["terminate"] = terminate
    Panel.data["shutdown"] = shutdown


def _on_ready(sender: Any = None, **_: Any) -> None:
    app = _kelpie(sender.app)
    if app is None:
        return
    groups = served_groups(app)
    metrics = start_metrics(app, groups)
    if metrics is not None:
        _worker["metrics"] = metrics
    if groups:
        _start_pulse(app, groups, sender.hostname)
    if app.settings.ready_file:
        app.settings.ready_file.touch()


def _start_pulse(app: KelpieApp, groups: list[str], hostname: str) -> None:
    pulse = Pulse(app, groups, hostname)
    watch = Watch(app, lambda: pulse.beats, pulse.goodbye, HealthFile(health_path(app.settings)))
    _worker.update(pulse=pulse, watch=watch)
    pulse.start()
    watch.begin()


def _on_shutting_down(**_: Any) -> None:
    app = _worker.get("app")
    if app is not None:
        app.running.shut_down()


def _on_shutdown(**_: Any) -> None:
    for name in ("watch", "pulse"):
        thread = _worker.pop(name, None)
        if thread is not None:
            thread.stop()
    metrics = _worker.pop("metrics", None)
    if metrics is not None:
        metrics.close()


def _on_revoked(sender: Any = None, request: Any = None, **_: Any) -> None:
    app = _worker.get("app")
    if app is not None and request is not None and getattr(sender, "name", "") == JOB_TASK:
        cancel_everywhere(app, request.id)
