"""The environment that a job's command sees.

The container's own, without what is kelpie's secret; the definition's wins over it; what tells the job who it is wins
over both. Limits: values are handed to the supervisor through a pipe, never on a command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kelpie_celery.definition import JobDefinition
from kelpie_celery.ledger.types import Granted
from kelpie_celery.settings import Settings


@dataclass(frozen=True)
class JobFiles:
    """Files that a job and its worker talk through, in a directory of their own."""

    folder: Path

    @property
    def report(self) -> Path:
        """``KELPIE_REPORT``: the job appends JSON lines."""
        return self.folder / "report.jsonl"

    @property
    def parents(self) -> Path:
        """``KELPIE_PARENTS``: JSON list of the results of earlier steps of a workflow."""
        return self.folder / "parents.json"


def job_environment(
    settings: Settings, environ: Mapping[str, str], definition: JobDefinition, granted: Granted, files: JobFiles,
    directories: Mapping[str, Path], gpus: str | None,
) -> dict[str, str]:  # fmt: skip
    """Everything that the command sees.

    Args:
        settings: This worker's.
        environ: The container's environment.
        definition: The job's.
        granted: The claim.
        files: Where report and parents' results are.
        directories: ``INPUT_DIR``, ``OUTPUT_DIR``, ``CHECKPOINT_DIR``, as this worker has them.
        gpus: ``CUDA_VISIBLE_DEVICES`` of the slot; None leaves it.
    """
    slot = {} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus}
    return {
        **settings.without_secrets_env(environ),
        **slot,
        **{name: str(path) for name, path in directories.items()},
        **definition.environment,
        "KELPIE_JOB_ID": granted.token.job_id,
        "KELPIE_ATTEMPT": str(granted.token.attempt),
        "KELPIE_REPORT": str(files.report),
        "KELPIE_PARENTS": str(files.parents),
        "KELPIE_STATE_FILE": str(settings.workdir / settings.state_file),
    }
