"""Commands for workers, beside Celery's own: ``inspect jobs``, ``control cancel_job ID``, ``control drain``.

They run in the worker's event loop, when somebody who may publish on the broker's control channel asks; the Redis user
of a group's workers may not (`kelpie_celery.acl`). Even so a worker of a container group acts on jobs of its own group
only. A control worker, which serves no group, cancels jobs of all.

Limits: importing this registers the commands for all Celery apps of the process; those that are not ours are told so.
``jobs`` and ``drain`` ask nobody; ``cancel_job`` makes two calls of Redis for each id.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from celery.worker.control import control_command, inspect_command

from kelpie_celery.clock import SystemClock
from kelpie_celery.errors import KelpieError
from kelpie_celery.gate import served_groups
from kelpie_celery.running import RunningJob

if TYPE_CHECKING:
    from kelpie_celery.app import KelpieApp

log = logging.getLogger(__name__)

_NOT_OURS = {"error": "this worker is none of kelpie-celery's"}


@inspect_command()
def jobs(state: Any) -> dict[str, Any]:
    """Running jobs: id, attempt, phase, progress, machine, seconds; and whether the worker takes more."""
    app = _kelpie(state)
    if app is None:
        return _NOT_OURS
    groups = served_groups(app)
    reasons = _why_it_takes_none(app, groups)
    return {
        "container_groups": groups,
        "machine_id": app.settings.machine_id,
        "slots": app.runner.slots if groups else 0,
        "takes_jobs": not reasons,
        "why_not": reasons,
        "jobs": [_job(app, job) for job in app.running.all()],
    }


@control_command(variadic="job_id", signature="ID [ID ...]")
def cancel_job(state: Any, job_id: str | Iterable[str] = (), **_: Any) -> dict[str, Any]:
    """Cancel jobs, durably: pending ones, and those that run, wherever that is."""
    app = _kelpie(state)
    if app is None:
        return _NOT_OURS
    ids = [job_id] if isinstance(job_id, str) else list(job_id)
    if not ids:
        return {"error": "cancel_job takes the ids of jobs; 'kelpie list' shows them"}
    words, failed = [], False
    for one in ids:
        try:
            words.append(f"{one}: {_cancel(app, one)}")
        except KelpieError as error:
            failed = True
            words.append(f"{one}: {error}")
    return {"error" if failed else "ok": "; ".join(words)}


@control_command()
def drain(state: Any, **_: Any) -> dict[str, Any]:
    """Take no more jobs; those that run go on. Holds until the worker ends; -d NAME for one worker alone."""
    app = _kelpie(state)
    if app is None:
        return _NOT_OURS
    if not served_groups(app):
        return {"ok": "this worker serves no container group: there is nothing to drain"}
    if app.running.drain_by_hand():
        log.warning(
            "the worker takes no more jobs: it was drained by hand",
            extra={"action": "drained_by_hand", "machine_id": app.settings.machine_id},
        )
    at_work = app.running.all()
    return {"ok": f"takes no more jobs until it is started again; jobs at work: {_ids(at_work)}"}


def _kelpie(state: Any) -> KelpieApp | None:
    app = state.app
    return cast("KelpieApp", app) if hasattr(app, "ledger") and hasattr(app, "running") else None


def _cancel(app: KelpieApp, job_id: str) -> str:
    group, served = app.ledger.group_of(job_id), served_groups(app)
    if group is not None and served and group not in served:
        return "a job of another container group, left to its own workers"
    status = app.ledger.cancel(job_id, "canceled through Celery")
    app.running.cancel(job_id)
    return status


def _ids(at_work: Sequence[RunningJob]) -> str:
    return ", ".join(job.token.job_id for job in at_work) or "none"


def _why_it_takes_none(app: KelpieApp, groups: Sequence[str]) -> list[str]:
    if not groups:
        return ["it serves no container group"]
    return [*app.running.reasons, *(["it ends"] if app.running.shutting_down else [])]


def _job(app: KelpieApp, job: RunningJob) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(job.said) if job.said else {}
    message = said.get("message")
    return {
        "id": job.token.job_id,
        "attempt": job.token.attempt,
        "phase": job.phase.value if job.phase else None,
        "progress": said.get("progress"),
        "message": app.redactor.mask(message) if message is not None else None,
        "machine_id": app.settings.machine_id,
        "seconds": round(job.asked_at.elapsed_s(SystemClock()), 1),
    }
