"""What all steps of one attempt share.

Limits: it decides nothing; who changes which part of it is said there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kelpie_celery.app import KelpieApp
from kelpie_celery.clock import Clock
from kelpie_celery.definition import JobDefinition
from kelpie_celery.ledger.types import Granted
from kelpie_celery.running import RunningJob
from kelpie_celery.settings import Settings
from kelpie_worker.command.recent import RecentOutput
from kelpie_worker.lease import Lease
from kelpie_worker.limits import Limits
from kelpie_worker.places import Places
from kelpie_worker.scratch import Scratch
from kelpie_worker.state_file import JobState, StateFile
from kelpie_worker.stopping import StopWatch


@dataclass(frozen=True, repr=False)  # the environment holds secrets
class Runtime:
    """What all attempts of a worker process share."""

    app: KelpieApp
    places: Places
    scratch: Scratch
    clock: Clock
    environ: Mapping[str, str]
    state: StateFile
    on_news: Callable[[], None] = lambda: None
    """Called in the attempt's loop when what it does has changed; must not wait."""


@dataclass(repr=False)  # a definition may hold secrets
class AttemptContext:
    """One attempt.

    Attributes:
        runtime: Of the worker process.
        granted: What the ledger granted.
        job: As the pool knows it.
        definition: Of the job.
        lease: Kept while the attempt lives; the fence of all that it makes visible.
        limits: Of time.
        stop: Whether the attempt was told to end.
        recent: The command's newest lines, for the record.
        state: What the machine's state file says of the job.
        delay_s: How long the next attempt is to wait, should this one fail.
        facts: For the attempt's history.
    """

    runtime: Runtime
    granted: Granted
    job: RunningJob
    definition: JobDefinition
    lease: Lease
    limits: Limits
    stop: StopWatch
    recent: RecentOutput
    state: JobState
    delay_s: float
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        """Of the worker."""
        return self.runtime.app.settings

    @property
    def log_fields(self) -> dict[str, Any]:
        """What every log line of the attempt names."""
        token = self.granted.token
        return {"job_id": token.job_id, "attempt": token.attempt, "machine_id": self.settings.machine_id,
                "container_group": self.definition.container_group_id}  # fmt: skip
