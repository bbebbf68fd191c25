"""A pretended node of a container group: its id, its directories, and the environment of its worker."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kelpie_celery.local import binaries

# What the surrounding environment must not bring in: it would speak to another Redis, as another machine.
_FOREIGN = ("SALAD_", "CELERY_", "FLOWER_")
# What the scaler is told, and nobody else: the key of SaladCloud is for the control worker alone.
_SCALER = ("SALAD_API_KEY", "SALAD_ORGANIZATION_NAME", "SALAD_ORGANIZATION", "SALAD_PROJECT_NAME", "SALAD_PROJECT")
_OUR_OWN = frozenset({"KELPIE_REDIS_URL", "KELPIE_READY_FILE", binaries.REDIS_VARIABLE, binaries.WEED_VARIABLE})


@dataclass(frozen=True)
class Machine:
    """One node.

    Attributes:
        number: What the stack calls it.
        machine_id: Its ``SALAD_MACHINE_ID``.
        directory: What it keeps over restarts of its worker.
    """

    number: int
    machine_id: str
    directory: Path

    def env(self, group: str, slots: int) -> dict[str, str]:
        """The environment of one run of its worker; makes the directories that it names."""
        place = self.directory
        return {
            "SALAD_CONTAINER_GROUP_ID": group,
            "SALAD_MACHINE_ID": self.machine_id,
            "SALAD_INSTANCE_ID": str(uuid.uuid4()),
            "KELPIE_SLOTS": str(slots),
            "KELPIE_WORKDIR": str(made(place / "work")),
            "KELPIE_STATE_FILE": str(place / "kelpie-state.json"),
            "INPUT_DIR": str(made(place / "input")),
            "OUTPUT_DIR": str(made(place / "output")),
            "CHECKPOINT_DIR": str(made(place / "checkpoint")),
        }


def inherited(environ: Mapping[str, str], *, own_storage: bool) -> dict[str, str]:
    """The part of the surrounding environment that a process of the stack may see.

    Args:
        environ: The surrounding one.
        own_storage: The stack has an S3 server: nothing of the user's ``AWS_...`` may mix with its keys.
    """
    foreign = (*_FOREIGN, "AWS_") if own_storage else _FOREIGN
    return {k: v for k, v in environ.items() if not k.startswith(foreign) and k not in _OUR_OWN}


def for_the_scaler(environ: Mapping[str, str]) -> dict[str, str]:
    """What the control worker may see besides: which SaladCloud it scales on, and by whose key."""
    return {name: environ[name] for name in _SCALER if name in environ}


def made(directory: Path) -> Path:
    """A directory that exists."""
    directory.mkdir(parents=True, exist_ok=True)
    return directory
