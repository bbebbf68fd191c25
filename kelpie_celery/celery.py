"""``kelpie_celery.celery:app``: the app that ``celery -A kelpie_celery`` finds.

Limits: importing it reads no environment and opens no connection.
"""

from __future__ import annotations

from typing import Any, cast

from celery.local import PromiseProxy

from kelpie_celery import worker_hooks
from kelpie_celery.app import KelpieApp
from kelpie_celery.canvas import JOB_TASK
from kelpie_celery.celery_cli import extend_celery
from kelpie_celery.flower_command import guard_flower
from kelpie_celery.gate import SlotGate
from kelpie_celery.hearing import Ears
from kelpie_celery.kept_events import KeptEvents
from kelpie_celery.settings import Settings
from kelpie_celery.task import JobTask

worker_hooks.connect()
extend_celery()
guard_flower()


def create_app(settings: Settings | None = None, *, set_as_current: bool = False) -> KelpieApp:
    """An app with the job task, with its own settings or with the environment's."""
    made = KelpieApp("kelpie", settings=settings, set_as_current=set_as_current)
    # Lazy: the task comes to be when the app is first used, since its defaults come from the settings.
    made.task(bind=True, base=JobTask, name=JOB_TASK)(_run_job)
    made.steps["consumer"].update((SlotGate, Ears, KeptEvents))
    return made


def _run_job(self: JobTask, *args: Any) -> Any:
    return self.execute(*args)


app = create_app(set_as_current=True)
run_job = cast("JobTask", PromiseProxy(lambda: app.tasks[JOB_TASK]))
