"""kelpie-celery: long jobs that reach their end on GPU nodes that can vanish.

    from kelpie_celery import Kelpie

    with Kelpie() as kelpie:
        job = kelpie.submit({"command": "./train", "container_group_id": "my-group", "sync": {}})
        record = job.wait()

Limits: a name is imported when it is first used, so that ``kelpie --help`` starts quickly.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kelpie_celery.batches import NotAllSubmitted
    from kelpie_celery.celery import run_job
    from kelpie_celery.client import Kelpie
    from kelpie_celery.definition import JobDefinition, json_schema, parse_definition
    from kelpie_celery.errors import (
        DefinitionError,
        IdempotencyConflict,
        JobCanceled,
        JobError,
        JobFailed,
        JobNotFound,
        KelpieError,
        LedgerUnavailable,
        RuleError,
        RuleNotFound,
        SettingsError,
        WaitTimeout,
    )
    from kelpie_celery.job import Job
    from kelpie_celery.ledger.records import JobRecord
    from kelpie_celery.lifecycle import Phase, Status
    from kelpie_celery.scaling.rule import ScalingRule
    from kelpie_celery.settings import Settings, load_settings

    __version__: str

__all__ = [
    "DefinitionError",
    "IdempotencyConflict",
    "Job",
    "JobCanceled",
    "JobDefinition",
    "JobError",
    "JobFailed",
    "JobNotFound",
    "JobRecord",
    "Kelpie",
    "KelpieError",
    "LedgerUnavailable",
    "NotAllSubmitted",
    "Phase",
    "RuleError",
    "RuleNotFound",
    "ScalingRule",
    "Settings",
    "SettingsError",
    "Status",
    "WaitTimeout",
    "__version__",
    "json_schema",
    "load_settings",
    "parse_definition",
    "run_job",
]

_HOMES = {
    "kelpie_celery.batches": ("NotAllSubmitted",),
    "kelpie_celery.celery": ("run_job",),
    "kelpie_celery.client": ("Kelpie",),
    "kelpie_celery.definition": ("JobDefinition", "json_schema", "parse_definition"),
    "kelpie_celery.errors": (
        "DefinitionError",
        "IdempotencyConflict",
        "JobCanceled",
        "JobError",
        "JobFailed",
        "JobNotFound",
        "KelpieError",
        "LedgerUnavailable",
        "RuleError",
        "RuleNotFound",
        "SettingsError",
        "WaitTimeout",
    ),
    "kelpie_celery.job": ("Job",),
    "kelpie_celery.ledger.records": ("JobRecord",),
    "kelpie_celery.lifecycle": ("Phase", "Status"),
    "kelpie_celery.scaling.rule": ("ScalingRule",),
    "kelpie_celery.settings": ("Settings", "load_settings"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        # Slow to import, and seldom asked for.
        return import_module("importlib.metadata").version("kelpie-celery")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
