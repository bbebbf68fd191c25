"""How many commands a worker runs at once: one a GPU, or as many as ``KELPIE_SLOTS`` says.

Limits: GPUs are counted by what the container runtime shows (environment and device files); no driver is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

# NVIDIA Container Toolkit: values of NVIDIA_VISIBLE_DEVICES that name no list of devices.
_NO_LIST = frozenset({"", "all", "none", "void"})


def visible_gpus(environ: Mapping[str, str], dev: Path = Path("/dev")) -> list[str]:
    """What ``CUDA_VISIBLE_DEVICES`` may be set to for one GPU each; empty without a GPU."""
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [gpu.strip() for gpu in chosen.split(",") if gpu.strip() not in ("", "-1")]
    listed = environ.get("NVIDIA_VISIBLE_DEVICES", "").strip()
    if listed not in _NO_LIST:
        # The runtime renumbers the devices that it lets in from 0.
        return [str(i) for i in range(len([gpu for gpu in listed.split(",") if gpu.strip()]))]
    return [str(i) for i in range(len(list(dev.glob("nvidia[0-9]*"))))]


def gpus_by_slot(gpus: list[str], slots: int) -> list[str | None]:
    """The GPU or GPUs of each slot; None leaves a command's view as it is.

    With more GPUs than slots each slot gets a share; with fewer, slots share GPUs.
    """
    if not gpus:
        return [None] * slots
    if len(gpus) < slots:
        return [gpus[i % len(gpus)] for i in range(slots)]
    return [",".join(gpus[i::slots]) for i in range(slots)]


def slot_count(configured: int | None, environ: Mapping[str, str]) -> int:
    """The number of slots: as configured, else one a GPU, and one without a GPU."""
    return configured or max(1, len(visible_gpus(environ)))
